// Engines, on a GPU and a TensorRT that are made up (stub/fake.cpp): the shapes, profiles, addresses, streams and
// errors that this library asks of them and makes of their answers.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <thread>
#include <vector>

#include "../src/artifact.hpp"
#include "../src/machine.hpp"
#include "../src/sha256.hpp"
#include "check.hpp"
#include "ropevit/ropevit.hpp"

namespace {

using namespace ropevit;
namespace fs = std::filesystem;

constexpr const char* plan =
    "sm 89\n"
    "input image float32 1 2 3 3 32 32 32 32;1 4 3 3 32 32 64 64;\n"
    "output logits float32 5\n";

std::string manifest(const std::string& kind, const std::string& type, const std::string& sha = std::string(64, '0'),
                     int classes = 5) {
  const std::string artifact =
      R"({"kind": ")" + kind + R"(", "path": "model.engine", "sha256": ")" + sha +
      R"(", "resolutions": [[32, 32], [32, 64]], "batch": {"min": 1, "opt": 1, "max": 4}, "precision": "fp32",
      "inputs": [{"name": "image", "dtype": "float32", "shape": ["batch", 3, "height", "width"]}],
      "outputs": [{"name": "logits", "dtype": ")" +
      type + R"(", "shape": ["batch", )" + std::to_string(classes) + R"(]}],
      "built_with": "a test", "targets": ["89"], "dynamic": {"max": [32, 64], "multiple": 16, "patch": 16}})";
  return R"({"schema_version": 1, "model": "m", "classes": 5, "weights": {"trained": false}, "files": [], "parity": [],
      "preprocess": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic", "crop": 1.0,
      "layout": "NCHW", "dtype": "float32"}, "artifacts": [)" +
         artifact + "]}";
}

void write(const fs::path& path, const std::string& text) { std::ofstream(path, std::ios::binary) << text; }

