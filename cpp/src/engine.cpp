// TensorRT and TensorRT-RTX engines: one is shared by all callers, each of whom has an execution context and a stream.
//
// Compiled once for either library, whose headers have the same names: CMakeLists.txt renames the namespace of
// TensorRT-RTX's, so that both can be in one program.
#include <NvInferRuntime.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <mutex>

#include "backend.hpp"
#include "cuda.hpp"
#include "file.hpp"
#include "library.hpp"
#include "sha256.hpp"
#include "text.hpp"

namespace ropevit {
namespace {

namespace trt = nvinfer1;

#ifdef ROPEVIT_ENGINE_RTX
constexpr const char* library_name = "TensorRT-RTX";
constexpr const char* variable = "ROPEVIT_TENSORRT_RTX";
constexpr const char* cure = "pip install tensorrt-rtx-cu13, whose library is tensorrt_rtx_libs/libtensorrt_rtx.so.1";
const std::vector<std::string> names{"libtensorrt_rtx.so.1"};
#else
constexpr const char* library_name = "TensorRT";
constexpr const char* variable = "ROPEVIT_TENSORRT";
constexpr const char* cure = "install libnvinfer or pip install tensorrt-cu13";
// Classes are called through their tables of functions, which a release keeps as the headers had them.
const std::vector<std::string> names{"libnvinfer.so." + std::to_string(NV_TENSORRT_MAJOR)};
#endif

class Log : public trt::ILogger {
 public:
  void log(Severity severity, const char* text) noexcept override {
    if (severity > Severity::kERROR) return;
    try {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (first_.empty()) first_ = text;
    } catch (...) {  // no memory for a reason
    }
  }

  // The first error since the last was asked for: those after it follow from it.
  std::string reason() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return first_line(std::exchange(first_, {}));
  }

