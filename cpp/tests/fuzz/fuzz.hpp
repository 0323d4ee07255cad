// What every fuzz test is: a reader of this library on bytes from anywhere. It may throw its own error; anything else,
// sanitizers' findings first, is a fault. With Clang and -DROPEVIT_FUZZ=ON libFuzzer makes the bytes; else `replay.cpp`
// takes the files of corpus/.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>

#include "ropevit/ropevit.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace fuzz {

// A folder for this process; whoever starts it removes TMPDIR.
inline const std::filesystem::path& folder() {
  static const std::filesystem::path made = [] {
    std::string name = (std::filesystem::temp_directory_path() / "ropevit-fuzz-XXXXXX").string();
    return std::filesystem::path(mkdtemp(name.data()));
  }();
  return made;
}

inline void write(const std::filesystem::path& path, const void* data, std::size_t size) {
  std::ofstream(path, std::ios::binary).write(static_cast<const char*>(data), static_cast<std::streamsize>(size));
}

}  // namespace fuzz
