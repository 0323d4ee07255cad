#pragma once

#include <algorithm>
#include <iterator>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

namespace ropevit {

// Objects that one caller at a time uses, kept for the next one. What a caller took goes back when its lease ends.
template <class Item>
class Pool {
 public:
  class Lease {
   public:
    Lease(Pool& pool, std::unique_ptr<Item> item) : pool_(pool), item_(std::move(item)) {}
    ~Lease() { pool_.put(std::move(item_)); }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    Item* operator->() const { return item_.get(); }
    Item& operator*() const { return *item_; }

   private:
    Pool& pool_;
    std::unique_ptr<Item> item_;
  };

  Pool() { idle_.reserve(most + 1); }

  // An idle one that `fits`, the last used first, or a new one by `make`.
  template <class Fits, class Make>
  Lease take(Fits fits, Make make) {
    std::unique_ptr<Item> item = idle(fits);
    return Lease(*this, item ? std::move(item) : make());
  }

  // Idle ones that `match`.
  template <class Match>
  void give_up(Match match) {
    const std::lock_guard<std::mutex> lock(mutex_);
    idle_.erase(std::remove_if(idle_.begin(), idle_.end(), [&](const auto& item) { return match(*item); }),
                idle_.end());
  }

 private:
  // Idle ones beyond this number, which many sizes in turn would leave behind, are given up, the longest unused first.
  static constexpr std::size_t most = 16;

  template <class Fits>
  std::unique_ptr<Item> idle(Fits fits) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = std::find_if(idle_.rbegin(), idle_.rend(), [&](const auto& item) { return fits(*item); });
    if (found == idle_.rend()) return nullptr;
    std::unique_ptr<Item> item = std::move(*found);
    idle_.erase(std::next(found).base());
    return item;
  }

  void put(std::unique_ptr<Item> item) noexcept {
    std::unique_ptr<Item> oldest;  // outlives the lock
    const std::lock_guard<std::mutex> lock(mutex_);
    idle_.push_back(std::move(item));
    if (idle_.size() > most) {
      oldest = std::move(idle_.front());
      idle_.erase(idle_.begin());
    }
  }

  std::mutex mutex_;
  std::vector<std::unique_ptr<Item>> idle_;
};

}  // namespace ropevit
