// Does a bundle give PyTorch's answers on this machine? It carries inputs and answers in its golden files.
#include <cstdio>

#include "arguments.hpp"

namespace {

constexpr const char* help =
    "usage: ropevit-verify BUNDLE [--backend B] [--library FILE] [--device D] [--threads N] [--compute P]\n"
    "\n"
    "Hash every file of a bundle, then run it on its golden inputs and compare with PyTorch's answers.\n"
    "\n"
    "  --backend B    only what is for it, and it is an error if that can't run here: onnxruntime,\n"
    "                 onnxruntime-cuda, onnxruntime-tensorrt, openvino, tensorrt, tensorrt-rtx\n"
    "  --library FILE the runtime's shared library, where the loader does not find it\n"
    "  --device D     of OpenVINO, or the number of the GPU\n"
    "  --threads N    that a run is spread over on a CPU\n"
    "  --compute P    in OpenVINO: f32 or bf16, whatever the graph's precision\n"
    "\n"
    "Exit codes: 0 good, 1 a file is not as listed or a run failed, 2 usage, 3 out of tolerance.\n";

int verify(const ropevit::Arguments& arguments) {
  const ropevit::Options options = ropevit::options_of(arguments);
  if (arguments.plain.size() != 1) throw ropevit::UsageError("give one bundle's folder; --help says more.");
  const std::string& bundle = arguments.plain.front();
  const std::string backend = arguments.text("--backend", "");
  if (backend.empty() && arguments.has("--library"))
    throw ropevit::UsageError("--library is a backend's: say which with --backend.");
  const ropevit::Verification found = ropevit::verify(bundle, backend, options);

  std::size_t wrong = 0;
  std::printf("%-28s %-9s %5s  %-14s %9s %9s %12s  %-22s %s\n", "artifact", "size", "batch", "output", "max abs",
              "of rms", "cosine", "limit", "verdict");
  for (const ropevit::Comparison& each : found.comparisons) {
    char size[32], limit[48];
    std::snprintf(size, sizeof size, "%dx%d", each.size.height, each.size.width);
    std::snprintf(limit, sizeof limit, "%g, %.10g", each.relative_limit, each.cosine_limit);
    std::printf("%-28s %-9s %5zu  %-14s %9.1e %9.1e %12.8f  %-22s %s\n", each.artifact.c_str(), size, each.batch,
                each.output.c_str(), each.max_abs, each.relative, each.cosine, limit, each.passed() ? "good" : "WRONG");
    if (each.not_finite != 0) std::printf("  %zu answers are NaN or Inf\n", each.not_finite);
    if (!each.passed()) ++wrong;
  }
  std::string runtime;
  for (const ropevit::Comparison& each : found.comparisons)
    if (runtime != each.artifact + each.runtime) {
      runtime = each.artifact + each.runtime;
      std::printf("%s: run on %s\n", each.artifact.c_str(), each.runtime.c_str());
    }
  for (const ropevit::NotRun& each : found.not_run)
    std::printf("%s: not run here: %s\n", each.artifact.c_str(), each.reason.c_str());
  std::fflush(stdout);
  if (found.comparisons.empty())
    throw ropevit::BackendError(bundle + ": every file is as listed, but nothing of it can be run here.");
  if (wrong != 0) {
    std::fprintf(stderr, "error: %s: %zu of %zu comparisons are out of tolerance.\n", bundle.c_str(), wrong,
                 found.comparisons.size());
    return ropevit::out_of_tolerance;
  }
  std::printf("%s: every file as listed, %zu of %zu comparisons within tolerance, %zu artifacts not run here\n",
              bundle.c_str(), found.comparisons.size(), found.comparisons.size(), found.not_run.size());
  return ropevit::good;
}

}  // namespace

int main(int count, char** texts) {
  try {
    const ropevit::Arguments arguments(count, texts, {"--backend", "--library", "--device", "--threads", "--compute"},
                                       {"--help"});
    if (arguments.has("--help")) {
      std::fputs(help, stdout);
      return ropevit::good;
    }
    return verify(arguments);
  } catch (const ropevit::UsageError& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return ropevit::usage;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return ropevit::failed;
  }
}
