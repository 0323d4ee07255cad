// Run a bundle that ropevit-export wrote.
//
//   ropevit::Model model("engines/rope_mixed_deit_base-384-fp32");
//   ropevit::Answers answers;
//   model.run({pixels, height, width}, answers);              // pixels as a camera or decoder gives them
//   const float* logits = answers[0].as<float>();
//
// The manifest says what is done to an image, which file serves a size, and what comes out. Errors are exceptions whose
// text says what was given, what was needed and what to do.
#ifndef ROPEVIT_ROPEVIT_HPP
#define ROPEVIT_ROPEVIT_HPP

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "ropevit/api.h"

namespace ropevit {

// Base of everything that this library throws on purpose.
class ROPEVIT_API Error : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The folder is no bundle, or a file is not what its manifest says.
class ROPEVIT_API BundleError : public Error {
  using Error::Error;
};

// A runtime is missing, can't serve the bundle on this machine, or failed to run.
class ROPEVIT_API BackendError : public Error {
  using Error::Error;
};

// The bundle can't take these images.
class ROPEVIT_API InputError : public Error {
  using Error::Error;
};

enum class DataType { uint8, float16, bfloat16, float32 };

// Bytes of one element.
ROPEVIT_API std::size_t size_of(DataType type) noexcept;
// Its name in manifests, such as "float32".
ROPEVIT_API const char* name_of(DataType type) noexcept;

struct Size {
  int height = 0;
  int width = 0;
};

inline bool operator==(Size a, Size b) { return a.height == b.height && a.width == b.width; }
inline bool operator!=(Size a, Size b) { return !(a == b); }

enum class ChannelOrder { rgb, bgr };

// A picture of any size: 8 bits a channel, three channels a pixel, row by row.
struct Pixels {
  const std::uint8_t* data = nullptr;
  int height = 0;
  int width = 0;
  std::ptrdiff_t pitch = 0;  // bytes from one row to the next; 0: rows follow one another
  ChannelOrder order = ChannelOrder::rgb;
};

// Images as the graph takes them, row-major: (count, 3, height, width), or of a bundle made with --pixels
// (count, height, width, 3) uint8.
struct Batch {
  const void* data = nullptr;
  DataType type = DataType::float32;
  std::size_t count = 1;
  Size size;
};

// What a graph takes or gives. Extents that differ from run to run are -1.
struct TensorInfo {
  std::string name;
  DataType type = DataType::float32;
  std::vector<std::int64_t> shape;
};

// One answer; its memory belongs to the Answers that it is taken from.
struct Tensor {
  std::string name;
  DataType type = DataType::float32;
  std::vector<std::int64_t> shape;
  const void* data = nullptr;
  std::size_t bytes = 0;

  // `T` must be of the tensor's size an element: float, or std::uint16_t for the bits of 16-bit formats.
  template <class T>
  const T* as() const {
    if (sizeof(T) != size_of(type)) throw InputError(name + " is " + name_of(type) + ", which has another size.");
    return static_cast<const T*>(data);
  }
};

// The outputs of a run, in the manifest's order. Given to the next run again, it allocates nothing for the same shapes.
class ROPEVIT_API Answers {
 public:
  Answers();
  ~Answers();
  Answers(Answers&&) noexcept;
  Answers& operator=(Answers&&) noexcept;
  Answers(const Answers&) = delete;
  Answers& operator=(const Answers&) = delete;

  std::size_t size() const noexcept;
  const Tensor& operator[](std::size_t index) const;      // throws InputError
  const Tensor& operator[](std::string_view name) const;  // throws InputError

 private:
  friend class Model;
  struct Memory;
  std::unique_ptr<Memory> memory_;
};

struct Options {
  // onnxruntime (the CPU), onnxruntime-cuda, onnxruntime-tensorrt, openvino, tensorrt or tensorrt-rtx. None falls back
  // to another. "auto", which chooses all of these options: what `ropevit-export tune` found fastest on this machine,
  // else OpenVINO where it can be loaded, else ONNX Runtime; `Model::describe` says which and why.
  std::string backend = "onnxruntime";
  // Of an ONNX graph that is there in several: portable, onnxruntime, openvino or openvino-avx2. Empty: the one that
  // the backend is fastest with on this machine.
  std::string form;
  // The runtime's shared library. Empty: that of the environment variable ROPEVIT_ONNXRUNTIME, ROPEVIT_OPENVINO,
  // ROPEVIT_TENSORRT or ROPEVIT_TENSORRT_RTX, else what the system's loader finds.
  std::filesystem::path library;
  // Threads that one run is spread over on a CPU; 0: the runtime's own choice.
  int threads = 0;
  // Answers that are computed side by side, each by a part of the threads, where as many threads call.
  int streams = 1;
  // Which device of OpenVINO, or the number of the GPU. Empty: CPU, or the first.
  std::string device;
  // openvino: what floating-point parts are computed in, f32 or bf16, which the device must have. Empty: what the
  // graph's precision says.
  std::string compute;
  // onnxruntime-cuda: the cudaStream_t that all work is put in; needed for `Model::on_device`.
  void* stream = nullptr;
};

class Model;

// Runs on memory of a GPU, in a stream, without waiting: one caller, one size and batch. For further callers make
// further ones; they share the engine.
class ROPEVIT_API DeviceSession {
 public:
  ~DeviceSession();
  DeviceSession(DeviceSession&&) noexcept;
  DeviceSession& operator=(DeviceSession&&) noexcept;
  DeviceSession(const DeviceSession&) = delete;
  DeviceSession& operator=(const DeviceSession&) = delete;

