#include "safetensors.hpp"

#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "ropevit/ropevit.hpp"

namespace ropevit {
namespace {

std::vector<std::byte> content_of(const std::filesystem::path& path) {
  std::ifstream stream(path, std::ios::binary | std::ios::ate);
  if (!stream) throw BundleError(path.string() + " can't be read: copy the whole folder.");
  std::vector<std::byte> content(static_cast<std::size_t>(stream.tellg()));
  stream.seekg(0);
  if (!stream.read(reinterpret_cast<char*>(content.data()), static_cast<std::streamsize>(content.size())))
    throw BundleError(path.string() + " can't be read to its end.");
  return content;
}

std::size_t bytes_of(const std::string& dtype) {
  if (dtype == "F32") return 4;
  if (dtype == "F16" || dtype == "BF16") return 2;
  if (dtype == "U8") return 1;
  if (dtype == "I64") return 8;
  throw BundleError("the number format " + dtype + ", which this library has not");
}

}  // namespace

Safetensors::Safetensors(const std::filesystem::path& path) : path_(path), content_(content_of(path)) {
  try {
    constexpr std::size_t prefix = 8;  // the header's length, little-endian
    if (content_.size() < prefix) throw BundleError("it ends before its header");
    std::uint64_t length = 0;
    for (std::size_t at = 0; at < prefix; ++at) length |= std::to_integer<std::uint64_t>(content_[at]) << (8 * at);
    if (length > content_.size() - prefix) throw BundleError("it ends within its header");
    const auto* text = reinterpret_cast<const char*>(content_.data()) + prefix;
    const nlohmann::json header = nlohmann::json::parse(text, text + length);
    const std::byte* values = content_.data() + prefix + length;
    const std::size_t room = content_.size() - prefix - length;
    for (const auto& [name, entry] : header.items()) {
      if (name == "__metadata__") continue;
      Array array{entry.at("dtype").get<std::string>(), entry.at("shape").get<std::vector<std::int64_t>>(), nullptr, 0};
      const auto offsets = entry.at("data_offsets").get<std::vector<std::uint64_t>>();
      if (offsets.size() != 2 || offsets[0] > offsets[1] || offsets[1] > room)
        throw BundleError(name + " lies beyond its end");
      std::size_t wanted = bytes_of(array.dtype);
      for (const std::int64_t extent : array.shape) {
        if (extent < 1 || wanted > room / static_cast<std::size_t>(extent))
          throw BundleError(name + " has a shape that is empty or larger than the file");
        wanted *= static_cast<std::size_t>(extent);
      }
      array.data = values + offsets[0];
      array.bytes = static_cast<std::size_t>(offsets[1] - offsets[0]);
      if (array.bytes != wanted) throw BundleError(name + " has a shape that is not that of its bytes");
      arrays_.emplace(name, std::move(array));
    }
  } catch (const nlohmann::json::exception& error) {
    throw BundleError(path.string() + " is not a safetensors file: " + error.what() + ".");
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
