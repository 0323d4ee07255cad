// What the backend "auto" takes.
#pragma once

#include <filesystem>
#include <string>

#include "ropevit/ropevit.hpp"

namespace ropevit {

struct Choice {
  Options options;
  std::string reason;
};

// What `ropevit-export tune` found fastest on this machine with this release of the library for this manifest; else
// OpenVINO where it can be loaded, else ONNX Runtime, both as they come. The same as Python's tuned.choose. Throws
// BundleError for a file that is none of tune's.
Choice choose(const std::filesystem::path& bundle);

}  // namespace ropevit
