// NumPy's file format, version 1.0.
#pragma once

#include <filesystem>

#include "ropevit/ropevit.hpp"

namespace ropevit {

// float32 and float16 as they are; bfloat16, which NumPy has not, as float32. Throws InputError where the file can't be
// written.
void write_npy(const std::filesystem::path& path, const Tensor& tensor);

}  // namespace ropevit