 private:
  std::mutex mutex_;
  std::string first_;
};

DataType type_of(trt::DataType type, const std::string& what) {
  switch (type) {
    case trt::DataType::kFLOAT: return DataType::float32;
    case trt::DataType::kHALF: return DataType::float16;
    case trt::DataType::kBF16: return DataType::bfloat16;
    case trt::DataType::kUINT8: return DataType::uint8;
    default: throw BackendError(what + " has a number format that this library has not.");
  }
}

trt::Dims dims_of(const std::vector<std::int64_t>& shape) {
  trt::Dims dims{};
  dims.nbDims = static_cast<std::int32_t>(shape.size());
  std::copy(shape.begin(), shape.end(), dims.d);
  return dims;
}

std::string text_of(const trt::Dims& dims) {
  std::vector<std::string> extents;
  for (std::int32_t axis = 0; axis < dims.nbDims; ++axis) extents.push_back(std::to_string(dims.d[axis]));
  return "(" + joined(extents) + ")";
}

std::string text_of_version(const Library& library) {
  const int version = library.symbol<std::int32_t (*)()>("getInferLibVersion")();
  return std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." +
         std::to_string(version % 100);
}

bool within(const std::vector<std::int64_t>& shape, const trt::Dims& low, const trt::Dims& high) {
  if (static_cast<std::size_t>(low.nbDims) != shape.size()) return false;
  for (std::size_t axis = 0; axis < shape.size(); ++axis)
    if (shape[axis] < low.d[axis] || shape[axis] > high.d[axis]) return false;
  return true;
}

// An engine on a GPU.
class Engine {
 public:
  Engine(const std::filesystem::path& plan, const Artifact& artifact, const Options& options)
      : name_(artifact.path), library_(library_name, options.library, variable, names, cure),
        device_(options.device.empty() ? 0 : std::atoi(options.device.c_str())) {
    cuda_.check(cuda_.SetDevice(device_), "no GPU can be used");
    int major = 0, minor = 0;
    cuda_.check(cuda_.DeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device_), "no GPU can be used");
    cuda_.check(cuda_.DeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device_), "no GPU can be used");
    target_ = std::to_string(major) + std::to_string(minor);
    version_ = text_of_version(library_);
    const auto create = library_.symbol<void* (*)(void*, std::int32_t)>("createInferRuntime_INTERNAL");
    runtime_.reset(static_cast<trt::IRuntime*>(create(&log_, NV_TENSORRT_VERSION)));
    if (runtime_ == nullptr)
      throw BackendError(std::string(library_name) + " " + version_ + " can't be started: " + log_.reason());
    const MappedFile file(plan);
    engine_.reset(runtime_->deserializeCudaEngine(file.content().data(), file.content().size()));
    if (engine_ == nullptr)
      throw BackendError(std::string(library_name) + " " + version_ + " can't load " + name_ + " on SM " + target_ +
                         "; it was built with " + artifact.built_with +
                         (artifact.targets.empty() ? "" : " for SM " + joined(artifact.targets)) + ": " +
                         log_.reason());
    for (const auto* side : {&artifact.inputs, &artifact.outputs})
      for (const ArrayEntry& each : *side) check(each, side == &artifact.inputs);
#ifdef ROPEVIT_ENGINE_RTX
    open_kernel_cache(plan);
#endif
  }

  const Cuda& cuda() const { return cuda_; }
  const std::string& name() const { return name_; }
  std::string describe() const { return std::string(library_name) + " " + version_ + ", SM " + target_; }

  // In every thread that works with the GPU.
  void select() const { cuda_.check(cuda_.SetDevice(device_), "the GPU is lost"); }

  // A context whose shapes are set, by the first profile that holds them. Throws BundleError where it would answer in
  // another shape than `outputs`, whose memory it writes to.
  std::unique_ptr<trt::IExecutionContext> context(const std::vector<Buffer>& inputs, const std::vector<Buffer>& outputs,
                                                  cudaStream_t stream) {
    const std::lock_guard<std::mutex> lock(mutex_);
#ifdef ROPEVIT_ENGINE_RTX
    std::unique_ptr<trt::IExecutionContext> made(engine_->createExecutionContext(config_.get()));
#else
    std::unique_ptr<trt::IExecutionContext> made(engine_->createExecutionContext());
#endif
    if (made == nullptr)
      throw BackendError(std::string(library_name) + " has no room for " + name_ + ": " + log_.reason());
    const std::int32_t profile = profile_for(inputs);
    if (profile != 0 && !made->setOptimizationProfileAsync(profile, stream))
      throw BackendError(name_ + " has no profile " + std::to_string(profile) + ": " + log_.reason());
    for (const Buffer& each : inputs)
      if (!made->setInputShape(each.name.c_str(), dims_of(each.shape)))
        throw BackendError(name_ + " does not take " + each.name + " of shape " + text_of(dims_of(each.shape)) + ": " +
                           log_.reason());
    for (const Buffer& each : outputs)
      if (const trt::Dims given = made->getTensorShape(each.name.c_str()); !within(each.shape, given, given))
        throw BundleError(name_ + " gives " + each.name + " of shape " + text_of(given) + ", the manifest says " +
                          text_of(dims_of(each.shape)) + ".");
    cuda_.check(cuda_.StreamSynchronize(stream), name_);
    return made;
  }

  void set_address(trt::IExecutionContext& context, const std::string& tensor, void* data) {
    if (!context.setTensorAddress(tensor.c_str(), data))
      throw BackendError(std::string(library_name) + " takes no buffer for " + tensor + ": " + log_.reason());
  }

  void enqueue(trt::IExecutionContext& context, cudaStream_t stream) {
    if (!context.enqueueV3(stream))
      throw BackendError(std::string(library_name) + " failed to run " + name_ + ": " + log_.reason());
  }

  // TensorRT-RTX compiles kernels at their first run: write down what has been compiled. A folder that can't be written
  // costs the next process its time.
  void keep_kernels() {
#ifdef ROPEVIT_ENGINE_RTX
    const std::lock_guard<std::mutex> lock(mutex_);
    const std::unique_ptr<trt::IHostMemory> bytes(cache_->serialize());
    if (bytes == nullptr) return;
    std::error_code ignored;
    std::filesystem::create_directories(kernels_.parent_path(), ignored);
    const std::filesystem::path aside = kernels_.string() + "." + std::to_string(std::rand());
    std::ofstream stream(aside, std::ios::binary);
    stream.write(static_cast<const char*>(bytes->data()), static_cast<std::streamsize>(bytes->size()));
    stream.close();
    if (stream) std::filesystem::rename(aside, kernels_, ignored);
#endif
  }

 private:
  void check(const ArrayEntry& entry, bool input) const {
    const trt::TensorIOMode mode = engine_->getTensorIOMode(entry.name.c_str());
    if (mode != (input ? trt::TensorIOMode::kINPUT : trt::TensorIOMode::kOUTPUT))
      throw BackendError(name_ + " has no " + (input ? "input " : "output ") + entry.name +
                         ", which the manifest lists.");
    const DataType type = type_of(engine_->getTensorDataType(entry.name.c_str()), name_ + "'s " + entry.name);
    if (type != entry.type)
      throw BackendError(name_ + " has " + entry.name + " in " + name_of(type) + ", the manifest says " +
                         name_of(entry.type) + ".");
  }

  std::int32_t profile_for(const std::vector<Buffer>& inputs) const {
    const std::int32_t count = engine_->getNbOptimizationProfiles();
    if (count <= 1) return 0;  // and `setInputShape` refuses what it does not hold
    std::vector<std::string> ranges;
    for (std::int32_t profile = 0; profile < count; ++profile) {
      const auto shape = [&](const Buffer& each, trt::OptProfileSelector which) {
        return engine_->getProfileShape(each.name.c_str(), profile, which);
      };
      bool fits = true;
      for (const Buffer& each : inputs)
        fits = fits && within(each.shape, shape(each, trt::OptProfileSelector::kMIN),
                              shape(each, trt::OptProfileSelector::kMAX));
      if (fits) return profile;
      ranges.push_back(text_of(shape(inputs.front(), trt::OptProfileSelector::kMIN)) + " to " +
                       text_of(shape(inputs.front(), trt::OptProfileSelector::kMAX)));
    }
    throw BackendError(name_ + " has no profile for " + inputs.front().name + " " +
                       text_of(dims_of(inputs.front().shape)) + "; it takes " + joined(ranges, " or ") + ".");
  }

