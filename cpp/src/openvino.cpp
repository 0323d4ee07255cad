// OpenVINO, on the CPU or another of its devices: ONNX files and its own IR.
#include <openvino/c/openvino.h>

#include <algorithm>
#include <cstdlib>
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

  // Throws BackendError, or another one, that begins with `what`.
  template <class Exception = BackendError>
  void check(ov_status_e status, const std::string& what) const {
    if (status == ov_status_e::OK) return;
    const char* said = get_last_err_msg();
    const std::string reason = last_line(said == nullptr ? "" : said);
    free(said);
    throw Exception(what + ": " + reason);
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

// A model without links, for OpenVINO, which follows none out of the folder: caches keep files behind links.
class WithoutLinks {
 public:
  WithoutLinks(const std::filesystem::path& model, const Artifact& artifact) : file_(model) {
    const std::filesystem::path bundle = model.parent_path();
    std::vector<std::string> names{artifact.path};
    for (const FileEntry& each : artifact.files) names.push_back(each.path);
    const auto is_link = [&](const std::string& name) { return std::filesystem::is_symlink(bundle / name); };
    if (std::none_of(names.begin(), names.end(), is_link)) return;
    std::string made = (std::filesystem::temp_directory_path() / "ropevit-XXXXXX").string();
    if (mkdtemp(made.data()) == nullptr)
      throw BackendError("no folder for " + artifact.path + " without links can be made in " +
                         std::filesystem::temp_directory_path().string() + ".");
    folder_ = made;
    file_ = folder_ / artifact.path;
    try {
      for (const std::string& name : names) place(std::filesystem::canonical(bundle / name), folder_ / name);
    } catch (...) {
      remove();
      throw;
    }
  }
  ~WithoutLinks() { remove(); }
  WithoutLinks(const WithoutLinks&) = delete;
  WithoutLinks& operator=(const WithoutLinks&) = delete;

  const std::filesystem::path& file() const { return file_; }

 private:
  void remove() const {
    std::error_code ignored;
    if (!folder_.empty()) std::filesystem::remove_all(folder_, ignored);
  }

  // Under a second name, without a copy where the filesystem can: weights are large.
  static void place(const std::filesystem::path& from, const std::filesystem::path& to) {
    std::error_code other_filesystem, failed;
    std::filesystem::create_hard_link(from, to, other_filesystem);
    if (other_filesystem) std::filesystem::copy_file(from, to, failed);
    if (failed)
      throw BackendError("can't copy " + from.string() + " to " + to.string() + ": " + failed.message() + ".");
  }

  std::filesystem::path file_, folder_;
};

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
    const WithoutLinks own(model, artifact);
    const auto compile = [&](auto... properties) {
      openvino_.check<GraphError>(
          openvino_.core_compile_model_from_file(openvino_.core(), own.file().c_str(), device_.c_str(),
                                                 sizeof...(properties), &made, properties...),
          "OpenVINO refuses " + model_);
    };
    const std::string streams = std::to_string(options.streams);
    const char* hint = "INFERENCE_PRECISION_HINT";
    const char* mode = options.streams > 1 ? "NUM_STREAMS" : "PERFORMANCE_HINT";
    const char* way = options.streams > 1 ? streams.c_str() : "LATENCY";
    if (options.threads > 0)
      compile(hint, wanted.c_str(), mode, way, "INFERENCE_NUM_THREADS", threads.c_str());
    else
      compile(hint, wanted.c_str(), mode, way);
    compiled_.reset(made);
    char* said = nullptr;  // a device may take another
    openvino_.check(openvino_.compiled_model_get_property(made, hint, &said), "OpenVINO refuses " + model_);
    const std::string taken = said;
    openvino_.free(said);
    if (taken != wanted)
      throw BackendError("asked OpenVINO to compute " + model_ + " in " + wanted + ", " + device_ + " takes " + taken +
                         ".");
    taken_ = taken;
    streams_ = options.streams;
  }

  std::string describe() const override {
    std::string text = "OpenVINO " + openvino_.version() + ", " + device_ + ", computed in " + taken_;
    if (precision_ == "int8" || precision_ == "fp8") text += " around " + precision_ + " codes";
    if (streams_ > 1) text += ", " + std::to_string(streams_) + " streams";
    if (precision_ == "fp16") text += ", float16 weights: no proof against overflow";
    return text;
  }

  std::unique_ptr<Context> bind(const std::vector<Buffer>& inputs, const std::vector<Buffer>& outputs) override {
    return std::make_unique<OpenVinoContext>(openvino_, compiled_.get(), model_, inputs, outputs);
  }

 private:
  const OpenVino& openvino_;
  std::string model_, precision_, device_, taken_;
  int streams_ = 1;
  Owned<ov_compiled_model_t> compiled_;
};

}  // namespace

std::string version_of_openvino() { return OpenVino::of({}).version(); }

std::unique_ptr<Runner> load_openvino(const std::filesystem::path& model, const Artifact& artifact,
                                      const Options& options) {
  return std::make_unique<OpenVinoRunner>(model, artifact, options);
}

}  // namespace ropevit
