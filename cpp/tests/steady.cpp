// In the steady state a run allocates nothing beside what the runtime itself allocates, on arrays and on pictures.
#include <onnxruntime_c_api.h>

#include <dlfcn.h>

#include <cstring>
#include <filesystem>
#include <vector>

#include "check.hpp"
#include "ropevit/ropevit.hpp"

namespace {
thread_local long allocations = 0;  // of this thread: runtimes have some of their own, which look after themselves
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool counted = false;  // sanitizers have an allocator of their own
#else
constexpr bool counted = true;
extern "C" {
void* __libc_malloc(std::size_t size);
void* __libc_calloc(std::size_t count, std::size_t size);
void* __libc_realloc(void* old, std::size_t size);
void* __libc_memalign(std::size_t alignment, std::size_t size);
void* malloc(std::size_t size) { return ++allocations, __libc_malloc(size); }
void* calloc(std::size_t count, std::size_t size) { return ++allocations, __libc_calloc(count, size); }
void* realloc(void* old, std::size_t size) { return ++allocations, __libc_realloc(old, size); }
void* memalign(std::size_t alignment, std::size_t size) { return ++allocations, __libc_memalign(alignment, size); }
void* aligned_alloc(std::size_t alignment, std::size_t size) { return ++allocations, __libc_memalign(alignment, size); }
int posix_memalign(void** made, std::size_t alignment, std::size_t size) {
  *made = (++allocations, __libc_memalign(alignment, size));
  return *made == nullptr ? 12 : 0;
}
}
#endif

namespace {

using namespace ropevit;

// Allocations a call, after some that warm up.
template <class Call>
double allocations_of(Call call) {
  for (int warm_up = 0; warm_up < 20; ++warm_up) call();
  const long before = allocations;
  constexpr int calls = 100;
  for (int at = 0; at < calls; ++at) call();
  return static_cast<double>(allocations - before) / calls;
}

// The same graph in a bare session with the same settings, everything bound once.
double runtimes_own(const std::string& graph, std::vector<float>& image, std::vector<float>& logits) {
  void* library = dlopen(environment("ROPEVIT_ONNXRUNTIME").c_str(), RTLD_NOW);
  CHECK(library != nullptr);
  const auto base = reinterpret_cast<const OrtApiBase* (*)()>(dlsym(library, "OrtGetApiBase"))();
  const OrtApi* api = base->GetApi(16);
  const auto check = [&](OrtStatus* status) { CHECK(status == nullptr); };
  OrtEnv* env = nullptr;
  OrtSessionOptions* options = nullptr;
  OrtSession* session = nullptr;
  OrtMemoryInfo* host = nullptr;
  OrtValue *input = nullptr, *output = nullptr;
  check(api->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "bare", &env));
  check(api->CreateSessionOptions(&options));
  check(api->SetIntraOpNumThreads(options, 1));
  check(api->CreateSession(env, graph.c_str(), options, &session));
  check(api->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &host));
  const std::int64_t image_shape[] = {1, 3, 32, 32}, logits_shape[] = {1, static_cast<std::int64_t>(logits.size())};
  check(api->CreateTensorWithDataAsOrtValue(host, image.data(), image.size() * 4, image_shape, 4,
                                            ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &input));
  check(api->CreateTensorWithDataAsOrtValue(host, logits.data(), logits.size() * 4, logits_shape, 2,
                                            ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &output));
  const char *from = "image", *to = "logits";
  return allocations_of([&] { check(api->Run(session, nullptr, &from, &input, 1, &to, 1, &output)); });
}

}  // namespace

int main() {
  const std::filesystem::path bundle = std::filesystem::path(environment("ROPEVIT_TEST_CASES")) / "baked" / "bundle";
  Options options;
  options.threads = 1;
  const Model model(bundle, options);
  const Size size = model.sizes().front();
  CHECK((size == Size{32, 32}));
  std::vector<float> image(model.input_bytes(size) / sizeof(float), 0.5F);
  Answers answers;
  const Batch batch{image.data(), DataType::float32, 1, size};
  model.run(batch, answers);
  std::vector<float> logits(answers[0].bytes / sizeof(float));
  const std::string served = model.describe(size), graph = served.substr(served.rfind(' ') + 1);
  const double own = runtimes_own((bundle / graph).string(), image, logits);
  CHECK(std::memcmp(logits.data(), answers[0].data, answers[0].bytes) == 0);

  const double of_arrays = allocations_of([&] { model.run(batch, answers); });
  std::vector<std::uint8_t> picture(480 * 640 * 3, 100);
  const Pixels pixels{picture.data(), 480, 640};
  const double of_pictures = allocations_of([&] { model.run(&pixels, 1, size, answers); });
  const double of_preparing = allocations_of([&] { model.prepare(pixels, size, image.data()); });
  std::printf("allocations a run: %.2f by the runtime alone, %.2f on arrays, %.2f on pictures, %.2f to prepare one\n",
              own, of_arrays, of_pictures, of_preparing);
  if (!counted) return 0;
  CHECK(own > 0);  // the count is on
  CHECK(of_arrays == own);
  CHECK(of_pictures == own);
  CHECK(of_preparing == 0);
}
