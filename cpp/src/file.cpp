#include "file.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>

#include "ropevit/ropevit.hpp"

namespace ropevit {
namespace {

[[noreturn]] void refuse(const std::filesystem::path& path, const std::string& reason) {
  throw BundleError("can't read " + path.string() + ": " + reason + ".");
}

std::string last_reason() { return std::system_category().message(errno); }

void require_file(const std::filesystem::path& path, const struct stat& found) {
  if (S_ISDIR(found.st_mode)) refuse(path, "it is a folder, needs a file");
  if (!S_ISREG(found.st_mode)) refuse(path, "it is a pipe, socket or device, needs a file");
}

}  // namespace

void require_file(const std::filesystem::path& path) {
  struct stat found {};
  if (stat(path.c_str(), &found) != 0) refuse(path, last_reason());
  require_file(path, found);
}

File::File(const std::filesystem::path& path)
    : path_(path), descriptor_(open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC)) {
  if (descriptor_ < 0) refuse(path, last_reason());
  try {
    struct stat found {};
    if (fstat(descriptor_, &found) != 0) refuse(path, last_reason());
    require_file(path, found);
    size_ = static_cast<std::size_t>(found.st_size);
  } catch (...) {
    close(descriptor_);
    throw;
  }
}

File::~File() { close(descriptor_); }

std::size_t File::read(char* to, std::size_t bytes) {
  std::size_t done = 0;
  while (done < bytes) {
    const ssize_t count = ::read(descriptor_, to + done, bytes - done);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) refuse(path_, last_reason());
    if (count == 0) break;
    done += static_cast<std::size_t>(count);
  }
  return done;
}

std::string read_file(const std::filesystem::path& path, std::size_t most) {
  File file(path);
  const auto check = [&](std::size_t bytes) {
    if (bytes > most)
      refuse(path, "it has more than " + std::to_string(most >> 20) + " MB, which is more than any such file needs");
  };
  check(file.size());
  std::string content(file.size() + 1, '\0');  // one more shows whether it grows meanwhile
  content.resize(file.read(content.data(), content.size()));
  check(content.size());
  return content;
}

MappedFile::MappedFile(const std::filesystem::path& path) {
  const File file(path);
  size_ = file.size();
  if (size_ == 0) return;  // nothing to map
  data_ = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.descriptor(), 0);
  if (data_ == MAP_FAILED) refuse(path, last_reason());
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(data_, size_);
}

}  // namespace ropevit
