#pragma once

#include <filesystem>
#include <string>

namespace ropevit {

// The SHA-256 (FIPS 180-4) of a file's bytes in hexadecimal digits. Throws BundleError.
std::string sha256_of(const std::filesystem::path& path);

}  // namespace ropevit
