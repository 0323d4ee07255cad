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

std::uint8_t clipped(std::int32_t sum) { return static_cast<std::uint8_t>(std::clamp(sum >> fraction_bits, 0, 255)); }

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

// `rows` rows of `from`, whose columns begin at `offset`.
void Resampler::across(const std::uint8_t* from, std::ptrdiff_t pitch, int rows, int offset, std::uint8_t* to) const {
  for (int y = 0; y < rows; ++y, from += pitch)
    for (int x = 0; x < columns_.extent; ++x, to += 3) {
      const std::uint8_t* pixel = from + std::ptrdiff_t{3} * (columns_.first[static_cast<std::size_t>(x)] - offset);
      const std::int32_t* weight = columns_.weights.data() + static_cast<std::ptrdiff_t>(x) * columns_.width;
      const std::int32_t* end = weight + columns_.count[static_cast<std::size_t>(x)];
      std::int32_t red = half, green = half, blue = half;
      for (; weight != end; ++weight, pixel += 3) {
        red += pixel[0] * *weight;
        green += pixel[1] * *weight;
        blue += pixel[2] * *weight;
      }
      to[0] = clipped(red), to[1] = clipped(green), to[2] = clipped(blue);
    }
}

// Rows of `bytes`, the first of which is row `offset`.
void Resampler::down(const std::uint8_t* from, std::ptrdiff_t pitch, std::size_t bytes, int offset, std::uint8_t* to) {
  sums_.resize(bytes);
  for (int y = 0; y < rows_.extent; ++y, to += bytes) {
    std::fill(sums_.begin(), sums_.end(), half);
    const std::int32_t* weight = rows_.weights.data() + static_cast<std::ptrdiff_t>(y) * rows_.width;
    const std::uint8_t* row = from + (rows_.first[static_cast<std::size_t>(y)] - offset) * pitch;
    for (int at = 0; at < rows_.count[static_cast<std::size_t>(y)]; ++at, row += pitch) {
      const std::int32_t factor = weight[at];
      for (std::size_t x = 0; x < bytes; ++x) sums_[x] += row[x] * factor;
    }
    for (std::size_t x = 0; x < bytes; ++x) to[x] = clipped(sums_[x]);
  }
}

void Resampler::resize(const Pixels& picture, Size whole, Window window, Interpolation interpolation,
                       std::uint8_t* out) {
  const std::ptrdiff_t pitch = picture.pitch != 0 ? picture.pitch : std::ptrdiff_t{3} * picture.width;
  const auto [height, width] = window.size;
  const auto line = static_cast<std::ptrdiff_t>(width) * 3;
  const std::uint8_t* corner = picture.data + window.top * pitch + std::ptrdiff_t{3} * window.left;
  const auto room = [&](int rows, std::ptrdiff_t row) {
    between_.resize(static_cast<std::size_t>(rows) * static_cast<std::size_t>(row));
    return between_.data();
  };
  // An axis that keeps its extent is copied, not filtered.
  const bool horizontal = whole.width != picture.width, vertical = whole.height != picture.height;
  if (horizontal) columns_.prepare(picture.width, whole.width, window.left, width, interpolation);
  if (vertical) rows_.prepare(picture.height, whole.height, window.top, height, interpolation);
  if (!horizontal && !vertical) {
    for (int y = 0; y < height; ++y) std::memcpy(out + y * line, corner + y * pitch, static_cast<std::size_t>(line));
  } else if (!vertical) {
    across(corner - std::ptrdiff_t{3} * window.left, pitch, height, 0, out);
  } else if (!horizontal) {
    down(corner - window.top * pitch, pitch, static_cast<std::size_t>(line), 0, out);
  } else if (picture.height - whole.height > std::max(0, 2 * (picture.width - whole.width))) {
    // Pillow takes the height first where it shrinks by so much more; what lies between the passes is rounded.
    const int low = columns_.first.front(), high = columns_.first.back() + columns_.count.back();
    const std::ptrdiff_t row = std::ptrdiff_t{3} * (high - low);
    std::uint8_t* between = room(height, row);
    down(picture.data + std::ptrdiff_t{3} * low, pitch, static_cast<std::size_t>(row), 0, between);
    across(between, row, height, low, out);
  } else {
    const int low = rows_.first.front(), high = rows_.first.back() + rows_.count.back();
    std::uint8_t* between = room(high - low, line);
    across(picture.data + low * pitch, pitch, high - low, 0, between);
    down(between, line, static_cast<std::size_t>(line), low, out);
  }
}

}  // namespace ropevit
