// ONNX Runtime, on the CPU or a provider for NVIDIA GPUs.
#include <onnxruntime_c_api.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <mutex>

#include "backend.hpp"
#include "library.hpp"
#include "machine.hpp"
#include "text.hpp"

namespace ropevit {
namespace {

// The functions used here are older than this.
constexpr std::uint32_t oldest_api = 16;

template <class Handle>
using Owned = std::unique_ptr<Handle, void (*)(Handle*)>;

// A loaded ONNX Runtime and its environment, for the rest of the process.
class Ort {
 public:
  static const Ort& of(const std::filesystem::path& given) {
    static std::mutex mutex;
    static std::map<std::string, const Ort*> loaded;  // never taken apart: other threads may be in it at exit
    const std::lock_guard<std::mutex> lock(mutex);
    const Ort*& found = loaded[given.string()];
    if (found == nullptr) found = new Ort(given);
    return *found;
  }

  const OrtApi* operator->() const { return api_; }
  const std::string& version() const { return version_; }
  OrtEnv* env() const { return env_; }

  // Throws BackendError, or another one, that begins with `what`.
  template <class Exception = BackendError>
  void check(OrtStatus* status, const std::string& what) const {
    if (status == nullptr) return;
    const std::string said = first_line(api_->GetErrorMessage(status));
    api_->ReleaseStatus(status);
    throw Exception(what + ": " + said);
  }

 private:
  explicit Ort(const std::filesystem::path& given)
      : library_("ONNX Runtime", given, "ROPEVIT_ONNXRUNTIME", {"libonnxruntime.so.1", "libonnxruntime.so"},
                 "pip install onnxruntime, whose library is onnxruntime/capi/libonnxruntime.so.*") {
    const OrtApiBase* base = library_.symbol<const OrtApiBase* (*)()>("OrtGetApiBase")();
    version_ = base->GetVersionString();
    // Release 1.N has the interface's versions up to N; asked for a later one it would print an error.
    const std::uint32_t release = static_cast<std::uint32_t>(std::atoi(version_.c_str() + version_.find('.') + 1));
    for (std::uint32_t version = std::min<std::uint32_t>(ORT_API_VERSION, release);
         version >= oldest_api && api_ == nullptr; --version)
      api_ = base->GetApi(version);
    if (api_ == nullptr)
      throw BackendError("ONNX Runtime " + version_ + " (" + library_.path() + ") is too old: needed 1." +
                         std::to_string(oldest_api) + " or newer.");
    check(api_->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "ropevit", &env_), "ONNX Runtime can't be started");
  }

  Library library_;
  std::string version_;
  const OrtApi* api_ = nullptr;
  OrtEnv* env_ = nullptr;
};

ONNXTensorElementDataType element(DataType type) {
  switch (type) {
    case DataType::uint8: return ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
    case DataType::float16: return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
    case DataType::bfloat16: return ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
    case DataType::float32: return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  }
  throw BackendError("ONNX Runtime has not that number format.");
}

class OrtContext : public Context, public DeviceContext {
 public:
  // `device`: where images and outputs are; null: on the host.
  OrtContext(const Ort& ort, OrtSession* session, std::string model, const std::vector<Buffer>& inputs,
             const std::vector<Buffer>& outputs, OrtMemoryInfo* device, OrtMemoryInfo* host)
      : ort_(ort), session_(session), model_(std::move(model)), device_(device), inputs_(inputs), outputs_(outputs),
        run_options_(nullptr, ort->ReleaseRunOptions) {
    for (const Buffer& each : inputs_) {
      input_names_.push_back(each.name.c_str());
      input_values_.push_back(each.data == nullptr ? nullptr : value(each, each.data, host));
    }
    for (const Buffer& each : outputs_) {
      output_names_.push_back(each.name.c_str());
      output_values_.push_back(each.data == nullptr ? nullptr : value(each, each.data, host));
    }
    if (device_ != nullptr) {
      OrtRunOptions* made = nullptr;
      ort_.check(ort_->CreateRunOptions(&made), "ONNX Runtime failed");
      run_options_.reset(made);
      ort_.check(ort_->AddRunConfigEntry(made, "disable_synchronize_execution_providers", "1"), "ONNX Runtime failed");
    }
  }
  OrtContext(const OrtContext&) = delete;
  OrtContext& operator=(const OrtContext&) = delete;

