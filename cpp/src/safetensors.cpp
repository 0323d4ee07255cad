#include "safetensors.hpp"

#include <algorithm>
#include <limits>
#include <utility>

#include "json.hpp"
#include "ropevit/ropevit.hpp"

namespace ropevit {
namespace {

constexpr std::size_t prefix = 8;  // the header's length, little-endian
constexpr std::size_t longest_header = 100'000'000;

std::size_t bytes_of(const Field& dtype) {
  const std::string name = dtype.text();
  if (name == "F32") return 4;
  if (name == "F16" || name == "BF16") return 2;
  if (name == "U8") return 1;
  if (name == "I64") return 8;
  dtype.refuse(name + " is no number format of this library");
}

Safetensors::Array array(const Field& entry, std::string_view values) {
  Safetensors::Array found{entry.at("dtype").text(), {}, nullptr, bytes_of(entry.at("dtype"))};
  constexpr std::int64_t largest = std::numeric_limits<std::int64_t>::max();
  for (const Field& each : entry.at("shape").items()) {
    const std::int64_t extent = each.whole(0, largest);
    if (extent == 0) entry.refuse("it has a shape that is empty");
    if (found.bytes > values.size() / static_cast<std::size_t>(extent))
      entry.refuse("it has a shape that is larger than the file");
    found.bytes *= static_cast<std::size_t>(extent);
    found.shape.push_back(extent);
  }
  const std::vector<Field> offsets = entry.at("data_offsets").items(2, 2);
  const auto begin = static_cast<std::size_t>(offsets[0].whole(0, largest));
  const auto end = static_cast<std::size_t>(offsets[1].whole(0, largest));
  if (begin > end || end > values.size()) entry.refuse("it lies beyond the file's end");
  if (end - begin != found.bytes) entry.refuse("it has a shape that is not that of its bytes");
  found.data = reinterpret_cast<const std::byte*>(values.data()) + begin;
  return found;
}

}  // namespace

Safetensors::Safetensors(const std::filesystem::path& path) : path_(path), file_(path) {
  const std::string_view content = file_.content();
  try {
    if (content.size() < prefix) throw BundleError("it ends before its header");
    std::uint64_t length = 0;
    for (std::size_t at = 0; at < prefix; ++at)
      length |= static_cast<std::uint64_t>(static_cast<unsigned char>(content[at])) << (8 * at);
    if (length > longest_header) throw BundleError("its header would be longer than 100 MB");
    if (length > content.size() - prefix) throw BundleError("it ends within its header");
    const nlohmann::json header = parse_json(content.substr(prefix, length));
    const std::string_view values = content.substr(prefix + length);
    std::vector<std::pair<const std::byte*, std::size_t>> places;
    for (const auto& [name, entry] : Field(header).members()) {
      if (name == "__metadata__") continue;
      const Array& made = arrays_.emplace(name, array(entry, values)).first->second;
      places.emplace_back(made.data, made.bytes);
    }
    std::sort(places.begin(), places.end());
    const auto* at = reinterpret_cast<const std::byte*>(values.data());
    for (const auto& [data, bytes] : places) {
      if (data != at) throw BundleError("its arrays overlap or leave bytes between them");
      at += bytes;
    }
    if (at != reinterpret_cast<const std::byte*>(values.data()) + values.size())
      throw BundleError("it is longer than its arrays");
  } catch (const BundleError& error) {
    throw BundleError(path.string() + " is not a safetensors file: " + error.what() + ".");
  }
}

const Safetensors::Array& Safetensors::operator[](const std::string& name) const {
  const auto found = arrays_.find(name);
  if (found == arrays_.end()) throw BundleError(path_.string() + " holds no " + name + ".");
  return found->second;
}

}  // namespace ropevit
