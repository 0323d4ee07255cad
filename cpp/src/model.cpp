#include <algorithm>
#include <cstring>

#include "artifact.hpp"
#include "backend.hpp"
#include "graph.hpp"
#include "manifest.hpp"
#include "memory.hpp"
#include "pool.hpp"
#include "preprocess.hpp"
#include "ropevit/ropevit.hpp"
#include "text.hpp"
#include "tuned.hpp"

namespace ropevit {
namespace {

TensorInfo info_of(const ArrayEntry& entry) {
  TensorInfo info{entry.name, entry.type, {}};
  for (const Extent& extent : entry.shape)
    info.shape.push_back(std::holds_alternative<std::int64_t>(extent) ? std::get<std::int64_t>(extent) : -1);
  return info;
}

// Whether all but the backend is left as it comes.
bool chooses_nothing(const Options& options) {
  return options.form.empty() && options.library.empty() && options.threads == 0 && options.streams == 1 &&
         options.device.empty() && options.compute.empty() && options.stream == nullptr;
}

}  // namespace

// ropevit.hpp

std::size_t size_of(DataType type) noexcept { return type == DataType::float32 ? 4 : type == DataType::uint8 ? 1 : 2; }

const char* name_of(DataType type) noexcept {
  switch (type) {
    case DataType::uint8: return "uint8";
    case DataType::float16: return "float16";
    case DataType::bfloat16: return "bfloat16";
    case DataType::float32: return "float32";
  }
  return "an unknown format";
}

struct Answers::Memory {
  std::vector<Tensor> tensors;
  std::vector<Block> blocks;

  void take(const std::vector<Buffer>& outputs) {
    tensors.resize(outputs.size());
    blocks.resize(outputs.size());
    for (std::size_t at = 0; at < outputs.size(); ++at) {
      const Buffer& from = outputs[at];
      Tensor& to = tensors[at];
      blocks[at].resize(from.bytes);
      std::memcpy(blocks[at].data(), from.data, from.bytes);
      if (to.name != from.name) to.name = from.name;
      if (to.shape != from.shape) to.shape = from.shape;
      to.type = from.type;
      to.data = blocks[at].data();
      to.bytes = from.bytes;
    }
  }
};

Answers::Answers() : memory_(std::make_unique<Memory>()) {}
Answers::~Answers() = default;
Answers::Answers(Answers&&) noexcept = default;
Answers& Answers::operator=(Answers&&) noexcept = default;

std::size_t Answers::size() const noexcept { return memory_ ? memory_->tensors.size() : 0; }

const Tensor& Answers::operator[](std::size_t index) const {
  if (index >= size())
    throw InputError("answer " + std::to_string(index) + " was asked for, there are " + std::to_string(size()) + ".");
  return memory_->tensors[index];
}

const Tensor& Answers::operator[](std::string_view name) const {
  std::vector<std::string> names;
  for (std::size_t at = 0; at < size(); ++at) {
    if (memory_->tensors[at].name == name) return memory_->tensors[at];
    names.push_back(memory_->tensors[at].name);
  }
  throw InputError("the answer " + in_quotes(std::string(name)) + " was asked for, there are " + joined(names) + ".");
}

struct DeviceSession::State {
  std::vector<TensorInfo> outputs;
  std::shared_ptr<const Positions> positions;
  std::unique_ptr<DeviceContext> context;
};

DeviceSession::DeviceSession(std::unique_ptr<State> state) : state_(std::move(state)) {}
DeviceSession::~DeviceSession() = default;
DeviceSession::DeviceSession(DeviceSession&&) noexcept = default;
DeviceSession& DeviceSession::operator=(DeviceSession&&) noexcept = default;

const std::vector<TensorInfo>& DeviceSession::outputs() const noexcept { return state_->outputs; }

void DeviceSession::run(const void* images, const std::vector<void*>& outputs) {
  if (images == nullptr || outputs.size() != state_->outputs.size() ||
      std::count(outputs.begin(), outputs.end(), nullptr) != 0)
    throw InputError(std::to_string(outputs.size()) +
                     " places for answers were given, needed device memory for the "
                     "images and for " +
                     std::to_string(state_->outputs.size()) + " answers.");
  state_->context->run(images, outputs);
}

struct Model::State {
  std::filesystem::path bundle;
  Options options;
  std::string reason;  // of the backend "auto"
  Manifest manifest;
  Normaliser normaliser;
  std::vector<std::unique_ptr<Graph>> graphs;
  std::vector<Size> sizes;
  TensorInfo input;
  std::vector<TensorInfo> outputs;
  Pool<Preparation> preparations;