  ~OrtContext() override {
    for (OrtValue* each : input_values_) ort_->ReleaseValue(each);
    for (OrtValue* each : output_values_) ort_->ReleaseValue(each);
  }

  void run() override {
    OrtStatus* status =
        ort_->Run(session_, run_options_.get(), input_names_.data(), input_values_.data(), input_values_.size(),
                  output_names_.data(), output_names_.size(), output_values_.data());
    if (status != nullptr) ort_.check(status, "ONNX Runtime failed to run " + model_);
  }

  void run(const void* images, const std::vector<void*>& outputs) override {
    replace(input_values_[0], inputs_[0], const_cast<void*>(images));
    for (std::size_t at = 0; at < outputs_.size(); ++at) replace(output_values_[at], outputs_[at], outputs[at]);
    run();
  }

 private:
  OrtValue* value(const Buffer& buffer, void* data, const OrtMemoryInfo* where) {
    OrtValue* made = nullptr;
    ort_.check(ort_->CreateTensorWithDataAsOrtValue(where, data, buffer.bytes, buffer.shape.data(), buffer.shape.size(),
                                                    element(buffer.type), &made),
               "ONNX Runtime takes no " + buffer.name);
    return made;
  }

  void replace(OrtValue*& old, Buffer& buffer, void* data) {
    if (old != nullptr && buffer.data == data) return;
    if (old != nullptr) ort_->ReleaseValue(old);
    old = nullptr;
    old = value(buffer, data, device_);
    buffer.data = data;
  }

  const Ort& ort_;
  OrtSession* session_;
  std::string model_;
  OrtMemoryInfo* device_;
  std::vector<Buffer> inputs_, outputs_;
  Owned<OrtRunOptions> run_options_;
  std::vector<const char*> input_names_, output_names_;
  std::vector<OrtValue*> input_values_, output_values_;
};

class OrtRunner : public Runner {
 public:
  OrtRunner(const std::filesystem::path& model, const Artifact& artifact, const Options& options)
      : ort_(Ort::of(options.library)), model_(artifact.path), precision_(artifact.precision),
        provider_(options.backend == "onnxruntime-cuda"       ? "CUDAExecutionProvider"
                  : options.backend == "onnxruntime-tensorrt" ? "TensorrtExecutionProvider"
                                                              : "CPUExecutionProvider"),
        stream_(options.stream), session_(nullptr, ort_->ReleaseSession), host_(nullptr, ort_->ReleaseMemoryInfo),
        device_(nullptr, ort_->ReleaseMemoryInfo) {
    const bool cpu = provider_ == "CPUExecutionProvider";
    if (cpu && precision_ == "bf16")
      throw BackendError("ONNX Runtime's CPU provider has no bfloat16 for " + model_ +
                         ": use openvino or another provider.");
    const std::string failed = "ONNX Runtime refuses " + model_;
    OrtSessionOptions* made = nullptr;
    ort_.check(ort_->CreateSessionOptions(&made), failed);
    const Owned<OrtSessionOptions> settings(made, ort_->ReleaseSessionOptions);
    int threads = options.threads;
    if (options.streams > 1)  // each a part of them
      threads = std::max(1, (threads > 0 ? threads : this_machine().cores) / options.streams);
    if (threads > 0) ort_.check(ort_->SetIntraOpNumThreads(made, threads), failed);
    if (precision_ == "fp8")  // whose operators it has, but does not fuse
      ort_.check(ort_->SetSessionGraphOptimizationLevel(made, ORT_DISABLE_ALL), failed);
    as_uint8_ = cpu && precision_ == "int8" && cuts_8_bit_sums();
    if (as_uint8_) ort_.check(ort_->AddSessionConfigEntry(made, "session.x64quantprecision", "1"), failed);
    if (!cpu) add_provider(made, options);
    OrtSession* session = nullptr;
    ort_.check<GraphError>(ort_->CreateSession(ort_.env(), model.c_str(), made, &session), failed);
    session_.reset(session);
    require_as_listed(artifact.inputs, "input", ort_->SessionGetInputCount, ort_->SessionGetInputName,
                      ort_->SessionGetInputTypeInfo);
    require_as_listed(artifact.outputs, "output", ort_->SessionGetOutputCount, ort_->SessionGetOutputName,
                      ort_->SessionGetOutputTypeInfo);
    OrtMemoryInfo* memory = nullptr;
    ort_.check(ort_->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory), failed);
    host_.reset(memory);
  }