void test(const std::string& backend, const fs::path& bundle) {
  write(bundle / "manifest.json", manifest(backend, "float32"));
  write(bundle / "model.engine", plan);
  Options options;
  options.backend = backend;
  options.library = environment("FAKE_GPU");
  const Model model(bundle, options);
  CHECK(model.describe({32, 64}).find(backend == "tensorrt" ? "TensorRT 10.13.0, SM 89"
                                                            : "TensorRT-RTX 10.13.0, SM 89") == 0);

  // The second profile, a batch of four.
  const std::vector<float> images(4 * 3 * 32 * 64, 1.0F);
  Answers answers;
  model.run(Batch{images.data(), DataType::float32, 4, {32, 64}}, answers);
  CHECK(answers[0].as<float>()[0] == 4 * 3 * 32 * 64);
  CHECK(answers["logits"].as<float>()[4] == 5.0F * 4 * 3 * 32 * 64);
  // The first one, many callers at once.
  std::atomic<int> right{0};
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 4; ++thread)
    threads.emplace_back([&, thread] {
      const std::vector<float> own(3 * 32 * 32, static_cast<float>(thread));
      Answers answer;
      for (int call = 0; call < 100; ++call) {
        model.run(Batch{own.data(), DataType::float32, 1, {32, 32}}, answer);
        if (answer[0].as<float>()[0] == static_cast<float>(thread * 3 * 32 * 32)) ++right;
      }
    });
  for (std::thread& each : threads) each.join();
  CHECK(right == 400);

  // On the GPU's own memory, in the caller's stream.
  int stream = 0;
  DeviceSession session = model.on_device({32, 64}, 2, &stream);
  CHECK((session.outputs()[0].shape == std::vector<std::int64_t>{2, 5}));
  std::vector<float> logits(10);
  session.run(images.data(), {logits.data()});
  CHECK(logits[1] == 2.0F * 2 * 3 * 32 * 64);
  check_throws<InputError>([&] { session.run(images.data(), {}); }, "0 places for answers were given");

  check_throws<InputError>(
      [&] {
        model.run(Batch{images.data(), DataType::float32, 1, {16, 32}}, answers);
      },
      "no graph for 16x32: the bundle serves 32x32, 32x64");
  check_throws<InputError>(
      [&] {
        model.run(Batch{images.data(), DataType::float32, 5, {32, 64}}, answers);
      },
      "a batch of 5 was given, model.engine takes 1 to 4");
  check_throws<BackendError>(
      [&] {
        model.run(Batch{images.data(), DataType::float32, 4, {32, 32}}, answers);
      },
      "model.engine has no profile for image (4, 3, 32, 32); it takes (1, 3, 32, 32) to (2, 3, 32, 32)");

  const auto load = [&] { Model loaded(bundle, options); };
  write(bundle / "model.engine", "sm 90\n");
  check_throws<BackendError>(load,
                             "can't load model.engine on SM 89; it was built with a test for SM 89: the engine was "
                             "built for another compute capability");
  write(bundle / "manifest.json", manifest(backend, "float32", sha256_of(bundle / "model.engine")));
  check_throws<BackendError>([&] { verify(bundle, backend, options); }, "model.engine: not run here: TensorRT");
  write(bundle / "model.engine", "not a plan");
  check_throws<BackendError>(load, "the plan's header is wrong");
  write(bundle / "model.engine", "sm 89\ninput other float32 1 2;\noutput logits float32 5\n");
  check_throws<BackendError>(load, "model.engine has no input image, which the manifest lists");
  write(bundle / "model.engine", plan);
  write(bundle / "manifest.json", manifest(backend, "float16"));
  check_throws<BackendError>(load, "model.engine has logits in float32, the manifest says float16");
  write(bundle / "manifest.json", manifest(backend, "float32", std::string(64, '0'), 6));
  check_throws<BundleError>(
      [&] {
        Model(bundle, options).run(Batch{images.data(), DataType::float32, 1, {32, 32}}, answers);
      },
      "model.engine gives logits of shape (1, 5), the manifest says (1, 6)");
  write(bundle / "manifest.json", manifest(backend == "tensorrt" ? "tensorrt-rtx" : "tensorrt", "float32"));
  check_throws<BundleError>(
      load, "holds no " + backend + " artifact for " + backend + ": export it with --engine " + backend);
  write(bundle / "manifest.json", manifest(backend, "float32"));
  setenv("FAKE_NO_GPU", "1", 1);
  check_throws<BackendError>(load, "no GPU can be used: no CUDA-capable device is detected (CUDA error 100)");
  unsetenv("FAKE_NO_GPU");
  options.library = "/nowhere/libnvinfer.so";
  check_throws<BackendError>(load, "can't be loaded (/nowhere/libnvinfer.so");
}

}  // namespace

// As `backends/select.py` has it.
void choose_forms() {
  using Names = std::vector<std::string>;
  CHECK((forms("onnxruntime", "int8", "") == Names{"onnxruntime", "portable"}));
  CHECK((forms("onnxruntime-cuda", "fp16", "") == Names{"onnxruntime", "portable"}));
  CHECK((forms("onnxruntime-cuda", "int8", "") == Names{"portable"}));  // the 8-bit form is for a CPU's kernels
  CHECK((forms("onnxruntime-tensorrt", "fp16", "") == Names{"portable"}));
  const Names all{"openvino", "openvino-avx2", "portable"}, avx2{"openvino-avx2", "openvino", "portable"};
  const Names features = this_machine().features;
  const auto has = [&](const char* name) { return std::count(features.begin(), features.end(), name) != 0; };
  CHECK((forms("openvino", "fp32", "") == (has("avx2") && !has("avx512f") ? avx2 : all)));
  CHECK((forms("openvino", "fp32", "GPU") == all));
}

int main() {
  choose_forms();
  char folder[] = "/tmp/ropevit-engine-XXXXXX";
  const fs::path bundle = mkdtemp(folder);
  setenv("XDG_CACHE_HOME", (bundle / "cache").c_str(), 1);
  fs::create_directory(bundle / "bundle");
  for (const char* backend : {"tensorrt", "tensorrt-rtx"}) test(backend, bundle / "bundle");
  CHECK(!fs::is_empty(bundle / "cache" / "ropevit-export"));  // kernels that TensorRT-RTX compiled
  fs::remove_all(bundle);
  std::printf("both libraries, as declared\n");
}
