#include "preprocess.hpp"

#include <string>
#include <utility>

#include "half.hpp"

namespace ropevit {
namespace {

// Larger pictures would overflow Pillow's own sizes.
constexpr int largest_side = 1 << 24;

void check(const Pixels& picture) {
  const std::string size = text_of({picture.height, picture.width});
  if (picture.data == nullptr || picture.height < 1 || picture.width < 1 || picture.height > largest_side ||
      picture.width > largest_side)
    throw InputError("a picture of " + size + " pixels" + (picture.data == nullptr ? " at no address" : "") +
                     " was given, needed at least one and at most 2^24 a side.");
  const std::ptrdiff_t row = std::ptrdiff_t{3} * picture.width;
  if (picture.pitch != 0 && (picture.pitch < 0 ? -picture.pitch : picture.pitch) < row)
    throw InputError("a pitch of " + std::to_string(picture.pitch) + " bytes was given, rows of " + size +
                     " pixels need " + std::to_string(row) + ".");
}

// The size that a picture is resized to before the crop. Where the size wanted is not square: the smallest that covers
// it. The division of whole numbers is rounded once, then cut, as Python does it.
Size resized(Size picture, const Preprocess& preprocess, Size size) {
  if (preprocess.squash) return size;
  const auto cover = [&](int side) { return static_cast<std::int64_t>(side / preprocess.crop); };
  const std::int64_t height = picture.height, width = picture.width;
  const std::int64_t high = cover(size.height), wide = cover(size.width);
  const auto other = [](std::int64_t side, std::int64_t a, std::int64_t b) {
    const auto found = static_cast<double>(side * a) / static_cast<double>(b);
    if (found > largest_side) throw InputError("the picture is too long for its width to be resized.");
    return static_cast<int>(found);
  };
  if (high * width <= wide * height) return {other(wide, height, width), static_cast<int>(wide)};
  return {static_cast<int>(high), other(high, width, height)};
}

// Half of a difference, ties to even as Python's `round`.
int middle(int spare) {
  const int half = spare / 2;
  return spare % 2 != 0 && half % 2 != 0 ? half + 1 : half;
}

}  // namespace

Normaliser::Normaliser(const Preprocess& preprocess) : type_(preprocess.type) {
  for (std::size_t channel = 0; channel < 3; ++channel)
    for (std::size_t value = 0; value < 256; ++value) {
      const double scaled =
          (static_cast<double>(value) / 255.0 - preprocess.mean[channel]) / preprocess.deviation[channel];
      const float rounded = floats_[channel][value] = static_cast<float>(scaled);
      halves_[channel][value] = type_ == DataType::bfloat16 ? to_bfloat16(rounded) : to_float16(rounded);
    }
}

void Normaliser::apply(const std::uint8_t* pixels, Size size, ChannelOrder order, void* out) const {
  const std::size_t count = static_cast<std::size_t>(size.height) * static_cast<std::size_t>(size.width);
  const auto fill = [&](const auto& table, auto* to) {
    for (std::size_t channel = 0; channel < 3; ++channel, to += count) {
      const std::uint8_t* from = pixels + (order == ChannelOrder::rgb ? channel : 2 - channel);
      const auto& values = table[channel];
      for (std::size_t at = 0; at < count; ++at) to[at] = values[from[3 * at]];
    }
  };
  if (type_ == DataType::float32)
    fill(floats_, static_cast<float*>(out));
  else
    fill(halves_, static_cast<std::uint16_t*>(out));
}

void Preparation::resize(const Pixels& picture, const Preprocess& preprocess, Size size, std::uint8_t* out) {
  check(picture);
  const Size whole = resized({picture.height, picture.width}, preprocess, size);
  const Window window{middle(whole.height - size.height), middle(whole.width - size.width), size};
  resampler_.resize(picture, whole, window, preprocess.interpolation, out);
}

void Preparation::prepare(const Pixels& picture, const Preprocess& preprocess, const Normaliser& normaliser, Size size,
                          void* out) {
  if (preprocess.type == DataType::uint8) {
    crop(picture, preprocess, size, static_cast<std::uint8_t*>(out));
    return;
  }
  cropped_.resize(static_cast<std::size_t>(size.height) * static_cast<std::size_t>(size.width) * 3);
  resize(picture, preprocess, size, cropped_.data());
  normaliser.apply(cropped_.data(), size, picture.order, out);
}

void Preparation::crop(const Pixels& picture, const Preprocess& preprocess, Size size, std::uint8_t* out) {
  resize(picture, preprocess, size, out);
  if (picture.order == ChannelOrder::bgr) {
    const std::size_t bytes = static_cast<std::size_t>(size.height) * static_cast<std::size_t>(size.width) * 3;
    for (std::size_t at = 0; at < bytes; at += 3) std::swap(out[at], out[at + 2]);
  }
}

}  // namespace ropevit
