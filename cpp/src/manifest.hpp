// manifest.json, as far as a host needs it; docs/bundle.md has the whole of it.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "ropevit/ropevit.hpp"

namespace ropevit {

// A number, or the name of what it follows from: batch, height, width, rows, columns, patches, tokens.
using Extent = std::variant<std::int64_t, std::string>;

struct ArrayEntry {
  std::string name;
  DataType type;
  std::vector<Extent> shape;
};

struct BatchRange {
  std::size_t min;
  std::size_t opt;
  std::size_t max;
};

// A graph that takes any size up to a limit.
struct AnySize {
  Size max;
  int multiple;
  int patch;
  int prefix;

  bool takes(Size size) const;
};

struct FileEntry {
  std::string kind;
  std::string path;
  std::string sha256;
};

struct Artifact {
  std::string kind;  // onnx, tensorrt, tensorrt-rtx, openvino
  std::string path;
  std::string sha256;
  std::vector<Size> resolutions;
  BatchRange batch;
  std::string precision;
  std::string form = "portable";  // or the backend that it was made faster for
  std::vector<ArrayEntry> inputs;
  std::vector<ArrayEntry> outputs;
  std::string built_with;
  std::vector<std::string> targets;
  std::vector<FileEntry> files;
  std::optional<AnySize> dynamic;
  bool stripped = false;  // built without its weights

  // An engine takes the sizes of its profiles only, its graph any.
  bool takes(Size size) const;
};

enum class Interpolation { bicubic, bilinear };

struct Preprocess {
  std::array<double, 3> mean;
  std::array<double, 3> deviation;
  Interpolation interpolation;
  double crop;  // the size cut from the centre over the size resized to
  bool squash;  // both sides are resized to the size itself
  bool nhwc;
  DataType type;  // uint8: the graph normalises
};

struct Limits {
  double relative;
  double cosine;
};

// A comparison that the exporter made.
struct ParityEntry {
  std::string artifact;
  Size resolution;
  Limits limits;
};

struct Manifest {
  std::string model;
  bool trained;
  int classes;
  int patch = -1;  // unknown of early releases
  int prefix = -1;
  Preprocess preprocess;
  std::vector<Artifact> artifacts;
  std::vector<ParityEntry> parity;
  std::vector<FileEntry> files;

  // (path, SHA-256) of every file of the bundle but the manifest, each once.
  std::vector<std::pair<std::string, std::string>> all_files() const;
};

inline constexpr const char* manifest_name = "manifest.json";
inline constexpr const char* tuned_name = "tuned.json";  // which `ropevit-export tune` leaves beside it

// Throws BundleError.
Manifest read_manifest(const std::filesystem::path& bundle);

// "384x384".
std::string text_of(Size size);

}  // namespace ropevit
