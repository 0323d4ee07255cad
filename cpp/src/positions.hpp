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

// Filled for one of the sizes that a graph takes, in float32. Throws BundleError for a file that does not have the
// parts of all of them, in shapes that belong together.
std::vector<PositionInput> fill_positions(const std::filesystem::path& file, const AnySize& sizes, Size size);

}  // namespace ropevit
