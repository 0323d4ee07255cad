// From a picture to what the graph takes: resized, cropped, normalised.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "manifest.hpp"
#include "resample.hpp"

namespace ropevit {

// What every pixel value becomes, by channel: a byte has 256, so nothing else is computed when images come.
class Normaliser {
 public:
  explicit Normaliser(const Preprocess& preprocess);

  // (height, width, 3) bytes in `order` → (3, height, width) numbers in the graph's format.
  void apply(const std::uint8_t* pixels, Size size, ChannelOrder order, void* out) const;

 private:
  DataType type_;
  std::array<std::array<float, 256>, 3> floats_{};
  std::array<std::array<std::uint16_t, 256>, 3> halves_{};
};

// One caller's memory for preparing pictures.
class Preparation {
 public:
  // Throws InputError for a picture that can't be.
  void prepare(const Pixels& picture, const Preprocess& preprocess, const Normaliser& normaliser, Size size, void* out);
  // (height, width, 3) RGB bytes.
  void crop(const Pixels& picture, const Preprocess& preprocess, Size size, std::uint8_t* out);

 private:
  void resize(const Pixels& picture, const Preprocess& preprocess, Size size, std::uint8_t* out);

  Resampler resampler_;
  std::vector<std::uint8_t> cropped_;
};

}  // namespace ropevit
