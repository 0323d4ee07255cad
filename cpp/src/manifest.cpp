#include "manifest.hpp"

#include <algorithm>
#include <limits>
#include <map>
#include <set>

#include "file.hpp"
#include "json.hpp"
#include "text.hpp"

namespace ropevit {
namespace {

// The newest that this library knows. Fields are only ever added within one; what changes meaning makes a new one.
constexpr int schema = 1;

// What no number of a manifest exceeds, as in ropevit_export/bundle/manifest.py: room is made by them.
constexpr std::size_t most_bytes = std::size_t{4} << 20;
constexpr std::int64_t most_pixels = std::int64_t{1} << 28, longest_side = 1 << 16, most_prefix = 1 << 16;
constexpr std::int64_t largest = std::numeric_limits<std::int32_t>::max();
constexpr double smallest_crop = 0.05;  // below it a picture is resized to twenty times the size and more
constexpr std::size_t most_axes = 8;

// What stands for an extent that is not known before there is an image.
const std::set<std::string> symbols{"batch", "height", "width", "rows", "columns", "patches", "tokens"};

int extent(const Field& field) { return static_cast<int>(field.whole(1, largest)); }

Size size(const Field& field) {
  const std::vector<Field> sides = field.items(2, 2);
  const std::int64_t height = sides[0].whole(1, longest_side), width = sides[1].whole(1, longest_side);
  if (height * width > most_pixels)
    field.refuse(std::to_string(height) + "x" + std::to_string(width) + " has more than " +
                 std::to_string(most_pixels) + " pixels");
  return {static_cast<int>(height), static_cast<int>(width)};
}

// A bundle is flat: a path that leads anywhere else is not of it.
std::string file_name(const Field& field) {
  std::string name = field.text();
  if (name.empty() || name == "." || name == ".." || name.find_first_of("/\\") != std::string::npos)
    field.refuse(in_quotes(name) + " is no file name");
  return name;
}

std::string sha256(const Field& field) {
  std::string digits = field.text();
  if (digits.size() != 64 || digits.find_first_not_of("0123456789abcdef") != std::string::npos)
    field.refuse(in_quotes(digits) + " is not 64 hexadecimal digits");
  return digits;
}

DataType type(const Field& field) {
  const std::string name = field.text();
  for (const DataType each : {DataType::uint8, DataType::float16, DataType::bfloat16, DataType::float32})
    if (name == name_of(each)) return each;
  field.refuse(in_quotes(name) + " is no number format of this library");
}

ArrayEntry array(const Field& field) {
  ArrayEntry entry{field.at("name").text(), type(field.at("dtype")), {}};
  if (entry.name.empty()) field.at("name").refuse("it is empty");
  for (const Field& axis : field.at("shape").items(1, most_axes)) {
    if (!axis.is_text()) {
      entry.shape.emplace_back(std::int64_t{extent(axis)});
      continue;
    }
    const std::string symbol = axis.text();
    if (symbols.count(symbol) == 0) axis.refuse("this library has no axis " + in_quotes(symbol));
    entry.shape.emplace_back(symbol);
  }
  return entry;
}

std::vector<ArrayEntry> arrays(const Field& field) {
  std::vector<ArrayEntry> found;
  for (const Field& each : field.items(1)) found.push_back(array(each));
  return found;
}

std::vector<FileEntry> files(const Field& field) {
  std::vector<FileEntry> found;
  for (const Field& each : field.items())
    found.push_back({each.at("kind").text(), file_name(each.at("path")), sha256(each.at("sha256"))});
  return found;
}

BatchRange batch(const Field& field) {
  const int min = extent(field.at("min")), opt = extent(field.at("opt")), max = extent(field.at("max"));
  if (min > opt || opt > max)
    field.refuse("batch " + std::to_string(min) + ":" + std::to_string(opt) + ":" + std::to_string(max) +
                 " is not in order");
  return {static_cast<std::size_t>(min), static_cast<std::size_t>(opt), static_cast<std::size_t>(max)};
}

AnySize any_size(const Field& field) {
  const int multiple = extent(field.at("multiple"));
  // Manifests of the first release had neither: the patch was the multiple, and one token before the patches.
  const auto patch = field.find("patch"), prefix = field.find("prefix");
  return {size(field.at("max")), multiple, patch ? extent(*patch) : multiple,
          prefix ? static_cast<int>(prefix->whole(0, most_prefix)) : 1};
}

Artifact artifact(const Field& field) {
  Artifact found;
  found.kind = field.at("kind").text();
  found.path = file_name(field.at("path"));
  found.sha256 = sha256(field.at("sha256"));
  for (const Field& each : field.at("resolutions").items(1)) found.resolutions.push_back(size(each));
  found.batch = batch(field.at("batch"));
  found.precision = field.at("precision").text();
  if (const auto form = field.find("form")) found.form = form->text();
  found.inputs = arrays(field.at("inputs"));
  found.outputs = arrays(field.at("outputs"));
  found.built_with = field.at("built_with").text();
  for (const Field& each : field.at("targets").items()) found.targets.push_back(each.text());
  if (const auto listed = field.find("files")) found.files = files(*listed);
  if (const auto dynamic = field.find("dynamic")) found.dynamic = any_size(*dynamic);
  if (const auto options = field.find("options"))
    if (const auto stripped = options->find("strip_weights")) found.stripped = stripped->flag();
  return found;
}

std::array<double, 3> channels(const Field& field) {
  const std::vector<Field> each = field.items(3, 3);
  return {each[0].number(), each[1].number(), each[2].number()};
}

// One of two words.
bool is_first(const Field& field, const char* first, const char* second) {
  const std::string word = field.text();
  if (word != first && word != second) field.refuse(in_quotes(word) + " was given, needs " + first + " or " + second);
  return word == first;
}

Preprocess preprocess(const Field& field) {
  Preprocess found{};
  found.mean = channels(field.at("mean"));
  found.deviation = channels(field.at("std"));
  for (const Field& each : field.at("std").items())
    if (each.number() <= 0) each.refuse("a number above 0 is needed: images are divided by it");
  found.interpolation =
      is_first(field.at("interpolation"), "bicubic", "bilinear") ? Interpolation::bicubic : Interpolation::bilinear;
  found.crop = field.at("crop").number();
  if (found.crop < smallest_crop || found.crop > 1) field.at("crop").refuse("a number from 0.05 to 1 is needed");
  if (const auto mode = field.find("crop_mode")) found.squash = is_first(*mode, "squash", "center");
  found.type = type(field.at("dtype"));
  found.nhwc = is_first(field.at("layout"), "NHWC", "NCHW");
  if (found.nhwc != (found.type == DataType::uint8))
    field.at("layout").refuse(in_quotes(field.at("layout").text()) + " is no layout of " + name_of(found.type));
  return found;
}

ParityEntry parity(const Field& field) {
  const Field limits = field.at("tolerance");
  return {field.at("artifact").text(),
          size(field.at("resolution")),
          {limits.at("relative").number(), limits.at("cosine").number()}};
}

Manifest manifest(const Field& field) {
  const std::int64_t version = field.at("schema_version").whole(1, largest);
  if (version != schema)
    field.at("schema_version")
        .refuse("it is " + std::to_string(version) + ", this library reads " + std::to_string(schema) +
                ": take a newer ropevit");
  Manifest found;
  found.model = field.at("model").text();
  found.trained = field.at("weights").at("trained").flag();
  found.classes = static_cast<int>(field.at("classes").whole(0, largest));
  if (const auto patch = field.find("patch")) found.patch = extent(*patch);
  if (const auto prefix = field.find("prefix")) found.prefix = static_cast<int>(prefix->whole(0, most_prefix));
  found.preprocess = preprocess(field.at("preprocess"));
  for (const Field& each : field.at("artifacts").items(1)) found.artifacts.push_back(artifact(each));
  std::set<std::string> compared;
  for (const Field& each : field.at("parity").items()) {
    found.parity.push_back(parity(each));
    compared.insert(found.parity.back().artifact);
  }
  for (const Artifact& each : found.artifacts)
    if (each.kind == "onnx" && compared.count(each.path) == 0) field.at("parity").refuse("no parity for " + each.path);
  found.files = files(field.at("files"));
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
  std::error_code missing;
  if (std::filesystem::symlink_status(path, missing).type() == std::filesystem::file_type::not_found || missing)
    throw BundleError(bundle.string() + " is not a bundle: it has no " + manifest_name + ".");
  const std::string content = read_file(path, most_bytes);
  try {
    return manifest(Field(parse_json(content)));
  } catch (const BundleError& error) {
    throw BundleError(path.string() + " is not a manifest of schema " + std::to_string(schema) + ": " + error.what() +
                      ".");
  }
}

std::string text_of(Size size) { return std::to_string(size.height) + "x" + std::to_string(size.width); }

}  // namespace ropevit
