// Run a bundle on pictures: the largest logits, or features as .npy files.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <numeric>

#include "arguments.hpp"
#include "npy.hpp"
#include "picture.hpp"

namespace {

constexpr const char* help =
    "usage: ropevit-run BUNDLE IMAGE... [options]\n"
    "\n"
    "The five largest logits of each JPEG or PNG; every other output is written as IMAGE.OUTPUT.npy.\n"
    "\n"
    "  --size N|HxW   default: the first that the bundle was made for\n"
    "  --out DIR      where .npy files go, logits among them; default: the working directory, without logits\n"
    "  --top K        how many logits; default 5\n"
    "  --bench [--runs N]   time N runs (default 50) of the first image, and its preparation, in milliseconds\n"
    "  --backend B    onnxruntime (default), onnxruntime-cuda, onnxruntime-tensorrt, openvino, tensorrt, "
    "tensorrt-rtx;\n"
    "                 auto: as `ropevit-export tune` found fastest on this machine\n"
    "  --library FILE the runtime's shared library, where the loader does not find it\n"
    "  --device D     of OpenVINO, or the number of the GPU\n"
    "  --threads N    that a run is spread over on a CPU\n"
    "  --compute P    in OpenVINO: f32 or bf16, whatever the graph's precision\n"
    "\n"
    "Exit codes: 0 good, 1 something failed, 2 usage.\n";

double value(const ropevit::Tensor& tensor, std::size_t at) {
  if (tensor.type == ropevit::DataType::float32) return static_cast<double>(tensor.as<float>()[at]);
  throw ropevit::InputError("logits are " + std::string(ropevit::name_of(tensor.type)) +
                            ", which are not printed: take --out DIR, which writes them.");
}

void print_top(const std::string& image, const ropevit::Tensor& logits, int top) {
  const auto classes = static_cast<std::size_t>(logits.shape.back());
  std::vector<std::size_t> order(classes);
  std::iota(order.begin(), order.end(), std::size_t{0});
  const auto count = std::min(static_cast<std::size_t>(top), classes);
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(count), order.end(),
                    [&](std::size_t a, std::size_t b) { return value(logits, a) > value(logits, b); });
  for (std::size_t at = 0; at < count; ++at)
    std::printf("%s: class %zu, logit %.4f\n", image.c_str(), order[at], value(logits, order[at]));
}

template <class Call>
void time_of(const char* what, int runs, Call call) {
  using Clock = std::chrono::steady_clock;
  for (int warm_up = 0; warm_up < 3; ++warm_up) call();
  std::vector<double> times;
  for (int run = 0; run < runs; ++run) {
    const auto start = Clock::now();
    call();
    times.push_back(std::chrono::duration<double, std::milli>(Clock::now() - start).count());
  }
  std::sort(times.begin(), times.end());
  const auto at = [&](double share) { return times[static_cast<std::size_t>(share * static_cast<double>(runs - 1))]; };
  std::printf("%-8s %d runs, ms: min %.3f, p50 %.3f, p90 %.3f, p99 %.3f, max %.3f\n", what, runs, at(0), at(0.5),
              at(0.9), at(0.99), at(1));
}

void bench(const ropevit::Model& model, const ropevit::Picture& picture, ropevit::Size size, int runs) {
  if (runs < 1) throw ropevit::UsageError("--runs must be at least 1.");
  const std::size_t count = model.smallest_batch(size);
  std::vector<unsigned char> images(model.input_bytes(size) * count);
  time_of("prepare", runs, [&] { model.prepare(picture.pixels(), size, images.data()); });
  for (std::size_t at = 1; at < count; ++at)
    std::copy_n(images.begin(), model.input_bytes(size),
                images.begin() + static_cast<std::ptrdiff_t>(at * model.input_bytes(size)));
  ropevit::Answers answers;
  const ropevit::Batch batch{images.data(), model.input().type, count, size};
  time_of("run", runs, [&] { model.run(batch, answers); });
}

void run(const ropevit::Arguments& arguments) {
  const ropevit::Options options = ropevit::options_of(arguments);
  if (arguments.plain.size() < 2)
    throw ropevit::UsageError("give a bundle's folder and at least one image; --help says more.");
  const ropevit::Model model(arguments.plain.front(), options);
  const ropevit::Size size = arguments.size("--size", model.sizes().front());
  const std::filesystem::path out = arguments.text("--out", ".");
  std::fprintf(stderr, "%s%s\n", model.describe(size).c_str(), model.trained() ? "" : ", UNTRAINED weights");
  if (arguments.has("--bench")) {
    bench(model, ropevit::read_picture(arguments.plain[1]), size, arguments.number("--runs", 50));
    return;
  }
  ropevit::Answers answers;
  for (std::size_t at = 1; at < arguments.plain.size(); ++at) {
    const std::string& image = arguments.plain[at];
    const ropevit::Picture picture = ropevit::read_picture(image);
    // A graph that takes no single image is fed the same one several times.
    const std::vector<ropevit::Pixels> batch(model.smallest_batch(size), picture.pixels());
    model.run(batch.data(), batch.size(), size, answers);
    for (std::size_t output = 0; output < answers.size(); ++output) {
      const ropevit::Tensor& answer = answers[output];
      if (answer.name == "logits" && !arguments.has("--out")) {
        print_top(image, answer, arguments.number("--top", 5));
        continue;
      }
      std::filesystem::create_directories(out);
      const std::filesystem::path path =
          out / (std::filesystem::path(image).filename().string() + "." + answer.name + ".npy");
      ropevit::write_npy(path, answer);
      std::printf("%s\n", path.c_str());
    }
  }
}

}  // namespace

int main(int count, char** texts) {
  try {
    const ropevit::Arguments arguments(
        count, texts,
        {"--backend", "--library", "--device", "--threads", "--compute", "--size", "--out", "--top", "--runs"},
        {"--help", "--bench"});
    if (arguments.has("--help")) {
      std::fputs(help, stdout);
      return ropevit::good;
    }
    run(arguments);
    return ropevit::good;
  } catch (const ropevit::UsageError& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return ropevit::usage;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return ropevit::failed;
  }
}
