#include "manifest.hpp"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>

#define JSON_DIAGNOSTICS 1  // errors name the field
#include <nlohmann/json.hpp>

#include "text.hpp"

namespace ropevit {
namespace {

using Json = nlohmann::json;

// The newest that this library knows. Fields are only ever added within one; what changes meaning makes a new one.
constexpr int schema = 1;

[[noreturn]] void refuse(const std::string& what) { throw BundleError(what); }

int extent(const Json& json) {
  const auto value = json.get<std::int64_t>();
  if (value < 1 || value > 1 << 20) refuse("an extent of " + std::to_string(value) + " pixels or images");
  return static_cast<int>(value);
}

Size size(const Json& json) {
  if (json.size() != 2) refuse("a size of " + std::to_string(json.size()) + " numbers, needed height and width");
  return {extent(json.at(0)), extent(json.at(1))};
}

std::vector<Size> sizes(const Json& json) {
  std::vector<Size> found;
  for (const Json& each : json) found.push_back(size(each));
  return found;
}

// A bundle is flat: a path that leads anywhere else is not of it.
std::string file_name(const Json& json) {
  auto name = json.get<std::string>();
  if (name.empty() || name == "." || name == ".." || name.find_first_of("/\\") != std::string::npos)
    refuse("the path " + in_quotes(name) + ", which is no file name");
  return name;
}

std::string sha256(const Json& json) {
  auto digits = json.get<std::string>();
  if (digits.size() != 64 || digits.find_first_not_of("0123456789abcdef") != std::string::npos)
    refuse("the SHA-256 " + in_quotes(digits) + ", which is not 64 hexadecimal digits");
  return digits;
}

DataType type(const Json& json) {
  const auto name = json.get<std::string>();
  for (const DataType each : {DataType::uint8, DataType::float16, DataType::bfloat16, DataType::float32})
    if (name == name_of(each)) return each;
  refuse("the number format " + in_quotes(name) + ", which this library has not");
}

std::vector<ArrayEntry> arrays(const Json& json) {
  std::vector<ArrayEntry> found;
  for (const Json& each : json) {
    ArrayEntry entry{each.at("name").get<std::string>(), type(each.at("dtype")), {}};
    for (const Json& axis : each.at("shape")) {
      if (axis.is_string())
        entry.shape.emplace_back(axis.get<std::string>());
      else
        entry.shape.emplace_back(std::int64_t{extent(axis)});
    }
    found.push_back(std::move(entry));
  }
  if (found.empty()) refuse("an artifact without inputs or outputs");
  return found;
}

std::vector<FileEntry> files(const Json& json) {
  std::vector<FileEntry> found;
  for (const Json& each : json)
    found.push_back({each.at("kind").get<std::string>(), file_name(each.at("path")), sha256(each.at("sha256"))});
  return found;
}

AnySize any_size(const Json& json) {
  const int multiple = extent(json.at("multiple"));
  const int prefix = json.value("prefix", 1);
  if (prefix < 0 || prefix > 1 << 20) refuse("a prefix of " + std::to_string(prefix) + " tokens");
  // Manifests of the first release had no patch: it was the multiple.
  return {size(json.at("max")), multiple, json.contains("patch") ? extent(json.at("patch")) : multiple, prefix};
}

Artifact artifact(const Json& json) {
  Artifact found;
  found.kind = json.at("kind").get<std::string>();
  found.path = file_name(json.at("path"));
  found.sha256 = sha256(json.at("sha256"));
  found.resolutions = sizes(json.at("resolutions"));
  const Json& batch = json.at("batch");
  const auto images = [&](const char* name) { return static_cast<std::size_t>(extent(batch.at(name))); };
  found.batch = {images("min"), images("opt"), images("max")};
  if (found.batch.min > found.batch.max) refuse(found.path + " with a batch whose min is above its max");
  found.precision = json.at("precision").get<std::string>();
  found.form = json.value("form", "portable");
  found.inputs = arrays(json.at("inputs"));
  found.outputs = arrays(json.at("outputs"));
  found.built_with = json.at("built_with").get<std::string>();
  found.targets = json.at("targets").get<std::vector<std::string>>();
  found.files = files(json.value("files", Json::array()));
  if (json.contains("dynamic") && !json.at("dynamic").is_null()) found.dynamic = any_size(json.at("dynamic"));
  if (json.contains("options")) found.stripped = json.at("options").value("strip_weights", false);
  return found;
}

Preprocess preprocess(const Json& json) {
  Preprocess found{};
  found.mean = json.at("mean").get<std::array<double, 3>>();
  found.deviation = json.at("std").get<std::array<double, 3>>();
  for (const double each : found.deviation)
    if (!(each > 0)) refuse("a std that is not above 0");
  const auto interpolation = json.at("interpolation").get<std::string>();
  if (interpolation != "bicubic" && interpolation != "bilinear")
    refuse("the interpolation " + in_quotes(interpolation));
  found.interpolation = interpolation == "bicubic" ? Interpolation::bicubic : Interpolation::bilinear;
  found.crop = json.at("crop").get<double>();
  if (!(found.crop > 0 && found.crop <= 1)) refuse("a crop that is not above 0 and at most 1");
  const auto mode = json.value("crop_mode", "center");
  if (mode != "center" && mode != "squash") refuse("the crop_mode " + in_quotes(mode));
  found.squash = mode == "squash";
  const auto layout = json.at("layout").get<std::string>();
  found.type = type(json.at("dtype"));
  found.nhwc = found.type == DataType::uint8;
  if (layout != (found.nhwc ? "NHWC" : "NCHW"))
    refuse("the layout " + in_quotes(layout) + " of " + name_of(found.type));
  return found;
}

Manifest manifest(const Json& json) {
  Manifest found;
  found.model = json.at("model").get<std::string>();
  found.trained = json.at("weights").at("trained").get<bool>();
  found.classes = json.at("classes").get<int>();
  const auto number = [&](const char* name) {
    return json.contains(name) && !json.at(name).is_null() ? json.at(name).get<int>() : -1;
  };
  found.patch = number("patch");
  found.prefix = number("prefix");
  found.preprocess = preprocess(json.at("preprocess"));
  for (const Json& each : json.at("artifacts")) found.artifacts.push_back(artifact(each));
  if (found.artifacts.empty()) refuse("no artifacts");
  for (const Json& each : json.at("parity")) {
    const Json& limits = each.at("tolerance");
    found.parity.push_back({each.at("artifact").get<std::string>(),
                            size(each.at("resolution")),
                            {limits.at("relative").get<double>(), limits.at("cosine").get<double>()}});
  }
  found.files = files(json.at("files"));
  return found;
}

}  // namespace

bool AnySize::takes(Size size) const {
  const bool on_grid = size.height > 0 && size.width > 0 && size.height % multiple == 0 && size.width % multiple == 0;
  return on_grid && size.height <= max.height && size.width <= max.width;
}

bool Artifact::takes(Size size) const {
  if (std::find(resolutions.begin(), resolutions.end(), size) != resolutions.end()) return true;
  return kind == "onnx" && dynamic && dynamic->takes(size);
}

std::vector<std::pair<std::string, std::string>> Manifest::all_files() const {
  std::map<std::string, std::string> found;
  for (const Artifact& each : artifacts) {
    found[each.path] = each.sha256;
    for (const FileEntry& file : each.files) found[file.path] = file.sha256;
  }
  for (const FileEntry& file : files) found[file.path] = file.sha256;
  return {found.begin(), found.end()};
}

Manifest read_manifest(const std::filesystem::path& bundle) {
  const std::filesystem::path path = bundle / manifest_name;
  std::ifstream stream(path, std::ios::binary);
  if (!stream) throw BundleError(bundle.string() + " is not a bundle: it has no " + manifest_name + ".");
  try {
    const Json json = Json::parse(stream);
    const auto version = json.at("schema_version").get<std::int64_t>();
    if (version != schema)
      throw BundleError("its schema is " + std::to_string(version) + ", this library reads " + std::to_string(schema) +
                        (version > schema ? ": take a newer ropevit" : ""));
    return manifest(json);
  } catch (const BundleError& error) {
    throw BundleError(path.string() + " can't be used: " + error.what() + ".");
  } catch (const Json::exception& error) {
    const std::string said = error.what();  // "[json.exception.…] (/artifacts/0) …"
    const std::size_t end = said.find("] ");
    throw BundleError(path.string() + " is not a manifest of schema " + std::to_string(schema) + ": " +
                      (end == std::string::npos ? said : said.substr(end + 2)) + ".");
  }
}

std::string text_of(Size size) { return std::to_string(size.height) + "x" + std::to_string(size.width); }

}  // namespace ropevit
