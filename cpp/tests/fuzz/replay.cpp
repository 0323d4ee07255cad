// Runs a fuzz test on every file of the folders that are named: what once went wrong, and files of each kind.
#include <cstdio>
#include <iterator>
#include <string>

#include "fuzz.hpp"

int main(int count, char** arguments) {
  int files = 0;
  for (int at = 1; at < count; ++at)
    for (const auto& each : std::filesystem::directory_iterator(arguments[at])) {
      std::ifstream stream(each.path(), std::ios::binary);
      const std::string content(std::istreambuf_iterator<char>(stream), {});
      LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(content.data()), content.size());
      ++files;
    }
  std::filesystem::remove_all(fuzz::folder());
  std::printf("%d files\n", files);
  return files == 0 ? 1 : 0;
}