  State(const std::filesystem::path& bundle_, const Options& options_)
      : bundle(bundle_), options(options_), manifest(read_manifest(bundle)), normaliser(manifest.preprocess) {
    if (options.backend == "auto") {
      if (!chooses_nothing(options))
        throw BackendError("the backend \"auto\" chooses form and options itself: name a backend to choose them.");
      Choice choice = choose(bundle);
      options = std::move(choice.options);
      reason = ", " + choice.reason;
    }
    for (const Artifact* each : artifacts_of(manifest, options.backend, bundle, options.form, options.device)) {
      graphs.push_back(std::make_unique<Graph>(bundle, *each, options));
      for (const Size size : each->resolutions)
        if (std::find(sizes.begin(), sizes.end(), size) == sizes.end()) sizes.push_back(size);
    }
    if (sizes.empty()) throw BundleError(bundle.string() + " names no size for " + options.backend + ".");
    input = info_of(graphs.front()->artifact().inputs.front());
    if (input.type != manifest.preprocess.type)
      throw BundleError(bundle.string() + " prepares " + name_of(manifest.preprocess.type) +
                        " images for a graph that takes " + name_of(input.type) + ".");
    for (const ArrayEntry& each : graphs.front()->artifact().outputs) outputs.push_back(info_of(each));
    graph(sizes.front()).runner();
  }

  Graph& graph(Size size) const {
    for (const auto& each : graphs)
      if (each->artifact().takes(size)) return *each;
    throw InputError("no graph for " + text_of(size) + ": the bundle serves " + served() + ".");
  }

  // The graph for a batch of images. Throws InputError.
  Graph& graph(Size size, std::size_t count) const {
    Graph& found = graph(size);
    const BatchRange& batch = found.artifact().batch;
    if (count < batch.min || count > batch.max) {
      const std::string needed = batch.min == batch.max
                                     ? std::to_string(batch.min)
                                     : std::to_string(batch.min) + " to " + std::to_string(batch.max);
      throw InputError("a batch of " + std::to_string(count) + " was given, " + found.artifact().path + " takes " +
                       needed + ".");
    }
    return found;
  }

  std::string served() const {
    for (const auto& each : graphs)
      if (each->artifact().kind == "onnx" && each->artifact().dynamic)
        return "multiples of " + std::to_string(each->artifact().dynamic->multiple) + " up to " +
               text_of(each->artifact().dynamic->max);
    std::vector<std::string> texts;
    for (const Size size : sizes) texts.push_back(text_of(size));
    return joined(texts);
  }

  std::size_t image_bytes(Size size) const {
    return static_cast<std::size_t>(size.height) * static_cast<std::size_t>(size.width) * 3 * size_of(input.type);
  }

  Pool<Preparation>::Lease preparation() {
    return preparations.take([](const Preparation&) { return true; }, [] { return std::make_unique<Preparation>(); });
  }

