#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>

#include "artifact.hpp"
#include "backend.hpp"
#include "half.hpp"
#include "manifest.hpp"
#include "memory.hpp"
#include "ropevit/ropevit.hpp"
#include "safetensors.hpp"
#include "sha256.hpp"
#include "text.hpp"

namespace ropevit {
namespace {

void check_files(const std::filesystem::path& bundle, const Manifest& manifest) {
  std::set<std::string> known{manifest_name, tuned_name};
  for (const auto& [name, wanted] : manifest.all_files()) {
    known.insert(name);
    const std::filesystem::path path = bundle / name;
    std::error_code missing;
    if (!std::filesystem::exists(path, missing))
      throw BundleError(bundle.string() + " lacks " + name + ", which its manifest lists: copy the whole folder.");
    const std::string found = sha256_of(path);
    if (found != wanted)
      throw BundleError(path.string() + " has SHA-256 " + found.substr(0, 12) + "…, the manifest says " +
                        wanted.substr(0, 12) + "…: it was changed or damaged.");
  }
  std::set<std::string> strangers;
  for (const auto& each : std::filesystem::directory_iterator(bundle))
    if (known.count(each.path().filename().string()) == 0) strangers.insert(printable(each.path().filename().string()));
  if (!strangers.empty())
    throw BundleError(bundle.string() + " holds " + joined({strangers.begin(), strangers.end()}) +
                      ", which its manifest does not list.");
}

// A number at an address that need not be a multiple of its size: in a file it is where its header ended.
template <class T>
T number_at(const void* data, std::size_t index) {
  T found;
  std::memcpy(&found, static_cast<const std::byte*>(data) + index * sizeof(T), sizeof(T));
  return found;
}

// One output's numbers in float64, which every metric is computed in.
std::vector<double> doubles(const void* data, DataType type, std::size_t count) {
  std::vector<double> found(count);
  for (std::size_t at = 0; at < count; ++at) {
    const auto half = [&] { return number_at<std::uint16_t>(data, at); };
    switch (type) {
      case DataType::float32: found[at] = number_at<float>(data, at); break;
      case DataType::float16: found[at] = from_float16(half()); break;
      case DataType::bfloat16: found[at] = from_bfloat16(half()); break;
      case DataType::uint8: found[at] = static_cast<const std::uint8_t*>(data)[at]; break;
    }
  }
  return found;
}

std::string dtype_of(DataType type) {
  switch (type) {
    case DataType::float32: return "F32";
    case DataType::float16: return "F16";
    case DataType::bfloat16: return "BF16";
    case DataType::uint8: return "U8";
  }
  return "";
}

// Both `samples` times `width` numbers; into max_abs, relative, cosine and not_finite.
void compare(const std::vector<double>& ours, const std::vector<double>& theirs, std::size_t samples,
             Comparison& found) {
  double squares = 0;
  for (std::size_t at = 0; at < ours.size(); ++at) {
    if (!std::isfinite(ours[at])) ++found.not_finite;
    found.max_abs = std::max(found.max_abs, std::abs(ours[at] - theirs[at]));
    squares += theirs[at] * theirs[at];
  }
  if (found.not_finite != 0) {
    found.max_abs = found.relative = found.cosine = std::nan("");
    return;
  }
  const double rms = std::sqrt(squares / static_cast<double>(theirs.size()));
  found.relative = found.max_abs == 0 ? 0 : found.max_abs / rms;
  found.cosine = 1;
  const std::size_t width = ours.size() / samples;
  for (std::size_t sample = 0; sample < samples; ++sample) {
    double product = 0, a = 0, b = 0;
    bool equal = true;
    for (std::size_t at = sample * width; at < (sample + 1) * width; ++at) {
      product += ours[at] * theirs[at];
      a += ours[at] * ours[at];
      b += theirs[at] * theirs[at];
      equal = equal && ours[at] == theirs[at];
    }
    const double cosine = product / (std::sqrt(a) * std::sqrt(b));
    found.cosine = std::min(found.cosine, equal ? 1.0 : std::isfinite(cosine) ? cosine : 0.0);
  }
}

// A bundle's inputs and PyTorch's answers at one size. Throws BundleError for what nothing could be compared with.
class Golden {
 public:
  Golden(const std::filesystem::path& bundle, const Artifact& artifact, Size size)
      : path_(bundle / ("golden-" + name(size) + ".safetensors")), file_(path_) {
    const Safetensors::Array& image = file_["image"];
    samples_ = image.shape.empty() ? 0 : static_cast<std::size_t>(image.shape.front());
    std::vector<std::int64_t> wanted = sized_images(artifact, size, artifact.batch.min).shape;
    wanted.front() = static_cast<std::int64_t>(samples_);
    if (image.dtype != dtype_of(artifact.inputs.front().type) || image.shape != wanted)
      refuse("its images do not fit " + artifact.path + " at " + text_of(size));
  }

  std::size_t samples() const { return samples_; }
  const Safetensors::Array& images() const { return file_["image"]; }
  bool has(const std::string& tensor) const { return file_.has(tensor); }
  const Safetensors::Array& operator[](const std::string& tensor) const { return file_[tensor]; }

