#include "backend.hpp"

#include "file.hpp"
#include "text.hpp"

namespace ropevit {
namespace {

#if !defined(ROPEVIT_WITH_ONNXRUNTIME) || !defined(ROPEVIT_WITH_OPENVINO) || !defined(ROPEVIT_WITH_TENSORRT) || \
    !defined(ROPEVIT_WITH_TENSORRT_RTX)
[[noreturn]] void not_built(const std::string& runtime, const std::string& cure) {
  throw BackendError("this ropevit was built without " + runtime + ": configure it with " + cure + ".");
}
#endif

}  // namespace

std::unique_ptr<DeviceContext> Runner::bind_on_device(const std::vector<Buffer>& inputs,
                                                      const std::vector<Buffer>& outputs, void* stream) {
  static_cast<void>(inputs), static_cast<void>(outputs), static_cast<void>(stream);
  throw BackendError(describe() + " takes host memory only: needed tensorrt, tensorrt-rtx or onnxruntime-cuda.");
}

bool runs_engines(const std::string& backend) { return backend == "tensorrt" || backend == "tensorrt-rtx"; }

std::unique_ptr<Runner> load_runner(const std::filesystem::path& bundle, const Artifact& artifact,
                                    const Options& options) {
  if (artifact.stripped)  // not every release of TensorRT can tell by the engine
    throw BackendError(artifact.path + " was built without its weights: a host has to put them back first.");
  const std::filesystem::path path = bundle / artifact.path;
  require_file(path);  // a runtime would wait for a pipe
  for (const FileEntry& each : artifact.files) require_file(bundle / each.path);
  const std::string& backend = options.backend;
  if (backend == "onnxruntime" || backend == "onnxruntime-cuda" || backend == "onnxruntime-tensorrt") {
#ifdef ROPEVIT_WITH_ONNXRUNTIME
    return load_onnxruntime(path, artifact, options);
#else
    not_built("ONNX Runtime", "its headers, which scripts/fetch_headers gets");
#endif
  }
  if (backend == "openvino") {
#ifdef ROPEVIT_WITH_OPENVINO
    return load_openvino(path, artifact, options);
#else
    not_built("OpenVINO", "-DROPEVIT_OPENVINO_INCLUDE=… of its package (pip install openvino)");
#endif
  }
  if (backend == "tensorrt") {
#ifdef ROPEVIT_WITH_TENSORRT
    return load_tensorrt(path, artifact, options);
#else
    not_built("TensorRT", "-DROPEVIT_TENSORRT_INCLUDE=… and -DROPEVIT_CUDA_INCLUDE=… of its SDK");
#endif
  }
  if (backend == "tensorrt-rtx") {
#ifdef ROPEVIT_WITH_TENSORRT_RTX
    return load_tensorrt_rtx(path, artifact, options);
#else
    not_built("TensorRT-RTX", "-DROPEVIT_TENSORRT_RTX_INCLUDE=… and -DROPEVIT_CUDA_INCLUDE=… of its SDK");
#endif
  }
  throw BackendError("no backend " + in_quotes(backend) + " runs a bundle: there are " + joined(backends()) + ".");
}

const std::vector<std::string>& backends() {
  static const std::vector<std::string> names{"onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt",
                                              "openvino",    "tensorrt",         "tensorrt-rtx"};
  return names;
}

std::string version_of(const std::string& backend) {
  try {
#ifdef ROPEVIT_WITH_ONNXRUNTIME
    if (backend.rfind("onnxruntime", 0) == 0) return version_of_onnxruntime();
#endif
#ifdef ROPEVIT_WITH_OPENVINO
    if (backend == "openvino") return version_of_openvino();
#endif
#ifdef ROPEVIT_WITH_TENSORRT
    if (backend == "tensorrt") return version_of_tensorrt();
#endif
#ifdef ROPEVIT_WITH_TENSORRT_RTX
    if (backend == "tensorrt-rtx") return version_of_tensorrt_rtx();
#endif
  } catch (const BackendError&) {  // it is not there
  }
  return "";
}

}  // namespace ropevit
