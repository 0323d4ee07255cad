// Resizing with antialiasing, to the bit as Pillow 13 does it for 8-bit images.
#pragma once

#include <cstdint>
#include <vector>

#include "manifest.hpp"
#include "ropevit/ropevit.hpp"

namespace ropevit {

// The part of a resized image that is wanted.
struct Window {
  int top;
  int left;
  Size size;
};

// Keeps its memory and its weights from one picture to the next.
class Resampler {
 public:
  // Resize to `whole` and write the window of it, (height, width, 3) bytes in the picture's own order of channels.
  // What lies outside the window is not computed; no pixel depends on another.
  void resize(const Pixels& picture, Size whole, Window window, Interpolation interpolation, std::uint8_t* out);

 private:
  // How one axis is resized: output i is the sum of `count[i]` inputs from `first[i]` on.
  struct Axis {
    int from = 0, to = 0, begin = -1, extent = 0;  // of the input, of the whole output, and which part of it
    Interpolation interpolation = Interpolation::bicubic;
    int width = 0;  // weights an output
    std::vector<int> first, count;
    std::vector<std::int32_t> weights;
    std::vector<double> exact;

    void prepare(int from, int to, int begin, int extent, Interpolation interpolation);
  };

  void across(const std::uint8_t* from, std::ptrdiff_t pitch, int rows, int offset, std::uint8_t* to) const;
  void down(const std::uint8_t* from, std::ptrdiff_t pitch, std::size_t bytes, int offset, std::uint8_t* to);

  Axis rows_, columns_;
  std::vector<std::uint8_t> between_;
  std::vector<std::int32_t> sums_;
};

}  // namespace ropevit
