// OpenVINO, on the CPU or another of its devices: ONNX files and its own IR.
#include <openvino/c/openvino.h>

#include <map>
#include <mutex>

#include "backend.hpp"
#include "library.hpp"
#include "text.hpp"

namespace ropevit {
namespace {

// What to compute in: as asked for, else by the graph's precision. Left to itself OpenVINO takes bfloat16 for a float32
// graph where the CPU has it.
std::string computed_in(const std::string& precision, const std::string& asked) {
  if (!asked.empty() && asked != "f32" && asked != "bf16")
    throw BackendError("OpenVINO was asked to compute in '" + asked + "': it takes f32 or bf16.");
  return !asked.empty() ? asked : precision == "bf16" ? "bf16" : "f32";
}

// The functions of OpenVINO's C interface that are used here.
class OpenVino {
 public:
  static const OpenVino& of(const std::filesystem::path& given) {
    static std::mutex mutex;
    static std::map<std::string, const OpenVino*> loaded;  // never taken apart: other threads may be in it at exit
    const std::lock_guard<std::mutex> lock(mutex);
    const OpenVino*& found = loaded[given.string()];
    if (found == nullptr) found = new OpenVino(given);
    return *found;
  }

 private:
  Library library_;

 public:
#define ROPEVIT_OV(name) decltype(&ov_##name) name = library_.symbol<decltype(&ov_##name)>("ov_" #name)
  ROPEVIT_OV(get_openvino_version);
  ROPEVIT_OV(version_free);
  ROPEVIT_OV(get_last_err_msg);
  ROPEVIT_OV(free);
  ROPEVIT_OV(core_create);
  ROPEVIT_OV(core_compile_model_from_file);
  ROPEVIT_OV(compiled_model_free);
  ROPEVIT_OV(compiled_model_get_property);
  ROPEVIT_OV(compiled_model_create_infer_request);
  ROPEVIT_OV(compiled_model_input_by_name);
  ROPEVIT_OV(compiled_model_output_by_name);
  ROPEVIT_OV(output_const_port_free);
  ROPEVIT_OV(port_get_element_type);
  ROPEVIT_OV(tensor_create_from_host_ptr);
  ROPEVIT_OV(tensor_get_byte_size);
  ROPEVIT_OV(tensor_free);
  ROPEVIT_OV(infer_request_set_tensor);
  ROPEVIT_OV(infer_request_infer);
  ROPEVIT_OV(infer_request_free);
#undef ROPEVIT_OV

  const std::string& version() const { return version_; }
  ov_core_t* core() const { return core_; }

  // Throws BackendError that begins with `what`.
  void check(ov_status_e status, const std::string& what) const {
    if (status == ov_status_e::OK) return;
    const char* said = get_last_err_msg();
    const std::string reason = last_line(said == nullptr ? "" : said);
    free(said);
    throw BackendError(what + ": " + reason);
  }

 private:
  explicit OpenVino(const std::filesystem::path& given)
      : library_("OpenVINO", given, "ROPEVIT_OPENVINO", {"libopenvino_c.so"},
                 "pip install openvino, whose library is openvino/libs/libopenvino_c.so.*") {
    ov_version_t version{};
    check(get_openvino_version(&version), "OpenVINO can't be started");
    version_ = version.buildNumber;
    version_ = version_.substr(0, version_.find('-'));
    version_free(&version);
    check(core_create(&core_), "OpenVINO can't be started");
  }

  std::string version_;
  ov_core_t* core_ = nullptr;
};

template <class Handle>
using Owned = std::unique_ptr<Handle, void (*)(Handle*)>;

class OpenVinoContext : public Context {
 public:
  OpenVinoContext(const OpenVino& openvino, ov_compiled_model_t* compiled, std::string model,
                  const std::vector<Buffer>& inputs, const std::vector<Buffer>& outputs)
      : openvino_(openvino), model_(std::move(model)), request_(nullptr, openvino.infer_request_free) {
    ov_infer_request_t* request = nullptr;
    openvino_.check(openvino_.compiled_model_create_infer_request(compiled, &request), "OpenVINO refuses " + model_);
    request_.reset(request);
    for (const Buffer& each : inputs) bind(each, compiled, openvino_.compiled_model_input_by_name);
    for (const Buffer& each : outputs) bind(each, compiled, openvino_.compiled_model_output_by_name);
  }