  std::string describe() const override {
    std::string computed = precision_;
    const bool cpu = provider_ == "CPUExecutionProvider";
    if (precision_ == "fp32")
      computed = provider_ == "CUDAExecutionProvider" ? "float32, TF32 off" : "float32";
    else if (precision_ == "int8" || precision_ == "fp8")
      computed += std::string(" linear layers") + (as_uint8_ ? ", weights as uint8 for want of VNNI" : "");
    else if (cpu)
      computed += " weights and values, computed mostly in float32: no proof against overflow";
    return "ONNX Runtime " + ort_.version() + ", " + provider_ + ", " + computed;
  }

  std::unique_ptr<Context> bind(const std::vector<Buffer>& inputs, const std::vector<Buffer>& outputs) override {
    return std::make_unique<OrtContext>(ort_, session_.get(), model_, inputs, outputs, nullptr, host_.get());
  }

  std::unique_ptr<DeviceContext> bind_on_device(const std::vector<Buffer>& inputs, const std::vector<Buffer>& outputs,
                                                void* stream) override {
    if (provider_ != "CUDAExecutionProvider") return Runner::bind_on_device(inputs, outputs, stream);
    if (stream != stream_ || stream == nullptr)
      throw BackendError("onnxruntime-cuda works in the stream of its options only: give it there, before loading.");
    return std::make_unique<OrtContext>(ort_, session_.get(), model_, inputs, outputs, device_.get(), host_.get());
  }

 private:
  // Names, formats and extents of the graph are the manifest's, by which buffers are made that ONNX Runtime writes to.
  template <class Count, class Name, class Info>
  void require_as_listed(const std::vector<ArrayEntry>& listed, const std::string& side, Count count_of, Name name_of_,
                         Info info_of) const {
    const std::string failed = "ONNX Runtime refuses " + model_;
    std::size_t count = 0;
    ort_.check(count_of(session_.get(), &count), failed);
    OrtAllocator* allocator = nullptr;
    ort_.check(ort_->GetAllocatorWithDefaultOptions(&allocator), failed);
    std::vector<std::string> names;
    for (std::size_t at = 0; at < count; ++at) {
      char* name = nullptr;
      ort_.check(name_of_(session_.get(), at, allocator, &name), failed);
      names.emplace_back(name);
      ort_.check(ort_->AllocatorFree(allocator, name), failed);
    }
    for (const ArrayEntry& each : listed) {
      const auto at = std::find(names.begin(), names.end(), each.name);
      if (at == names.end() || count != listed.size())
        throw BundleError(model_ + " has the " + side + "s " + joined(names) + ", the manifest lists " +
                          std::to_string(listed.size()) + " with " + each.name + ".");
      OrtTypeInfo* info = nullptr;
      ort_.check(info_of(session_.get(), static_cast<std::size_t>(at - names.begin()), &info), failed);
      const Owned<OrtTypeInfo> held(info, ort_->ReleaseTypeInfo);
      const OrtTensorTypeAndShapeInfo* tensor = nullptr;
      ort_.check(ort_->CastTypeInfoToTensorInfo(info, &tensor), failed);
      if (tensor == nullptr || !is_as_listed(*tensor, each))
        throw BundleError(model_ + " has the " + side + " " + each.name +
                          " in another format or shape than the manifest lists.");
    }
  }

