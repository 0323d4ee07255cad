// Every case: the answers are the Python runtime's to the bit where the session is the same, and PyTorch's within the
// limits. A case is a folder with a bundle and, in python/, safetensors files BACKEND-SIZE of what Python answered to
// the golden images; in positions/ files ROWSxCOLUMNS of what Python filled for a grid, which are met to the bit too.
#include <cmath>
#include <cstring>
#include <filesystem>
#include <set>

#include "../src/artifact.hpp"
#include "../src/manifest.hpp"
#include "../src/safetensors.hpp"
#include "check.hpp"
#include "ropevit/ropevit.hpp"

namespace {

using namespace ropevit;
namespace fs = std::filesystem;

DataType type_of(const std::string& dtype) {
  if (dtype == "F32") return DataType::float32;
  if (dtype == "F16") return DataType::float16;
  if (dtype == "BF16") return DataType::bfloat16;
  CHECK(dtype == "U8");
  return DataType::uint8;
}

Size size_of_name(const std::string& name) {
  const std::size_t x = name.find('x');
  const int height = std::stoi(name), width = x == std::string::npos ? height : std::stoi(name.substr(x + 1));
  return {height, width};
}

// OpenVINO loads a library of its own in a way that AddressSanitizer forbids.
bool can_run(const std::string& backend) {
#ifdef __SANITIZE_ADDRESS__
  return backend != "openvino";
#else
  return !backend.empty();
#endif
}

void compare_with_python(const fs::path& bundle, const fs::path& file, int threads) {
  const std::string stem = file.stem().string();
  const std::size_t dash = stem.rfind('-');
  Options options;
  options.backend = stem.substr(0, dash);
  if (options.backend == "onnxruntime") options.threads = threads;
  const Size size = size_of_name(stem.substr(dash + 1));
  const Safetensors theirs(file);
  const Safetensors golden(bundle / ("golden-" + stem.substr(dash + 1) + ".safetensors"));
  const Safetensors::Array& image = golden["image"];

  const Model model(bundle, options);
  const std::size_t batch = model.smallest_batch(size);
  Answers answers;
  model.run(Batch{image.data, type_of(image.dtype), batch, size}, answers);
  CHECK(answers.size() == theirs.arrays().size());
  for (std::size_t at = 0; at < answers.size(); ++at) {
    const Tensor& ours = answers[at];
    const Safetensors::Array& wanted = theirs[ours.name];
    CHECK(ours.shape == wanted.shape);
    CHECK(ours.bytes == wanted.bytes);
    CHECK(std::memcmp(ours.data, wanted.data, ours.bytes) == 0);
    std::printf("%s %s %s: %zu bytes are Python's\n", bundle.parent_path().filename().c_str(), stem.c_str(),
                ours.name.c_str(), ours.bytes);
  }
}

// Every grid that the bundle has tables for, from one patch on: embeddings are resized to more patches and to fewer;
// all is rounded to the format that the graph takes.
void compare_positions(const fs::path& bundle, const fs::path& folder) {
  const Manifest manifest = read_manifest(bundle);
  const Artifact& artifact = manifest.artifacts.front();
  std::size_t grids = 0;
  for (const auto& each : fs::directory_iterator(folder)) {
    const Size grid = size_of_name(each.path().stem().string());
    const int patch = artifact.dynamic->patch;
    const Safetensors theirs(each.path());
    const Positions ours = positions_of(bundle, artifact, {grid.height * patch, grid.width * patch});
    CHECK(ours.buffers.size() == theirs.arrays().size());
    for (const Buffer& input : ours.buffers) {
      const Safetensors::Array& wanted = theirs[input.name];
      CHECK(input.shape == wanted.shape);
      CHECK(input.type == type_of(wanted.dtype));
      CHECK(input.bytes == wanted.bytes);
      CHECK(std::memcmp(input.data, wanted.data, wanted.bytes) == 0);
    }
    ++grids;
  }
  CHECK(grids != 0);
  std::printf("%s: positions of %zu grids are Python's\n", bundle.parent_path().filename().c_str(), grids);
}

void compare_with_pytorch(const fs::path& bundle, const std::string& backend, int threads) {
  Options options;
  options.threads = backend == "onnxruntime" ? threads : 0;
  const Verification found = verify(bundle, backend, options);
  CHECK(!found.comparisons.empty());
  bool float32 = true;
  for (const Artifact& each : read_manifest(bundle).artifacts) float32 = float32 && each.precision == "fp32";
  for (const Comparison& each : found.comparisons) {
    std::printf("%s %s %s %s: %.1e of rms, limit %g\n", each.runtime.c_str(), text_of(each.size).c_str(),
                each.artifact.c_str(), each.output.c_str(), each.relative, each.relative_limit);
    CHECK(each.passed());
    if (float32) CHECK(each.relative <= 1e-5);
  }
}

}  // namespace

int main() {
  const fs::path cases = environment("ROPEVIT_TEST_CASES");
  const int threads = std::atoi(environment("ROPEVIT_TEST_THREADS").c_str());
  std::size_t count = 0;
  for (const auto& each : fs::directory_iterator(cases)) {
    if (!fs::is_directory(each.path() / "bundle")) continue;
    std::set<std::string> backends;
    for (const auto& file : fs::directory_iterator(each.path() / "python")) {
      const std::string stem = file.path().stem().string(), backend = stem.substr(0, stem.rfind('-'));
      if (!can_run(backend)) continue;
      compare_with_python(each.path() / "bundle", file.path(), threads);
      backends.insert(backend);
      ++count;
    }
    if (fs::exists(each.path() / "positions")) compare_positions(each.path() / "bundle", each.path() / "positions");
    for (const std::string& backend : backends) compare_with_pytorch(each.path() / "bundle", backend, threads);
  }
  CHECK(count != 0);
  std::printf("%zu comparisons\n", count);
}
