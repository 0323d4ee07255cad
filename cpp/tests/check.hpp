// Tests are programs: each says what it compared, and leaves with 1 at the first thing that is wrong.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>

#define CHECK(condition)                                                                 \
  do {                                                                                   \
    if (!(condition)) {                                                                  \
      std::fprintf(stderr, "%s:%d: %s does not hold\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                                      \
    }                                                                                    \
  } while (false)

// `call` must throw `Exception` with a text that holds `wanted`.
template <class Exception, class Call>
void check_throws(Call call, const std::string& wanted) {
  try {
    call();
  } catch (const Exception& error) {
    if (std::string(error.what()).find(wanted) != std::string::npos) return;
    std::fprintf(stderr, "the error was: %s\n        needed: %s\n", error.what(), wanted.c_str());
    std::exit(1);
  }
  std::fprintf(stderr, "there was no error, needed: %s\n", wanted.c_str());
  std::exit(1);
}

inline std::string environment(const char* name) {
  const char* value = std::getenv(name);
  if (value == nullptr || *value == '\0') {
    std::fprintf(stderr, "%s is not set: tests/cpp_cases.py says what it is.\n", name);
    std::exit(1);
  }
  return value;
}
