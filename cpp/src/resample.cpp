#include "resample.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace ropevit {
namespace {

// Pillow's fixed point: 8 bits of pixel and 2 for overshoot leave 22 of the 32 for a weight's fraction.
constexpr int fraction_bits = 32 - 8 - 2;
constexpr std::int32_t half = 1 << (fraction_bits - 1);

// Keys' cubic with a = -1/2, and its support on either side.
double bicubic(double x) {
  constexpr double a = -0.5;
  x = std::abs(x);
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
  if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
  return 0.0;
}

double bilinear(double x) {
  x = std::abs(x);
  return x < 1.0 ? 1.0 - x : 0.0;
}

std::uint8_t clipped(std::int32_t sum) {
  return static_cast<std::uint8_t>(std::clamp(sum >> fraction_bits, 0, 255));
}

}  // namespace

void Resampler::Axis::prepare(int from_, int to_, int begin_, int extent_, Interpolation interpolation_) {
  if (from == from_ && to == to_ && begin == begin_ && extent == extent_ && interpolation == interpolation_) return;
  from = from_, to = to_, begin = begin_, extent = extent_, interpolation = interpolation_;
  const auto kernel = interpolation == Interpolation::bicubic ? bicubic : bilinear;
  const double scale = static_cast<double>(from) / to;
  const double stretch = std::max(scale, 1.0);  // of the kernel, where the image shrinks
  const double support = (interpolation == Interpolation::bicubic ? 2.0 : 1.0) * stretch;
  width = static_cast<int>(std::ceil(support)) * 2 + 1;
  first.resize(static_cast<std::size_t>(extent));
  count.resize(first.size());
  weights.assign(first.size() * static_cast<std::size_t>(width), 0);
  exact.resize(static_cast<std::size_t>(width));
  for (int at = 0; at < extent; ++at) {
    const double centre = (begin + at + 0.5) * scale;
    const int low = std::max(static_cast<int>(centre - support + 0.5), 0);
    const int high = std::min(static_cast<int>(centre + support + 0.5), from);
    double total = 0.0;
    for (int x = low; x < high; ++x) {
      exact[static_cast<std::size_t>(x - low)] = kernel((x - centre + 0.5) * (1.0 / stretch));
      total += exact[static_cast<std::size_t>(x - low)];
    }
    std::int32_t* rounded = weights.data() + static_cast<std::ptrdiff_t>(at) * width;
    for (int x = 0; x < high - low; ++x) {
      double weight = exact[static_cast<std::size_t>(x)];
      if (total != 0.0) weight /= total;
      rounded[x] = static_cast<std::int32_t>((weight < 0 ? -0.5 : 0.5) + weight * (1 << fraction_bits));
    }
    first[static_cast<std::size_t>(at)] = low;
    count[static_cast<std::size_t>(at)] = high - low;
  }
}

void Resampler::resize(const Pixels& picture, Size whole, Window window, Interpolation interpolation,
                       std::uint8_t* out) {
  const std::ptrdiff_t pitch = picture.pitch != 0 ? picture.pitch : std::ptrdiff_t{3} * picture.width;
  const auto [height, width] = window.size;
  const bool horizontal = whole.width != picture.width, vertical = whole.height != picture.height;
  const std::size_t line = static_cast<std::size_t>(width) * 3;

  // An axis that keeps its extent is copied, not filtered.
  int low = window.top, high = window.top + height;  // rows of the picture that are read
  if (vertical) {
    rows_.prepare(picture.height, whole.height, window.top, height, interpolation);
    low = rows_.first.front();
    high = rows_.first.back() + rows_.count.back();
  }
  if (horizontal) columns_.prepare(picture.width, whole.width, window.left, width, interpolation);

  const std::uint8_t* source = picture.data + low * pitch + std::ptrdiff_t{3} * window.left;
  std::ptrdiff_t source_pitch = pitch;
  if (horizontal) {
    std::uint8_t* target = out;
    if (vertical) {
      between_.resize(static_cast<std::size_t>(high - low) * line);
      target = between_.data();
    }
    for (int y = low; y < high; ++y) {
      const std::uint8_t* row = picture.data + y * pitch;
      std::uint8_t* to = target + static_cast<std::size_t>(y - low) * line;
      for (int x = 0; x < width; ++x, to += 3) {
        const std::uint8_t* pixel = row + std::ptrdiff_t{3} * columns_.first[static_cast<std::size_t>(x)];
        const std::int32_t* weight = columns_.weights.data() + static_cast<std::ptrdiff_t>(x) * columns_.width;
        std::int32_t red = half, green = half, blue = half;
        for (int at = 0; at < columns_.count[static_cast<std::size_t>(x)]; ++at, pixel += 3) {
          red += pixel[0] * weight[at];
          green += pixel[1] * weight[at];
          blue += pixel[2] * weight[at];
        }
        to[0] = clipped(red), to[1] = clipped(green), to[2] = clipped(blue);
      }
    }
    source = between_.data();
    source_pitch = static_cast<std::ptrdiff_t>(line);
  }
  if (vertical) {
    sums_.resize(line);
    for (int y = 0; y < height; ++y) {
      std::fill(sums_.begin(), sums_.end(), half);
      const std::int32_t* weight = rows_.weights.data() + static_cast<std::ptrdiff_t>(y) * rows_.width;
      for (int at = 0; at < rows_.count[static_cast<std::size_t>(y)]; ++at) {
        const std::uint8_t* row = source + (rows_.first[static_cast<std::size_t>(y)] + at - low) * source_pitch;
        const std::int32_t factor = weight[at];
        for (std::size_t x = 0; x < line; ++x) sums_[x] += row[x] * factor;
      }
      std::uint8_t* to = out + static_cast<std::size_t>(y) * line;
      for (std::size_t x = 0; x < line; ++x) to[x] = clipped(sums_[x]);
    }
  } else if (!horizontal) {
    for (int y = 0; y < height; ++y) std::memcpy(out + static_cast<std::size_t>(y) * line, source + y * pitch, line);
  }
}

}  // namespace ropevit
