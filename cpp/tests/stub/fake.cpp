// A GPU of SM 89 and a TensorRT, in the host's memory: what this library asks of them is carried out and checked. A
// plan is text: "sm 89", then a line a tensor: "input NAME TYPE" with "MIN MAX" of every axis a profile behind it, or
// "output NAME TYPE COUNT". An output is (batch, COUNT); its first row's element i is the sum of all inputs, times
// i + 1.
#include <NvInferRuntime.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

namespace {

using namespace nvinfer1;

constexpr const char* target = "89";
ILogger* logger = nullptr;

void say(const char* text) { logger->log(ILogger::Severity::kERROR, text); }

struct Tensor {
  bool input;
  DataType type;
  std::vector<std::pair<Dims, Dims>> profiles;
  std::size_t count;  // of an output
};

struct Plan {
  std::map<std::string, Tensor> tensors;
};

struct Memory : IHostMemory {
  std::string bytes = "kernels";
  void* data() const noexcept override { return const_cast<char*>(bytes.data()); }
  std::size_t size() const noexcept override { return bytes.size(); }
};

struct Cache : IRuntimeCache {
  IHostMemory* serialize() const noexcept override { return new Memory; }
  bool deserialize(const void*, std::size_t size) noexcept override { return size == Memory().bytes.size(); }
};

struct Config : IRuntimeConfig {
  IRuntimeCache* createRuntimeCache() const noexcept override { return new Cache; }
  bool setRuntimeCache(const IRuntimeCache&) noexcept override { return true; }
  bool setDynamicShapesKernelSpecializationStrategy(DynamicShapesKernelSpecializationStrategy) noexcept override {
    return true;
  }
};

float sum_of(const void* data, std::size_t count, DataType type) {
  float sum = 0;
  for (std::size_t at = 0; at < count; ++at)
    sum += type == DataType::kUINT8 ? static_cast<float>(static_cast<const unsigned char*>(data)[at])
                                    : static_cast<const float*>(data)[at];
  return sum;
}

class Execution : public IExecutionContext {
 public:
  explicit Execution(const Plan& plan) : plan_(plan) {}

  bool setOptimizationProfileAsync(std::int32_t profile, cudaStream_t stream) noexcept override {
    profile_ = static_cast<std::size_t>(profile);
    return stream != nullptr;
  }

  bool setInputShape(const char* name, const Dims& dims) noexcept override {
    const auto& [low, high] = plan_.tensors.at(name).profiles.at(profile_);
    for (std::int32_t axis = 0; axis < dims.nbDims; ++axis)
      if (dims.nbDims != low.nbDims || dims.d[axis] < low.d[axis] || dims.d[axis] > high.d[axis]) {
        say("the shape is not within the profile");
        return false;
      }
    std::size_t count = 1;
    for (std::int32_t axis = 0; axis < dims.nbDims; ++axis) count *= static_cast<std::size_t>(dims.d[axis]);
    counts_[name] = count;
    if (std::strcmp(name, "image") == 0) batch_ = dims.d[0];
    return true;
  }

  Dims getTensorShape(const char* name) const noexcept override {
    const Tensor& tensor = plan_.tensors.at(name);
    return Dims{2, {batch_, static_cast<std::int64_t>(tensor.count)}};
  }

  bool setTensorAddress(const char* name, void* data) noexcept override {
    const auto found = plan_.tensors.find(name);
    if (found == plan_.tensors.end()) return false;
    addresses_[found->first] = data;  // of a known name it allocates nothing
    return true;
  }

  bool enqueueV3(cudaStream_t stream) noexcept override {
    if (stream == nullptr || addresses_.size() != plan_.tensors.size()) {
      say("an input or output has no address");
      return false;
    }
    float sum = 0;
    for (const auto& [name, tensor] : plan_.tensors)
      if (tensor.input) sum += sum_of(addresses_.at(name), counts_.at(name), tensor.type);
    for (const auto& [name, tensor] : plan_.tensors)
      for (std::size_t at = 0; !tensor.input && at < tensor.count; ++at)
        static_cast<float*>(addresses_.at(name))[at] = sum * static_cast<float>(at + 1);
    return true;
  }

