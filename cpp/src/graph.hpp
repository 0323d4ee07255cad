// An artifact with what its callers share: the runtime that it is loaded in, filled position inputs, bound buffers.
#pragma once

#include <cstddef>
#include <filesystem>
#include <list>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "artifact.hpp"
#include "backend.hpp"
#include "manifest.hpp"
#include "memory.hpp"
#include "pool.hpp"
#include "preprocess.hpp"

namespace ropevit {

// One caller's images and answers at one size and batch, bound to the runtime.
struct Slot {
  Size size;
  std::size_t count = 0;
  Block images;
  std::vector<Block> memory;
  std::vector<Buffer> outputs;
  std::shared_ptr<const Positions> positions;
  Preparation preparation;
  std::unique_ptr<Context> context;
};

// An artifact, loaded at its first use.
class Graph {
 public:
  Graph(std::filesystem::path bundle, const Artifact& artifact, const Options& options)
      : bundle_(std::move(bundle)), artifact_(artifact), options_(options) {}

  const Artifact& artifact() const { return artifact_; }

  Runner& runner();

  Pool<Slot>::Lease slot(Size size, std::size_t count) {
    return slots_.take([&](const Slot& each) { return each.size == size && each.count == count; },
                       [&] { return make_slot(size, count); });
  }

  // Those of the last sizes are kept, as far as there is room.
  std::shared_ptr<const Positions> positions(Size size);

 private:
  std::size_t filled_bytes() const;
  std::unique_ptr<Slot> make_slot(Size size, std::size_t count);

  const std::filesystem::path bundle_;
  const Artifact& artifact_;
  const Options options_;
  std::mutex loading_, filling_;
  std::unique_ptr<Runner> runner_;
  std::list<std::pair<Size, std::shared_ptr<const Positions>>> filled_;
  Pool<Slot> slots_;  // behind the runner, so that contexts go first
};

}  // namespace ropevit
