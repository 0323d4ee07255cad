// example BUNDLE: what a bundle that ropevit-export wrote answers to a picture.
#include <cstdio>
#include <ropevit/ropevit.hpp>

int main(int, char** arguments) try {
  const ropevit::Model model(arguments[1]);
  const std::vector<std::uint8_t> grey(480 * 640 * 3, 128);  // a camera's picture: rows of RGB, 8 bits each
  ropevit::Answers answers;                                  // kept, so that further runs allocate nothing
  model.run({grey.data(), 480, 640}, answers);
  const float* numbers = answers[0].as<float>();
  std::printf("%s: %zu bytes of %s, the first is %g\n", model.name().c_str(), answers[0].bytes, answers[0].name.c_str(),
              static_cast<double>(numbers[0]));
} catch (const std::exception& error) {
  std::fprintf(stderr, "error: %s\n", error.what());
  return 1;
}
