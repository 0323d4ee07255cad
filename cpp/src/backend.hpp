// What a loaded bundle asks of a runtime.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "manifest.hpp"
#include "ropevit/ropevit.hpp"

namespace ropevit {

// An array whose memory is somebody else's and stays where it is.
struct Buffer {
  std::string name;
  DataType type;
  std::vector<std::int64_t> shape;
  void* data;
  std::size_t bytes;
};

// One caller's inputs and outputs, bound once; used by one thread at a time.
class Context {
 public:
  virtual ~Context() = default;
  // From the input buffers to the output buffers. Throws BackendError.
  virtual void run() = 0;
};

// The same on memory of a GPU, which may be another in every run, in a stream.
class DeviceContext {
 public:
  virtual ~DeviceContext() = default;
  virtual void run(const void* images, const std::vector<void*>& outputs) = 0;
};

// The runtime is there and does not take the graph.
class GraphError : public BackendError {
  using BackendError::BackendError;
};

// A loaded artifact. Contexts are made and run by several threads at once.
class Runner {
 public:
  virtual ~Runner() = default;
  // The runtime, its version, where it runs and the precision that it computes in.
  virtual std::string describe() const = 0;
  virtual std::unique_ptr<Context> bind(const std::vector<Buffer>& inputs, const std::vector<Buffer>& outputs) = 0;
  // The first of `inputs` are the images, whose data is null: each run brings its own. Those behind it are copied.
  virtual std::unique_ptr<DeviceContext> bind_on_device(const std::vector<Buffer>& inputs,
                                                        const std::vector<Buffer>& outputs, void* stream);
};

// Load an artifact on the backend that the options name. Throws BackendError, and BundleError where one of its files is
// none.
std::unique_ptr<Runner> load_runner(const std::filesystem::path& bundle, const Artifact& artifact,
                                    const Options& options);

// The backends that run engines, which are artifacts of their own kind, and not ONNX graphs.
bool runs_engines(const std::string& backend);

// Their names.
const std::vector<std::string>& backends();

// The release of the library that a backend is, where it can be loaded; "" where not.
std::string version_of(const std::string& backend);

// One file each; those that were not built are exceptions that say how to build them.
std::string version_of_onnxruntime();
std::string version_of_openvino();
std::string version_of_tensorrt();
std::string version_of_tensorrt_rtx();
std::unique_ptr<Runner> load_onnxruntime(const std::filesystem::path& model, const Artifact& artifact,
                                         const Options& options);
std::unique_ptr<Runner> load_openvino(const std::filesystem::path& model, const Artifact& artifact,
                                      const Options& options);
std::unique_ptr<Runner> load_tensorrt(const std::filesystem::path& plan, const Artifact& artifact,
                                      const Options& options);
std::unique_ptr<Runner> load_tensorrt_rtx(const std::filesystem::path& plan, const Artifact& artifact,
                                          const Options& options);

}  // namespace ropevit
