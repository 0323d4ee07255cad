// Many threads, one model: every answer is the one that a single thread gets, to the bit, and memory does not grow.
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <thread>
#include <vector>

#include "../src/safetensors.hpp"
#include "check.hpp"
#include "ropevit/ropevit.hpp"

namespace {

using namespace ropevit;

// Megabytes of this process in memory.
double resident() {
  std::ifstream stream("/proc/self/statm");
  double pages = 0;
  stream >> pages >> pages;
  return pages * static_cast<double>(sysconf(_SC_PAGESIZE)) / 1e6;
}

std::string bytes_of(const Answers& answers) {
  std::string bytes;
  for (std::size_t at = 0; at < answers.size(); ++at)
    bytes.append(static_cast<const char*>(answers[at].data), answers[at].bytes);
  return bytes;
}

}  // namespace

int main() {
  const std::filesystem::path bundle = std::filesystem::path(environment("ROPEVIT_TEST_CASES")) / "inputs" / "bundle";
  const char* asked = std::getenv("ROPEVIT_TEST_CALLS");  // of all threads together
  const int threads = 4, calls = (asked == nullptr ? 400 : std::atoi(asked)) / threads;
  Options options;
  options.threads = 1;
  const Model model(bundle, options);
  // Sizes of as many patches but other tables, in turn, and of another number.
  const std::vector<Size> sizes{{32, 48}, {48, 32}, {32, 32}};
  std::vector<std::vector<float>> images;
  std::vector<std::string> wanted;
  for (const Size size : sizes) {
    std::vector<float>& image = images.emplace_back(model.input_bytes(size) / sizeof(float));
    for (std::size_t at = 0; at < image.size(); ++at) image[at] = static_cast<float>(at % 251) / 125.0F - 1.0F;
    Answers answers;
    model.run(Batch{image.data(), DataType::float32, 1, size}, answers);
    wanted.push_back(bytes_of(answers));
  }
  CHECK(wanted[0] != wanted[1]);

  std::vector<std::uint8_t> picture(61 * 83 * 3);
  for (std::size_t at = 0; at < picture.size(); ++at) picture[at] = static_cast<std::uint8_t>(at * 7);
  const Pixels pixels{picture.data(), 61, 83};
  Answers of_picture;
  model.run(&pixels, 1, sizes[0], of_picture);
  const std::string picture_wanted = bytes_of(of_picture);

  const auto work = [&](int thread, int runs) {
    Answers answers;
    for (int call = 0; call < runs; ++call) {
      const auto which = static_cast<std::size_t>(call + thread) % (sizes.size() + 1);
      if (which == sizes.size()) {
        model.run(&pixels, 1, sizes[0], answers);
        CHECK(bytes_of(answers) == picture_wanted);
      } else {
        model.run(Batch{images[which].data(), DataType::float32, 1, sizes[which]}, answers);
        CHECK(bytes_of(answers) == wanted[which]);
      }
    }
  };
  const auto all = [&](int runs) {
    std::vector<std::thread> started;
    for (int thread = 0; thread < threads; ++thread) started.emplace_back(work, thread, runs);
    for (std::thread& each : started) each.join();
  };
  all(calls / 10);
  const double before = resident();
  all(calls - calls / 10);
  const double after = resident();
  std::printf("%d calls from %d threads, %.1f MB in memory after a tenth of them, %.1f MB at the end\n", calls * threads,
              threads, before, after);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // which keep what was freed, or who touched it
  CHECK(after - before < 4.0);
#endif
}