  void run() override {
    const ov_status_e status = openvino_.infer_request_infer(request_.get());
    if (status != ov_status_e::OK) openvino_.check(status, "OpenVINO failed to run " + model_);
  }

 private:
  template <class PortByName>
  void bind(const Buffer& buffer, ov_compiled_model_t* compiled, PortByName port_by_name) {
    const std::string what = "OpenVINO takes no " + buffer.name + " of " + model_;
    ov_output_const_port_t* found = nullptr;
    openvino_.check(port_by_name(compiled, buffer.name.c_str(), &found), what);
    const Owned<ov_output_const_port_t> port(found, openvino_.output_const_port_free);
    ov_element_type_e type{};  // by the library's own number, which differs between releases
    openvino_.check(openvino_.port_get_element_type(port.get(), &type), what);
    std::vector<std::int64_t> extents = buffer.shape;
    const ov_shape_t shape{static_cast<std::int64_t>(extents.size()), extents.data()};
    ov_tensor_t* made = nullptr;
    openvino_.check(openvino_.tensor_create_from_host_ptr(type, shape, buffer.data, &made), what);
    const Owned<ov_tensor_t> tensor(made, openvino_.tensor_free);
    std::size_t bytes = 0;  // OpenVINO writes as many, whatever the manifest says
    openvino_.check(openvino_.tensor_get_byte_size(made, &bytes), what);
    if (bytes != buffer.bytes)
      throw BundleError(model_ + " has " + buffer.name + " in another format than the manifest lists.");
    openvino_.check(openvino_.infer_request_set_tensor(request_.get(), buffer.name.c_str(), made), what);
  }

  const OpenVino& openvino_;
  std::string model_;
  Owned<ov_infer_request_t> request_;
};

class OpenVinoRunner : public Runner {
 public:
  OpenVinoRunner(const std::filesystem::path& model, const Artifact& artifact, const Options& options)
      : openvino_(OpenVino::of(options.library)), model_(artifact.path), precision_(artifact.precision),
        device_(options.device.empty() ? "CPU" : options.device), compiled_(nullptr, openvino_.compiled_model_free) {
    const std::string wanted = computed_in(precision_, options.compute), threads = std::to_string(options.threads);
    ov_compiled_model_t* made = nullptr;
    const auto compile = [&](auto... properties) {
      openvino_.check(openvino_.core_compile_model_from_file(openvino_.core(), model.c_str(), device_.c_str(),
                                                             sizeof...(properties), &made, properties...),
                      "OpenVINO refuses " + model_);
    };
    const char *hint = "INFERENCE_PRECISION_HINT", *mode = "PERFORMANCE_HINT";
    if (options.threads > 0)
      compile(hint, wanted.c_str(), mode, "LATENCY", "INFERENCE_NUM_THREADS", threads.c_str());
    else
      compile(hint, wanted.c_str(), mode, "LATENCY");
    compiled_.reset(made);
    char* said = nullptr;  // a device may take another
    openvino_.check(openvino_.compiled_model_get_property(made, hint, &said), "OpenVINO refuses " + model_);
    const std::string taken = said;
    openvino_.free(said);
    if (taken != wanted)
      throw BackendError("asked OpenVINO to compute " + model_ + " in " + wanted + ", " + device_ + " takes " + taken +
                         ".");
    taken_ = taken;
  }

  std::string describe() const override {
    std::string text = "OpenVINO " + openvino_.version() + ", " + device_ + ", computed in " + taken_;
    if (precision_ == "int8" || precision_ == "fp8") text += " around " + precision_ + " codes";
    if (precision_ == "fp16") text += ", float16 weights: no proof against overflow";
    return text;
  }

  std::unique_ptr<Context> bind(const std::vector<Buffer>& inputs, const std::vector<Buffer>& outputs) override {
    return std::make_unique<OpenVinoContext>(openvino_, compiled_.get(), model_, inputs, outputs);
  }

 private:
  const OpenVino& openvino_;
  std::string model_, precision_, device_, taken_;
  Owned<ov_compiled_model_t> compiled_;
};

}  // namespace

std::unique_ptr<Runner> load_openvino(const std::filesystem::path& model, const Artifact& artifact,
                                      const Options& options) {
  return std::make_unique<OpenVinoRunner>(model, artifact, options);
}

}  // namespace ropevit
