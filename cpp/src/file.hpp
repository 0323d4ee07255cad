// Files that somebody else wrote.
#pragma once

#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>

namespace ropevit {

// Throws BundleError for what is no file: to open a stranger's pipe would wait for ever, and a device has no end.
void require_file(const std::filesystem::path& path);

// A file open for reading. Throws BundleError.
class File {
 public:
  explicit File(const std::filesystem::path& path);
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  // So many bytes, fewer only at the end.
  std::size_t read(char* to, std::size_t bytes);
  int descriptor() const { return descriptor_; }
  std::size_t size() const { return size_; }

 private:
  std::filesystem::path path_;
  int descriptor_;
  std::size_t size_ = 0;
};

// All of a file of at most so many bytes. Throws BundleError.
std::string read_file(const std::filesystem::path& path, std::size_t most);

// A file's bytes where the system has them: it takes memory for what is looked at, however large the file is.
class MappedFile {
 public:
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::string_view content() const { return {static_cast<const char*>(data_), size_}; }

 private:
  std::size_t size_;
  void* data_ = nullptr;
};

}  // namespace ropevit
