// The part of the CUDA runtime that engines need, loaded when the first one is.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <string>
#include <utility>

#include "library.hpp"
#include "ropevit/ropevit.hpp"

namespace ropevit {

// The functions of the CUDA runtime that are used here.
class Cuda {
 public:
  static const Cuda& loaded() {
    static const Cuda* cuda = new Cuda;  // never taken apart: other threads may be in it at exit
    return *cuda;
  }

 private:
  Library library_{"the CUDA runtime",
                   {},
                   "ROPEVIT_CUDART",
                   {"libcudart.so.13", "libcudart.so.12"},
                   "pip install nvidia-cuda-runtime"};

 public:
#define ROPEVIT_CUDA(name) decltype(&::cuda##name) name = library_.symbol<decltype(&::cuda##name)>("cuda" #name)
  ROPEVIT_CUDA(SetDevice);
  ROPEVIT_CUDA(DeviceGetAttribute);
  ROPEVIT_CUDA(GetErrorString);
  ROPEVIT_CUDA(StreamCreateWithFlags);
  ROPEVIT_CUDA(StreamDestroy);
  ROPEVIT_CUDA(StreamSynchronize);
  ROPEVIT_CUDA(MemcpyAsync);
  ROPEVIT_CUDA(Free);
#undef ROPEVIT_CUDA
  // Not by its own name, which C++ overloads.
  cudaError_t (*Malloc)(void**, std::size_t) = library_.symbol<cudaError_t (*)(void**, std::size_t)>("cudaMalloc");

  // Throws BackendError that begins with `what`.
  void check(cudaError_t code, const std::string& what) const {
    if (code == cudaSuccess) return;
    throw BackendError(what + ": " + GetErrorString(code) + " (CUDA error " + std::to_string(static_cast<int>(code)) +
                       ")");
  }
};

class Stream {
 public:
  explicit Stream(const Cuda& cuda) : cuda_(cuda) {
    cuda_.check(cuda_.StreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "no CUDA stream can be had");
  }
  ~Stream() { cuda_.StreamDestroy(stream_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  operator cudaStream_t() const { return stream_; }

 private:
  const Cuda& cuda_;
  cudaStream_t stream_ = nullptr;
};

class DeviceMemory {
 public:
  DeviceMemory(const Cuda& cuda, std::size_t bytes) : cuda_(&cuda) {
    cuda.check(cuda.Malloc(&data_, bytes), "no room on the GPU for " + std::to_string(bytes) + " bytes");
  }
  ~DeviceMemory() {
    if (data_ != nullptr) cuda_->Free(data_);
  }
  DeviceMemory(DeviceMemory&& other) noexcept : cuda_(other.cuda_), data_(std::exchange(other.data_, nullptr)) {}
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  DeviceMemory& operator=(DeviceMemory&&) = delete;
  void* data() const { return data_; }

 private:
  const Cuda* cuda_;
  void* data_ = nullptr;
};

}  // namespace ropevit
