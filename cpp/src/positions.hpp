// What a bundle made with --rope inputs is fed beside the image: docs/position-inputs.md.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "manifest.hpp"

namespace ropevit {

struct PositionInput {
  std::string name;  // cos, sin or pos_embed
  std::vector<std::int64_t> shape;
  std::vector<float> values;
};

// Filled for one grid, in float32. Throws BundleError where the file is not of the artifact.
std::vector<PositionInput> fill_positions(const std::filesystem::path& file, int rows, int columns, int prefix);

}  // namespace ropevit