  void check_size(Size size) const {
    if (size.height < 1 || size.width < 1 || std::int64_t{size.height} * size.width > 1 << 28)
      throw InputError("pictures can't be prepared for " + text_of(size) + ": the bundle serves " + served() + ".");
  }
};

Model::Model(const std::filesystem::path& bundle, const Options& options)
    : state_(std::make_unique<State>(bundle, options)) {}
Model::~Model() = default;
Model::Model(Model&&) noexcept = default;
Model& Model::operator=(Model&&) noexcept = default;

const std::string& Model::name() const noexcept { return state_->manifest.model; }
bool Model::trained() const noexcept { return state_->manifest.trained; }
int Model::classes() const noexcept { return state_->manifest.classes; }
const std::vector<Size>& Model::sizes() const noexcept { return state_->sizes; }
int Model::patch() const noexcept { return state_->manifest.patch; }
int Model::prefix() const noexcept { return state_->manifest.prefix; }
const TensorInfo& Model::input() const noexcept { return state_->input; }
const std::vector<TensorInfo>& Model::outputs() const noexcept { return state_->outputs; }

bool Model::takes(Size size) const noexcept {
  return std::any_of(state_->graphs.begin(), state_->graphs.end(),
                     [&](const auto& each) { return each->artifact().takes(size); });
}

std::size_t Model::smallest_batch(Size size) const { return state_->graph(size).artifact().batch.min; }
std::size_t Model::largest_batch(Size size) const { return state_->graph(size).artifact().batch.max; }

std::string Model::describe(Size size) const {
  Graph& graph = state_->graph(size);
  return graph.runner().describe() + ", " + graph.artifact().path + state_->reason;
}

std::size_t Model::input_bytes(Size size) const noexcept { return state_->image_bytes(size); }

void Model::prepare(const Pixels& picture, Size size, void* out) const {
  state_->check_size(size);
  state_->preparation()->prepare(picture, state_->manifest.preprocess, state_->normaliser, size, out);
}

void Model::crop(const Pixels& picture, Size size, std::uint8_t* out) const {
  state_->check_size(size);
  state_->preparation()->crop(picture, state_->manifest.preprocess, size, out);
}

void Model::run(const Batch& images, Answers& answers) const {
  if (images.data == nullptr || images.type != state_->input.type)
    throw InputError(std::string(images.data == nullptr ? "no" : name_of(images.type)) + " images were given, needed " +
                     name_of(state_->input.type) +
                     (state_->manifest.preprocess.nhwc ? " (B, H, W, 3)." : " (B, 3, H, W)."));
  const auto slot = state_->graph(images.size, images.count).slot(images.size, images.count);
  std::memcpy(slot->images.data(), images.data, state_->image_bytes(images.size) * images.count);
  slot->context->run();
  answers.memory_->take(slot->outputs);
}

void Model::run(const Pixels* pictures, std::size_t count, Size size, Answers& answers) const {
  const auto slot = state_->graph(size, count).slot(size, count);
  const std::size_t bytes = state_->image_bytes(size);
  for (std::size_t at = 0; at < count; ++at)
    slot->preparation.prepare(pictures[at], state_->manifest.preprocess, state_->normaliser, size,
                              slot->images.data() + at * bytes);
  slot->context->run();
  answers.memory_->take(slot->outputs);
}

void Model::run(const Pixels& picture, Answers& answers) const { run(&picture, 1, state_->sizes.front(), answers); }

DeviceSession Model::on_device(Size size, std::size_t count, void* stream) const {
  Graph& graph = state_->graph(size, count);
  const Artifact& artifact = graph.artifact();
  auto made = std::make_unique<DeviceSession::State>();
  made->positions = graph.positions(size);
  std::vector<Buffer> inputs{sized_images(artifact, size, count)};
  inputs.insert(inputs.end(), made->positions->buffers.begin(), made->positions->buffers.end());
  std::vector<Buffer> outputs;
  for (const ArrayEntry& each : artifact.outputs) {
    outputs.push_back(sized(each, artifact, size, count));
    made->outputs.push_back({each.name, each.type, outputs.back().shape});
  }
  made->context = graph.runner().bind_on_device(inputs, outputs, stream);
  return DeviceSession(std::move(made));
}

}  // namespace ropevit
