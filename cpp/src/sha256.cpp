#include "sha256.hpp"

#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "file.hpp"

namespace ropevit {
namespace {

using Word = std::uint32_t;

Word rotated(Word word, int by) { return word >> by | word << (32 - by); }

// The first 32 bits of the fractional parts of roots of the first primes, which FIPS 180-4 defines its constants by.
// `root` in long double is good to more than the 35 bits that are needed.
template <std::size_t count>
std::array<Word, count> fractions(long double (*root)(long double)) {
  std::array<Word, count> found{};
  std::size_t filled = 0;
  for (int candidate = 2; filled < count; ++candidate) {
    bool prime = true;
    for (int divisor = 2; divisor * divisor <= candidate; ++divisor) prime = prime && candidate % divisor != 0;
    if (!prime) continue;
    const long double value = root(static_cast<long double>(candidate));
    found[filled++] = static_cast<Word>((value - std::floor(value)) * 4294967296.0L);
  }
  return found;
}

class Digest {
 public:
  void add(const unsigned char* data, std::size_t size) {
    length_ += size;
    while (size != 0) {
      const std::size_t taken = std::min(size, block_.size() - filled_);
      std::memcpy(block_.data() + filled_, data, taken);
      filled_ += taken, data += taken, size -= taken;
      if (filled_ == block_.size()) {
        mix();
        filled_ = 0;
      }
    }
  }

  std::string close() {
    const std::uint64_t bits = length_ * 8;
    const unsigned char one = 0x80, zero = 0;
    add(&one, 1);
    while (filled_ != 56) add(&zero, 1);
    std::array<unsigned char, 8> length{};
    for (std::size_t at = 0; at < 8; ++at) length[at] = static_cast<unsigned char>(bits >> (56 - 8 * at));
    add(length.data(), length.size());
    std::string digits;
    for (const Word word : state_)
      for (int shift = 28; shift >= 0; shift -= 4) digits += "0123456789abcdef"[word >> shift & 15];
    return digits;
  }

 private:
  void mix() {
    static const std::array<Word, 64> constants = fractions<64>(std::cbrt);
    std::array<Word, 64> schedule;
    for (std::size_t at = 0; at < 16; ++at)
      schedule[at] = Word{block_[4 * at]} << 24 | Word{block_[4 * at + 1]} << 16 | Word{block_[4 * at + 2]} << 8 |
                     Word{block_[4 * at + 3]};
    for (std::size_t at = 16; at < 64; ++at) {
      const Word near = schedule[at - 2], far = schedule[at - 15];
      schedule[at] = schedule[at - 16] + (rotated(far, 7) ^ rotated(far, 18) ^ far >> 3) + schedule[at - 7] +
                     (rotated(near, 17) ^ rotated(near, 19) ^ near >> 10);
    }
    auto [a, b, c, d, e, f, g, h] = state_;
    for (std::size_t at = 0; at < 64; ++at) {
      const Word first =
          h + (rotated(e, 6) ^ rotated(e, 11) ^ rotated(e, 25)) + ((e & f) ^ (~e & g)) + constants[at] + schedule[at];
      const Word second = (rotated(a, 2) ^ rotated(a, 13) ^ rotated(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
      h = g, g = f, f = e, e = d + first, d = c, c = b, b = a, a = first + second;
    }
    const std::array<Word, 8> added{a, b, c, d, e, f, g, h};
    for (std::size_t at = 0; at < 8; ++at) state_[at] += added[at];
  }

  std::array<Word, 8> state_ = fractions<8>(std::sqrt);
  std::array<unsigned char, 64> block_{};
  std::size_t filled_ = 0;
  std::uint64_t length_ = 0;
};

}  // namespace

std::string sha256_of(const std::filesystem::path& path) {
  File file(path);
  Digest digest;
  std::vector<char> chunk(std::size_t{1} << 20);
  while (const std::size_t count = file.read(chunk.data(), chunk.size()))
    digest.add(reinterpret_cast<const unsigned char*>(chunk.data()), count);
  return digest.close();
}

}  // namespace ropevit
