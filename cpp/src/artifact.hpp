// Which artifacts serve a backend, and what they take and give at a size.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "backend.hpp"
#include "manifest.hpp"
#include "memory.hpp"

namespace ropevit {

// An input or output at a size and batch; its data is null. Throws BundleError for what does not fit.
Buffer sized(const ArrayEntry& entry, const Artifact& artifact, Size size, std::size_t count);

// The images, which are the first input.
Buffer sized_images(const Artifact& artifact, Size size, std::size_t count);

// Those of a graph's forms that a backend takes, the one first that it is fastest with on this machine. The device is
// OpenVINO's; empty: the CPU.
std::vector<std::string> forms(const std::string& backend, const std::string& precision, const std::string& device);

// What a backend runs of a bundle: engines of its own kind, or ONNX graphs of the form that is wanted, else its own form
// first. Throws BundleError for none.
std::vector<const Artifact*> artifacts_of(const Manifest& manifest, const std::string& backend,
                                          const std::filesystem::path& bundle, const std::string& form = "",
                                          const std::string& device = "");

// The position inputs of one size, in the formats that the graph takes.
struct Positions {
  std::vector<Block> memory;
  std::vector<Buffer> buffers;
};

// Filled; nothing where positions are in the graph. Throws BundleError.
Positions positions_of(const std::filesystem::path& bundle, const Artifact& artifact, Size size);

}  // namespace ropevit
