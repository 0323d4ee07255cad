#include "artifact.hpp"

#include <algorithm>
#include <cstring>
#include <map>

#include "half.hpp"
#include "machine.hpp"
#include "positions.hpp"
#include "text.hpp"

namespace ropevit {
namespace {

// Throws BundleError for an axis that the artifact does not give a number to.
std::vector<std::int64_t> shape_of(const ArrayEntry& entry, const Artifact& artifact, Size size, std::size_t count) {
  const int patch = artifact.dynamic ? artifact.dynamic->patch : 1;
  const std::int64_t rows = size.height / patch, columns = size.width / patch;
  std::map<std::string, std::int64_t> known{
      {"batch", static_cast<std::int64_t>(count)}, {"height", size.height}, {"width", size.width}};
  if (artifact.dynamic)
    known.insert({{"rows", rows},
                  {"columns", columns},
                  {"patches", rows * columns},
                  {"tokens", artifact.dynamic->prefix + rows * columns}});
  std::vector<std::int64_t> shape;
  for (const Extent& extent : entry.shape) {
    if (const auto* number = std::get_if<std::int64_t>(&extent)) {
      shape.push_back(*number);
      continue;
    }
    const auto found = known.find(std::get<std::string>(extent));
    if (found == known.end())
      throw BundleError(artifact.path + "'s " + entry.name + " has an axis " +
                        in_quotes(std::get<std::string>(extent)) + ", but is not for any size.");
    shape.push_back(found->second);
  }
  return shape;
}

// Elements of a shape whose extents are below 2^33. Throws BundleError where they could not be held.
std::size_t count_of(const std::vector<std::int64_t>& shape, const std::string& what) {
  constexpr std::size_t most = std::size_t{1} << 34;
  std::size_t count = 1;
  for (const std::int64_t extent : shape) {
    if (extent != 0 && count > most / static_cast<std::size_t>(extent))
      throw BundleError(what + " has more than 2^34 elements.");
    count *= static_cast<std::size_t>(extent);
  }
  return count;
}

}  // namespace

Buffer sized(const ArrayEntry& entry, const Artifact& artifact, Size size, std::size_t count) {
  const std::string what = artifact.path + "'s " + entry.name;
  Buffer buffer{entry.name, entry.type, shape_of(entry, artifact, size, count), nullptr, 0};
  buffer.bytes = count_of(buffer.shape, what) * size_of(entry.type);
  if (buffer.shape.front() != static_cast<std::int64_t>(count))
    throw BundleError(what + " is not for a batch of " + std::to_string(count) + ", as the artifact's batch says.");
  return buffer;
}

Buffer sized_images(const Artifact& artifact, Size size, std::size_t count) {
  Buffer images = sized(artifact.inputs.front(), artifact, size, count);
  const std::size_t pixels = static_cast<std::size_t>(size.height) * static_cast<std::size_t>(size.width);
  if (images.shape.size() != 4 || images.bytes != count * 3 * pixels * size_of(images.type))
    throw BundleError(artifact.path + "'s " + images.name + " is not of three channels and " + text_of(size) + ".");
  return images;
}

std::vector<std::string> forms(const std::string& backend, const std::string& precision, const std::string& device) {
  const bool eight_bits = precision == "int8" || precision == "fp8";
  if (backend == "onnxruntime" || (backend == "onnxruntime-cuda" && !eight_bits)) return {"onnxruntime", "portable"};
  if (backend != "openvino") return {"portable"};
  if ((device.empty() || device == "CPU") && ends_at_avx2()) return {"openvino-avx2", "openvino", "portable"};
  return {"openvino", "openvino-avx2", "portable"};
}

std::vector<const Artifact*> artifacts_of(const Manifest& manifest, const std::string& backend,
                                          const std::filesystem::path& bundle, const std::string& form,
                                          const std::string& device) {
  const std::string kind = runs_engines(backend) ? backend : "onnx";
  std::vector<const Artifact*> found;
  for (const Artifact& each : manifest.artifacts)
    if (each.kind == kind) found.push_back(&each);
  if (found.empty())
    throw BundleError(bundle.string() + " holds no " + kind + " artifact for " + backend +
                      (kind == "onnx" ? "." : ": export it with --engine " + backend + "."));
  if (!form.empty()) {
    const auto other = [&](const Artifact* each) { return each->form != form; };
    found.erase(std::remove_if(found.begin(), found.end(), other), found.end());
    if (found.empty()) throw BundleError(bundle.string() + " holds no graph in the form " + form + ".");
  }
  // Of a graph in several forms those that the backend takes, its fastest first.
  std::map<std::string, std::vector<std::string>> taken;
  for (const Artifact* each : found) taken.emplace(each->precision, forms(backend, each->precision, device));
  const auto place = [&](const Artifact* each) {
    const std::vector<std::string>& names = taken.at(each->precision);
    return std::find(names.begin(), names.end(), each->form) - names.begin();
  };
  std::stable_sort(found.begin(), found.end(),
                   [&](const Artifact* a, const Artifact* b) { return place(a) < place(b); });
  return found;
}

Positions positions_of(const std::filesystem::path& bundle, const Artifact& artifact, Size size) {
  Positions made;
  const auto file = std::find_if(artifact.files.begin(), artifact.files.end(),
                                 [](const FileEntry& each) { return each.kind == "positions"; });
  if (file == artifact.files.end() || !artifact.dynamic) return made;
  for (const PositionInput& each : fill_positions(bundle / file->path, *artifact.dynamic, size)) {
    const auto entry = std::find_if(artifact.inputs.begin(), artifact.inputs.end(),
                                    [&](const ArrayEntry& input) { return input.name == each.name; });
    if (entry == artifact.inputs.end())
      throw BundleError(artifact.path + " takes no " + each.name + ", which " + file->path + " is for.");
    if (each.shape != shape_of(*entry, artifact, size, artifact.batch.min))
      throw BundleError(file->path + " gives " + each.name + " in another shape than " + artifact.path + " takes.");
    const std::size_t bytes = each.values.size() * size_of(entry->type);
    Block& block = made.memory.emplace_back();
    block.resize(bytes);
    if (entry->type == DataType::float32) {
      std::memcpy(block.data(), each.values.data(), bytes);
    } else {
      auto* halves = reinterpret_cast<std::uint16_t*>(block.data());
      const auto rounded = entry->type == DataType::bfloat16 ? to_bfloat16 : to_float16;
      std::transform(each.values.begin(), each.values.end(), halves, rounded);
    }
    made.buffers.push_back({each.name, entry->type, each.shape, block.data(), bytes});
  }
  return made;
}

}  // namespace ropevit
