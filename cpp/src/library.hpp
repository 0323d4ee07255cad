// Runtimes are loaded when they are asked for: one binary runs with many releases of each, and where one is missing the
// others work.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace ropevit {

// A shared library; it stays loaded, because runtimes don't bear being unloaded.
class Library {
 public:
  // `given`: the file that the options name; empty: that of the environment variable, else the first of `names` that
  // the system's loader finds. Throws BackendError whose text ends in `cure`, what to install.
  Library(const std::string& runtime, const std::filesystem::path& given, const char* variable,
          const std::vector<std::string>& names, const std::string& cure);

  const std::string& path() const { return path_; }

  template <class Function>
  Function symbol(const char* name) const {
    return reinterpret_cast<Function>(address(name));
  }

 private:
  void* address(const char* name) const;  // throws BackendError

  std::string runtime_;
  std::string path_;
  void* handle_ = nullptr;
};

}  // namespace ropevit