  // One output's numbers, `width` of them a sample.
  std::vector<double> expected(const Artifact& artifact, std::size_t output, std::size_t width) const {
    const std::string& name = artifact.outputs[output].name;
    const Safetensors::Array& held = file_[output == 0 ? "expected" : "expected." + name];
    if (held.dtype != "F32" || held.shape.size() < 2 || held.shape.front() != static_cast<std::int64_t>(samples_) ||
        held.bytes != samples_ * width * sizeof(float))
      refuse("its answers of " + name + " are not float32 for each of " + std::to_string(samples_) + " images");
    std::vector<double> found = doubles(held.data, DataType::float32, samples_ * width);
    if (!std::all_of(found.begin(), found.end(), [](double each) { return std::isfinite(each); }))
      refuse("its answers of " + name + " hold NaN or infinite values");
    if (std::all_of(found.begin(), found.end(), [](double each) { return each == 0; }))
      refuse("its answers of " + name + " are all zero");
    return found;
  }

  [[noreturn]] void refuse(const std::string& why) const {
    throw BundleError(path_.string() + " is not a golden file: " + why + ".");
  }

 private:
  // As the exporter names files: one number for a square.
  static std::string name(Size size) { return size.height == size.width ? std::to_string(size.height) : text_of(size); }

  std::filesystem::path path_;
  Safetensors file_;
  std::size_t samples_ = 0;
};

// The sizes of golden files that an artifact takes: those that the exporter compared it at, an engine its own.
std::vector<Size> sizes_of(const Manifest& manifest, const Artifact& artifact) {
  std::vector<Size> found;
  if (artifact.kind == "onnx") {
    for (const ParityEntry& each : manifest.parity)
      if (each.artifact == artifact.path) {
        if (!artifact.takes(each.resolution))
          throw BundleError("the manifest compares " + artifact.path + " at " + text_of(each.resolution) +
                            ", which it says that it does not take.");
        found.push_back(each.resolution);
      }
  } else {
    found = artifact.resolutions;
  }
  std::vector<Size> once;
  for (const Size size : found)
    if (std::find(once.begin(), once.end(), size) == once.end()) once.push_back(size);
  return once;
}

// Those of the artifact; an engine that the exporter could not run has those of the graphs that it was built from.
Limits limits_of(const Manifest& manifest, const Artifact& artifact) {
  const ParityEntry* found = nullptr;
  for (const ParityEntry& each : manifest.parity)
    if (found == nullptr || (each.artifact == artifact.path && found->artifact != artifact.path)) found = &each;
  if (found == nullptr) throw BundleError("the manifest holds no tolerance for " + artifact.path + ".");
  return found->limits;
}

// What the exporter filled for a few tokens, in the golden files of its newer releases: filled here it is the same to
// the bit.
void compare_positions(const std::vector<Buffer>& filled, const Golden& golden, Comparison row,
                       std::vector<Comparison>& rows) {
  for (const Buffer& each : filled) {
    if (!golden.has("filled." + each.name) || each.bytes == 0) continue;
    const Safetensors::Array& theirs = golden["filled." + each.name];
    const Safetensors::Array& chosen = golden["filled." + each.name + ".at"];
    const bool tables = each.shape.size() == 4;  // (tables, tokens, heads, pairs), or (patches, width)
    const std::size_t groups = tables ? static_cast<std::size_t>(each.shape[0]) : 1;
    const auto tokens = static_cast<std::size_t>(each.shape[tables ? 1 : 0]);
    const std::size_t bytes = each.bytes / groups / tokens, count = chosen.bytes / sizeof(std::int64_t);
    if (chosen.dtype != "I64" || theirs.dtype != dtype_of(each.type) || theirs.bytes != groups * count * bytes)
      golden.refuse("its " + each.name + " does not fit " + row.artifact);
    std::vector<std::byte> ours;
    for (std::size_t group = 0; group < groups; ++group)
      for (std::size_t at = 0; at < count; ++at) {
        const auto token = number_at<std::int64_t>(chosen.data, at);
        if (token < 0 || static_cast<std::size_t>(token) >= tokens)
          golden.refuse("its " + each.name + " is of a token " + std::to_string(token) + ", which there is not");
        const auto* from =
            static_cast<const std::byte*>(each.data) + (group * tokens + static_cast<std::size_t>(token)) * bytes;
        ours.insert(ours.end(), from, from + bytes);
      }
    const std::size_t numbers = ours.size() / size_of(each.type);
    Comparison& made = rows.emplace_back(row);
    made.output = each.name + " (filled)";
    made.relative_limit = 0;
    made.cosine_limit = 1;
    compare(doubles(ours.data(), each.type, numbers), doubles(theirs.data, each.type, numbers), 1, made);
  }
}

// One run of a batch; the last one begins again where the samples run out.
void compare_at(Runner& runner, const std::filesystem::path& bundle, const Artifact& artifact, Size size,
                std::size_t batch, Limits limits, bool first, std::vector<Comparison>& rows) {
  const Golden golden(bundle, artifact, size);
  const std::size_t samples = golden.samples(), runs = (samples + batch - 1) / batch;
  std::vector<Buffer> outputs;
  std::vector<std::vector<double>> ours, theirs, expected;
  for (const ArrayEntry& each : artifact.outputs) {
    const Buffer& output = outputs.emplace_back(sized(each, artifact, size, batch));
    expected.push_back(golden.expected(artifact, outputs.size() - 1, output.bytes / size_of(output.type) / batch));
  }
  ours.resize(outputs.size());
  theirs.resize(outputs.size());

  Buffer image = sized_images(artifact, size, batch);
  Block images;
  images.resize(image.bytes);
  image.data = images.data();
  const Positions positions = positions_of(bundle, artifact, size);
  std::vector<Buffer> inputs{image};
  inputs.insert(inputs.end(), positions.buffers.begin(), positions.buffers.end());
  std::vector<Block> memory(outputs.size());
  for (std::size_t output = 0; output < outputs.size(); ++output) {
    memory[output].resize(outputs[output].bytes);
    outputs[output].data = memory[output].data();
  }
  const std::unique_ptr<Context> context = runner.bind(inputs, outputs);

  const std::size_t one = image.bytes / batch;
  for (std::size_t run = 0; run < runs; ++run) {
    const auto sample = [&](std::size_t at) { return (run * batch + at) % samples; };
    for (std::size_t at = 0; at < batch; ++at)
      std::memcpy(images.data() + at * one, golden.images().data + sample(at) * one, one);
    context->run();
    for (std::size_t output = 0; output < outputs.size(); ++output) {
      const std::size_t count = outputs[output].bytes / size_of(outputs[output].type), width = count / batch;
      const std::vector<double> answer = doubles(outputs[output].data, outputs[output].type, count);
      ours[output].insert(ours[output].end(), answer.begin(), answer.end());
      for (std::size_t at = 0; at < batch; ++at) {
        const auto from = expected[output].begin() + static_cast<std::ptrdiff_t>(sample(at) * width);
        theirs[output].insert(theirs[output].end(), from, from + static_cast<std::ptrdiff_t>(width));
      }
    }
  }
  Comparison row;
  row.artifact = artifact.path;
  row.runtime = runner.describe();
  row.size = size;
  row.batch = batch;
  row.relative_limit = limits.relative;
  row.cosine_limit = limits.cosine;
  for (std::size_t output = 0; output < outputs.size(); ++output) {
    Comparison& made = rows.emplace_back(row);
    made.output = outputs[output].name;
    compare(ours[output], theirs[output], runs * batch, made);
  }
  if (first) compare_positions(positions.buffers, golden, row, rows);
}

void compare_artifact(Runner& runner, const std::filesystem::path& bundle, const Manifest& manifest,
                      const Artifact& artifact, std::vector<Comparison>& rows) {
  const Limits limits = limits_of(manifest, artifact);
  for (const Size size : sizes_of(manifest, artifact)) {
    const BatchRange range = artifact.batch;
    const std::size_t samples = Golden(bundle, artifact, size).samples();
    std::set<std::size_t> batches{range.min, std::min(std::max(range.min, samples), range.max)};
    if (range.min == range.max) batches = {range.min};
    for (const std::size_t batch : batches)
      compare_at(runner, bundle, artifact, size, batch, limits, batch == *batches.begin(), rows);
  }
}

}  // namespace

Verification verify(const std::filesystem::path& bundle, const std::string& backend, Options options) {
  const Manifest manifest = read_manifest(bundle);
  check_files(bundle, manifest);
  std::vector<const Artifact*> chosen;
  if (backend.empty()) {
    for (const Artifact& each : manifest.artifacts) chosen.push_back(&each);
  } else {  // engines or IR of its kind; where there are none, the graphs but those for another runtime
    for (const Artifact& each : manifest.artifacts)
      if (each.kind == backend) chosen.push_back(&each);
    if (chosen.empty()) chosen = artifacts_of(manifest, backend, bundle);
    const auto foreign = [&](const Artifact* each) {
      const std::vector<std::string> taken = forms(backend, each->precision, options.device);
      return std::find(taken.begin(), taken.end(), each->form) == taken.end();
    };
    chosen.erase(std::remove_if(chosen.begin(), chosen.end(), foreign), chosen.end());
  }
  Verification found;
  for (const Artifact* artifact : chosen) {
    options.backend = !backend.empty() ? backend : artifact->kind == "onnx" ? "onnxruntime" : artifact->kind;
    std::unique_ptr<Runner> runner;
    try {
      runner = load_runner(bundle, *artifact, options);
    } catch (const GraphError&) {  // a graph is for every machine, an engine for its own
      throw;
    } catch (const BackendError& error) {
      if (!backend.empty()) throw BackendError(artifact->path + ": not run here: " + error.what());
      found.not_run.push_back({artifact->path, error.what()});
      continue;
    }
    compare_artifact(*runner, bundle, manifest, *artifact, found.comparisons);
  }
  return found;
}

}  // namespace ropevit