 private:
  const Plan& plan_;
  std::size_t profile_ = 0;
  std::int64_t batch_ = 0;
  std::map<std::string, std::size_t> counts_;
  std::map<std::string, void*> addresses_;
};

class Engine : public ICudaEngine {
 public:
  explicit Engine(Plan plan) : plan_(std::move(plan)) {}

  TensorIOMode getTensorIOMode(const char* name) const noexcept override {
    const auto found = plan_.tensors.find(name);
    if (found == plan_.tensors.end()) return TensorIOMode::kNONE;
    return found->second.input ? TensorIOMode::kINPUT : TensorIOMode::kOUTPUT;
  }
  DataType getTensorDataType(const char* name) const noexcept override { return plan_.tensors.at(name).type; }
  std::int32_t getNbOptimizationProfiles() const noexcept override {
    return static_cast<std::int32_t>(plan_.tensors.at("image").profiles.size());
  }
  Dims getProfileShape(const char* name, std::int32_t profile, OptProfileSelector which) const noexcept override {
    const auto& [low, high] = plan_.tensors.at(name).profiles.at(static_cast<std::size_t>(profile));
    return which == OptProfileSelector::kMIN ? low : high;
  }
  IExecutionContext* createExecutionContext() noexcept override { return new Execution(plan_); }
  IExecutionContext* createExecutionContext(IRuntimeConfig*) noexcept override { return new Execution(plan_); }
  IRuntimeConfig* createRuntimeConfig() noexcept override { return new Config; }

 private:
  Plan plan_;
};

DataType type_of(const std::string& name) { return name == "uint8" ? DataType::kUINT8 : DataType::kFLOAT; }

class Runtime : public IRuntime {
 public:
  ICudaEngine* deserializeCudaEngine(const void* data, std::size_t size) noexcept override {
    std::istringstream text(std::string(static_cast<const char*>(data), size));
    std::string line, word, sm;
    std::getline(text, line);
    std::istringstream(line) >> word >> sm;
    if (word != "sm") {
      say("the plan's header is wrong: serialization assertion failed");
      return nullptr;
    }
    if (sm != target) {
      say("the engine was built for another compute capability");
      return nullptr;
    }
    Plan plan;
    while (std::getline(text, line)) {
      std::istringstream words(line);
      std::string kind, name, type, axes;
      words >> kind >> name >> type;
      Tensor tensor{kind == "input", type_of(type), {}, 0};
      if (!tensor.input) words >> tensor.count;
      while (tensor.input && std::getline(words >> std::ws, axes, ';')) {  // "1 3 3 3 32 32;"
        std::istringstream numbers(axes);
        std::pair<Dims, Dims> range{};
        for (std::int64_t low = 0, high = 0; numbers >> low >> high;) {
          range.first.d[range.first.nbDims++] = low;
          range.second.d[range.second.nbDims++] = high;
        }
        tensor.profiles.push_back(range);
      }
      plan.tensors.emplace(name, tensor);
    }
    return new Engine(std::move(plan));
  }
};

}  // namespace

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED void* createInferRuntime_INTERNAL(void* given, std::int32_t version) {
  logger = static_cast<ILogger*>(given);
  return version == NV_TENSORRT_VERSION ? new Runtime : nullptr;
}
EXPORTED std::int32_t getInferLibVersion() { return NV_TENSORRT_VERSION; }

EXPORTED cudaError_t cudaSetDevice(int device) {
  return std::getenv("FAKE_NO_GPU") != nullptr || device != 0 ? cudaErrorNoDevice : cudaSuccess;
}
EXPORTED cudaError_t cudaDeviceGetAttribute(int* value, enum cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrComputeCapabilityMajor ? 8 : 9;
  return cudaSuccess;
}
EXPORTED const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorNoDevice ? "no CUDA-capable device is detected" : "out of memory";
}
EXPORTED cudaError_t cudaMalloc(void** data, std::size_t size) {
  *data = std::malloc(size);
  return *data == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
}
EXPORTED cudaError_t cudaFree(void* data) {
  std::free(data);
  return cudaSuccess;
}
EXPORTED cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned int) {
  *stream = reinterpret_cast<cudaStream_t>(std::malloc(1));
  return cudaSuccess;
}
EXPORTED cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  std::free(stream);
  return cudaSuccess;
}
EXPORTED cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
EXPORTED cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t count, enum cudaMemcpyKind, cudaStream_t) {
  std::memcpy(to, from, count);
  return cudaSuccess;
}