#ifdef ROPEVIT_ENGINE_RTX
  void open_kernel_cache(const std::filesystem::path& plan) {
    config_.reset(engine_->createRuntimeConfig());
    cache_.reset(config_->createRuntimeCache());
    const char* cache = std::getenv("XDG_CACHE_HOME");
    const char* home = std::getenv("HOME");
    const std::filesystem::path folder = cache != nullptr && *cache != '\0'
                                             ? std::filesystem::path(cache)
                                             : std::filesystem::path(home ? home : ".") / ".cache";
    kernels_ = folder / "ropevit-export" / (sha256_of(plan) + "-" + version_ + "-sm" + target_ + ".kernels");
    std::ifstream stream(kernels_, std::ios::binary);
    const std::vector<char> bytes{std::istreambuf_iterator<char>(stream), {}};
    if (!bytes.empty()) cache_->deserialize(bytes.data(), bytes.size());  // it refuses what is not for it
    config_->setRuntimeCache(*cache_);
    // By default kernels for a new shape are compiled beside the first runs, which are slower and then change.
    config_->setDynamicShapesKernelSpecializationStrategy(trt::DynamicShapesKernelSpecializationStrategy::kEAGER);
  }
#endif

  std::string name_, target_, version_;
  Library library_;
  const Cuda& cuda_ = Cuda::loaded();
  int device_;
  Log log_;
  std::mutex mutex_;
  std::unique_ptr<trt::IRuntime> runtime_;
  std::unique_ptr<trt::ICudaEngine> engine_;
#ifdef ROPEVIT_ENGINE_RTX
  std::unique_ptr<trt::IRuntimeConfig> config_;
  std::unique_ptr<trt::IRuntimeCache> cache_;
  std::filesystem::path kernels_;
#endif
};

// The host's buffers, copied to the GPU and back in every run; position inputs once.
class EngineContext : public Context {
 public:
  EngineContext(std::shared_ptr<Engine> engine, const std::vector<Buffer>& inputs, const std::vector<Buffer>& outputs)
      : engine_(std::move(engine)), stream_(engine_->cuda()), image_(inputs.front()), outputs_(outputs) {
    engine_->select();
    context_ = engine_->context(inputs, outputs, stream_);
    for (const Buffer& each : inputs) {
      const DeviceMemory& memory = bind(each);
      if (&each != &inputs.front()) copy(memory.data(), each.data, each.bytes, cudaMemcpyHostToDevice);
    }
    for (const Buffer& each : outputs_) bind(each);
  }

