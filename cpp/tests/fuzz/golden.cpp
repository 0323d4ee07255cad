// A golden file of a bundle with position inputs, replayed by `verify` on the engine that is made up.
#include <string>
#include <vector>

#include "../../src/sha256.hpp"
#include "../check.hpp"
#include "fuzz.hpp"

namespace {

namespace fs = std::filesystem;

// Of 4x4 pixels: 2x2 patches behind one token.
constexpr const char* plan =
    "sm 89\n"
    "input image float32 1 2 3 3 4 4 4 4;\n"
    "input cos float32 1 1 5 5 1 1 2 2;\n"
    "input sin float32 1 1 5 5 1 1 2 2;\n"
    "input pos_embed float32 4 4 2 2;\n"
    "output logits float32 5\n";

std::string manifest(const fs::path& bundle) {
  const auto sha = [&](const char* name) { return ropevit::sha256_of(bundle / name); };
  return R"({"schema_version": 1, "model": "m", "classes": 5, "weights": {"trained": false},
      "preprocess": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic", "crop": 1.0,
                     "layout": "NCHW", "dtype": "float32"},
      "artifacts": [{"kind": "tensorrt", "path": "model.engine", "sha256": ")" +
         sha("model.engine") + R"(", "resolutions": [[4, 4]], "batch": {"min": 1, "opt": 1, "max": 2},
      "precision": "fp32",
      "inputs": [{"name": "image", "dtype": "float32", "shape": ["batch", 3, 4, 4]},
                 {"name": "cos", "dtype": "float32", "shape": [1, "tokens", 1, 2]},
                 {"name": "sin", "dtype": "float32", "shape": [1, "tokens", 1, 2]},
                 {"name": "pos_embed", "dtype": "float32", "shape": ["patches", 2]}],
      "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", 5]}],
      "files": [{"kind": "positions", "path": "positions.safetensors", "sha256": ")" +
         sha("positions.safetensors") + R"("}], "built_with": "a test", "targets": ["89"],
      "dynamic": {"max": [4, 4], "multiple": 2, "patch": 2, "prefix": 1}}],
      "parity": [{"artifact": "model.engine", "resolution": [4, 4],
                  "tolerance": {"relative": 1e-5, "cosine": 0.999}}],
      "files": [{"kind": "golden", "path": "golden-4.safetensors", "sha256": ")" +
         sha("golden-4.safetensors") + R"("}]})";
}

std::string positions() {
  std::string header = "{", values;
  for (const char* name : {"cos_x", "sin_x", "cos_y", "sin_y", "pos_embed"}) {
    const bool table = std::string(name) != "pos_embed";
    const std::vector<float> numbers(table ? 4 : 2, 0.5F);
    const std::size_t begin = values.size();
    values.append(reinterpret_cast<const char*>(numbers.data()), numbers.size() * sizeof(float));
    header += std::string(header.size() > 1 ? ", \"" : "\"") + name + R"(": {"dtype": "F32", "shape": )" +
              (table ? "[1, 2, 1, 2]" : "[1, 1, 2]") + R"(, "data_offsets": [)" + std::to_string(begin) + ", " +
              std::to_string(values.size()) + "]}";
  }
  header += "}";
  std::string length(8, '\0');
  length[0] = static_cast<char>(header.size() & 255);
  length[1] = static_cast<char>(header.size() >> 8);
  return length + header + values;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace ropevit;
  static const fs::path bundle = [] {
    const std::string filled = positions();
    fs::create_directory(fuzz::folder() / "bundle");
    fuzz::write(fuzz::folder() / "bundle" / "model.engine", plan, std::string(plan).size());
    fuzz::write(fuzz::folder() / "bundle" / "positions.safetensors", filled.data(), filled.size());
    return fuzz::folder() / "bundle";
  }();
  fuzz::write(bundle / "golden-4.safetensors", data, size);
  const std::string text = manifest(bundle);
  fuzz::write(bundle / "manifest.json", text.data(), text.size());
  Options options;
  options.library = environment("FAKE_GPU");
  try {
    const Verification found = verify(bundle, "tensorrt", options);
    CHECK(found.not_run.empty());
  } catch (const BundleError&) {
  }
  return 0;
}