  // Shapes and formats of what `run` writes.
  const std::vector<TensorInfo>& outputs() const noexcept;

  // Put one run in the stream. `images` and each of `outputs` are device memory, which must live until the stream has
  // come past the run. Throws BackendError.
  void run(const void* images, const std::vector<void*>& outputs);

 private:
  friend class Model;
  struct State;
  explicit DeviceSession(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// A loaded bundle. All const functions may be called from several threads at once. Files are believed: `verify` hashes
// them.
class ROPEVIT_API Model {
 public:
  // Reads the manifest and loads what serves the first size; what serves further sizes is loaded when one is run.
  // Throws BundleError, BackendError.
  explicit Model(const std::filesystem::path& bundle, const Options& options = {});
  ~Model();
  Model(Model&&) noexcept;
  Model& operator=(Model&&) noexcept;
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  const std::string& name() const noexcept;
  bool trained() const noexcept;  // false: seeded random weights
  int classes() const noexcept;   // of the head; 0 without one
  // The sizes that the bundle was made for, in the order in which they were named; `takes` knows the others.
  const std::vector<Size>& sizes() const noexcept;
  bool takes(Size size) const noexcept;
  // Pixels a patch's side and tokens before the patches, by which `tokens` is taken apart. -1: a bundle of an early
  // release, which does not say.
  int patch() const noexcept;
  int prefix() const noexcept;

  const TensorInfo& input() const noexcept;
  const std::vector<TensorInfo>& outputs() const noexcept;
  // How many images one run may have at a size.
  std::size_t smallest_batch(Size size) const;
  std::size_t largest_batch(Size size) const;
  // The artifact that serves a size, and what it runs on. Loads it.
  std::string describe(Size size) const;

  // A picture resized, cropped and normalised as the model was trained, in the graph's format and layout: what `run`
  // takes as a batch of one. `out` has room for `input_bytes(size)`. Throws InputError.
  void prepare(const Pixels& picture, Size size, void* out) const;
  std::size_t input_bytes(Size size) const noexcept;
  // The same without normalising: (height, width, 3) RGB bytes.
  void crop(const Pixels& picture, Size size, std::uint8_t* out) const;

  // Throws InputError for a format, size or number of images that the bundle has no graph for; BackendError.
  void run(const Batch& images, Answers& answers) const;
  // The same on pictures, which may have sizes of their own, prepared for `size`.
  void run(const Pixels* pictures, std::size_t count, Size size, Answers& answers) const;
  // One picture, at the first of `sizes()`.
  void run(const Pixels& picture, Answers& answers) const;

  // For tensorrt, tensorrt-rtx and onnxruntime-cuda. `stream` is a cudaStream_t; of onnxruntime-cuda it must be the one
  // of the options. Throws InputError, BackendError.
  DeviceSession on_device(Size size, std::size_t count, void* stream) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// One output of one artifact at one size, compared with PyTorch's answers in the bundle's golden file.
struct Comparison {
  std::string artifact;
  std::string output;
  std::string runtime;
  Size size;
  std::size_t batch = 0;
  double max_abs = 0;
  double relative = 0;  // max_abs over the reference's root mean square
  double cosine = 0;    // the smallest of any image
  std::size_t not_finite = 0;
  double relative_limit = 0;
  double cosine_limit = 0;

  bool passed() const { return not_finite == 0 && relative <= relative_limit && cosine >= cosine_limit; }
};

struct NotRun {
  std::string artifact;
  std::string reason;
};

struct Verification {
  std::vector<Comparison> comparisons;
  std::vector<NotRun> not_run;
};

// Hash every file of a bundle, then run it on its golden inputs: every artifact that can run here, or with `backend`
// what is for that backend, whose being unable to run is then an exception, as is a graph that a runtime refuses. The
// limits are the manifest's own.
// Throws BundleError, BackendError; out of tolerance is no exception.
ROPEVIT_API Verification verify(const std::filesystem::path& bundle, const std::string& backend = "",
                                Options options = {});

}  // namespace ropevit

#endif
