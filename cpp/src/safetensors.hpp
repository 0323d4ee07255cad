// Safetensors files: golden inputs and answers, and what position inputs are filled from.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "file.hpp"

namespace ropevit {

class Safetensors {
 public:
  struct Array {
    std::string dtype;                // F32, F16, BF16, U8, I64
    std::vector<std::int64_t> shape;  // none of them 0
    const std::byte* data;            // at any address
    std::size_t bytes;
  };

  // Throws BundleError, also for a file that is cut off or whose header lies.
  explicit Safetensors(const std::filesystem::path& path);

  bool has(const std::string& name) const { return arrays_.count(name) != 0; }
  const Array& operator[](const std::string& name) const;  // throws BundleError
  const std::map<std::string, Array>& arrays() const { return arrays_; }

 private:
  std::filesystem::path path_;
  MappedFile file_;
  std::map<std::string, Array> arrays_;
};

}  // namespace ropevit
