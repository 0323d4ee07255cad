#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>

namespace ropevit {

// Memory that grows and never shrinks, aligned as vector instructions like it.
class Block {
 public:
  void resize(std::size_t bytes) {
    if (bytes <= capacity_) return;
    constexpr std::size_t alignment = 64;
    const std::size_t capacity = (bytes + alignment - 1) / alignment * alignment;
    memory_.reset(static_cast<std::byte*>(std::aligned_alloc(alignment, capacity)));
    if (memory_ == nullptr) throw std::bad_alloc();
    capacity_ = capacity;
  }
  std::byte* data() const { return memory_.get(); }

 private:
  struct Free {
    void operator()(std::byte* memory) const { std::free(memory); }
  };
  std::unique_ptr<std::byte, Free> memory_;
  std::size_t capacity_ = 0;
};

}  // namespace ropevit