  void run() override {
    engine_->select();
    copy(memory_.front().data(), image_.data, image_.bytes, cudaMemcpyHostToDevice);
    engine_->enqueue(*context_, stream_);
    const std::size_t first = memory_.size() - outputs_.size();
    for (std::size_t at = 0; at < outputs_.size(); ++at)
      copy(outputs_[at].data, memory_[first + at].data(), outputs_[at].bytes, cudaMemcpyDeviceToHost);
    engine_->cuda().check(engine_->cuda().StreamSynchronize(stream_), engine_->name());
    if (std::exchange(first_, false)) engine_->keep_kernels();
  }

 private:
  const DeviceMemory& bind(const Buffer& buffer) {
    const DeviceMemory& memory = memory_.emplace_back(engine_->cuda(), buffer.bytes);
    engine_->set_address(*context_, buffer.name, memory.data());
    return memory;
  }

  void copy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) const {
    engine_->cuda().check(engine_->cuda().MemcpyAsync(to, from, bytes, kind, stream_), engine_->name());
  }

  std::shared_ptr<Engine> engine_;
  Stream stream_;
  Buffer image_;
  std::vector<Buffer> outputs_;
  std::vector<DeviceMemory> memory_;
  std::unique_ptr<trt::IExecutionContext> context_;
  bool first_ = true;
};

class EngineDeviceContext : public DeviceContext {
 public:
  EngineDeviceContext(std::shared_ptr<Engine> engine, const std::vector<Buffer>& inputs,
                      const std::vector<Buffer>& outputs, void* stream)
      : engine_(std::move(engine)), stream_(static_cast<cudaStream_t>(stream)), image_(inputs.front().name) {
    engine_->select();
    context_ = engine_->context(inputs, outputs, stream_);
    for (std::size_t at = 1; at < inputs.size(); ++at) {
      const Buffer& each = inputs[at];
      const DeviceMemory& memory = memory_.emplace_back(engine_->cuda(), each.bytes);
      engine_->cuda().check(
          engine_->cuda().MemcpyAsync(memory.data(), each.data, each.bytes, cudaMemcpyHostToDevice, stream_),
          each.name);
      engine_->set_address(*context_, each.name, memory.data());
    }
    engine_->cuda().check(engine_->cuda().StreamSynchronize(stream_), engine_->name());
    for (const Buffer& each : outputs) outputs_.push_back(each.name);
  }

  void run(const void* images, const std::vector<void*>& outputs) override {
    engine_->select();
    engine_->set_address(*context_, image_, const_cast<void*>(images));
    for (std::size_t at = 0; at < outputs_.size(); ++at) engine_->set_address(*context_, outputs_[at], outputs[at]);
    engine_->enqueue(*context_, stream_);
  }

 private:
  std::shared_ptr<Engine> engine_;
  cudaStream_t stream_;
  std::string image_;
  std::vector<std::string> outputs_;
  std::vector<DeviceMemory> memory_;
  std::unique_ptr<trt::IExecutionContext> context_;
};

class EngineRunner : public Runner {
 public:
  EngineRunner(const std::filesystem::path& plan, const Artifact& artifact, const Options& options)
      : engine_(std::make_shared<Engine>(plan, artifact, options)), precision_(artifact.precision) {}

  std::string describe() const override { return engine_->describe() + ", " + precision_; }

  std::unique_ptr<Context> bind(const std::vector<Buffer>& inputs, const std::vector<Buffer>& outputs) override {
    return std::make_unique<EngineContext>(engine_, inputs, outputs);
  }

  std::unique_ptr<DeviceContext> bind_on_device(const std::vector<Buffer>& inputs, const std::vector<Buffer>& outputs,
                                                void* stream) override {
    return std::make_unique<EngineDeviceContext>(engine_, inputs, outputs, stream);
  }

 private:
  std::shared_ptr<Engine> engine_;
  std::string precision_;
};

}  // namespace

#ifdef ROPEVIT_ENGINE_RTX
std::string version_of_tensorrt_rtx() {
#else
std::string version_of_tensorrt() {
#endif
  return text_of_version(Library(library_name, {}, variable, names, cure));
}

#ifdef ROPEVIT_ENGINE_RTX
std::unique_ptr<Runner> load_tensorrt_rtx(const std::filesystem::path& plan, const Artifact& artifact,
                                          const Options& options) {
#else
std::unique_ptr<Runner> load_tensorrt(const std::filesystem::path& plan, const Artifact& artifact,
                                      const Options& options) {
#endif
  return std::make_unique<EngineRunner>(plan, artifact, options);
}

}  // namespace ropevit
