// JPEG and PNG files, decoded as Pillow decodes them to RGB.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ropevit/ropevit.hpp"

namespace ropevit {

struct Picture {
  int height;
  int width;
  std::vector<std::uint8_t> rgb;

  Pixels pixels() const { return {rgb.data(), height, width}; }
};

// Throws InputError.
Picture read_picture(const std::string& path);

}  // namespace ropevit