  bool is_as_listed(const OrtTensorTypeAndShapeInfo& tensor, const ArrayEntry& listed) const {
    const std::string failed = "ONNX Runtime refuses " + model_;
    ONNXTensorElementDataType type{};
    std::size_t rank = 0;
    ort_.check(ort_->GetTensorElementType(&tensor, &type), failed);
    ort_.check(ort_->GetDimensionsCount(&tensor, &rank), failed);
    std::vector<std::int64_t> extents(rank);  // -1: any
    ort_.check(ort_->GetDimensions(&tensor, extents.data(), rank), failed);
    if (type != element(listed.type) || rank != listed.shape.size()) return false;
    for (std::size_t axis = 0; axis < rank; ++axis) {
      const auto* number = std::get_if<std::int64_t>(&listed.shape[axis]);
      if (extents[axis] >= 0 && (number == nullptr || *number != extents[axis])) return false;
    }
    return true;
  }

  // Added by itself a provider that can't be had is an error; nothing falls back to the CPU.
  void add_provider(OrtSessionOptions* settings, const Options& options) {
    const std::string failed = "ONNX Runtime " + ort_.version() + " can't use " + provider_ +
                               " (pip install 'onnxruntime-gpu[cuda,cudnn]', and have its libraries on the loader's "
                               "path)";
    const std::string device = options.device.empty() ? "0" : options.device;
    std::vector<const char*> keys{"device_id"}, values{device.c_str()};
    if (provider_ == "CUDAExecutionProvider") {
      keys.push_back("use_tf32"), values.push_back("0");  // would keep ten bits of a float32 product
      OrtCUDAProviderOptionsV2* made = nullptr;
      ort_.check(ort_->CreateCUDAProviderOptions(&made), failed);
      const Owned<OrtCUDAProviderOptionsV2> cuda(made, ort_->ReleaseCUDAProviderOptions);
      ort_.check(ort_->UpdateCUDAProviderOptions(made, keys.data(), values.data(), keys.size()), failed);
      if (stream_ != nullptr)
        ort_.check(ort_->UpdateCUDAProviderOptionsWithValue(made, "user_compute_stream", stream_), failed);
      ort_.check(ort_->SessionOptionsAppendExecutionProvider_CUDA_V2(settings, made), failed);
      OrtMemoryInfo* memory = nullptr;
      ort_.check(
          ort_->CreateMemoryInfo("Cuda", OrtDeviceAllocator, std::atoi(device.c_str()), OrtMemTypeDefault, &memory),
          failed);
      device_.reset(memory);
    } else {
      OrtTensorRTProviderOptionsV2* made = nullptr;
      ort_.check(ort_->CreateTensorRTProviderOptions(&made), failed);
      const Owned<OrtTensorRTProviderOptionsV2> tensorrt(made, ort_->ReleaseTensorRTProviderOptions);
      ort_.check(ort_->UpdateTensorRTProviderOptions(made, keys.data(), values.data(), keys.size()), failed);
      ort_.check(ort_->SessionOptionsAppendExecutionProvider_TensorRT_V2(settings, made), failed);
    }
  }

  const Ort& ort_;
  std::string model_, precision_, provider_;
  void* stream_;
  bool as_uint8_ = false;
  Owned<OrtSession> session_;
  Owned<OrtMemoryInfo> host_, device_;
};

}  // namespace

std::string version_of_onnxruntime() { return Ort::of({}).version(); }

std::unique_ptr<Runner> load_onnxruntime(const std::filesystem::path& model, const Artifact& artifact,
                                         const Options& options) {
  return std::make_unique<OrtRunner>(model, artifact, options);
}

}  // namespace ropevit
