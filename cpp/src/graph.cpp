#include "graph.hpp"

namespace ropevit {
namespace {

// Of a large model at 1024 one size's tables take 400 MB.
constexpr std::size_t most_bytes = std::size_t{256} << 20;

}  // namespace

Runner& Graph::runner() {
  const std::lock_guard<std::mutex> lock(loading_);
  if (runner_ == nullptr) runner_ = load_runner(bundle_, artifact_, options_);
  return *runner_;
}

std::shared_ptr<const Positions> Graph::positions(Size size) {
  const std::lock_guard<std::mutex> lock(filling_);
  for (auto each = filled_.begin(); each != filled_.end(); ++each)
    if (each->first == size) {
      filled_.splice(filled_.begin(), filled_, each);
      return each->second;
    }
  filled_.emplace_front(size, std::make_shared<const Positions>(positions_of(bundle_, artifact_, size)));
  while (filled_.size() > 2 && filled_bytes() > most_bytes) {
    const Size oldest = filled_.back().first;
    slots_.give_up([&](const Slot& each) { return each.size == oldest; });  // which hold them too
    filled_.pop_back();
  }
  return filled_.front().second;
}

std::size_t Graph::filled_bytes() const {
  std::size_t bytes = 0;
  for (const auto& each : filled_) {
    bytes += 1024;  // sizes without tables must not gather without end either
    for (const Buffer& buffer : each.second->buffers) bytes += buffer.bytes;
  }
  return bytes;
}

std::unique_ptr<Slot> Graph::make_slot(Size size, std::size_t count) {
  auto slot = std::make_unique<Slot>();
  slot->size = size;
  slot->count = count;
  slot->positions = positions(size);
  Buffer images = sized_images(artifact_, size, count);
  slot->images.resize(images.bytes);
  images.data = slot->images.data();
  std::vector<Buffer> inputs{images};
  inputs.insert(inputs.end(), slot->positions->buffers.begin(), slot->positions->buffers.end());
  for (const ArrayEntry& each : artifact_.outputs) {
    Buffer output = sized(each, artifact_, size, count);
    Block& block = slot->memory.emplace_back();
    block.resize(output.bytes);
    output.data = block.data();
    slot->outputs.push_back(std::move(output));
  }
  slot->context = runner().bind(inputs, slot->outputs);
  return slot;
}

}  // namespace ropevit
