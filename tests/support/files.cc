#include "support/files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace vremote::live {

Fd open_at(const std::string& path, int flags, unsigned mode) {
  return Fd(::open(path.c_str(), flags | O_CLOEXEC, mode));
}

std::string read_all(const std::string& path) {
  Fd fd = open_at(path, O_RDONLY);
  if (!fd.valid()) return std::string("no ") + std::strerror(errno);
  std::string text;
  std::string chunk(1 << 17, '\0');
  for (;;) {
    const ssize_t n = ::read(fd.get(), chunk.data(), chunk.size());
    if (n < 0) return std::string("unreadable: ") + std::strerror(errno);
    if (n == 0) return text;
    text.append(chunk, 0, static_cast<size_t>(n));
  }
}

int write_at(const Fd& fd, uint64_t offset, std::string_view content) {
  const ssize_t n = ::pwrite(fd.get(), content.data(), content.size(), static_cast<off_t>(offset));
  if (n < 0) return errno;
  return n == static_cast<ssize_t>(content.size()) ? 0 : EIO;
}

int put(const std::string& path, std::string_view content) {
  Fd fd = open_at(path, O_WRONLY | O_CREAT | O_TRUNC);
  if (!fd.valid()) return errno;
  return write_at(fd, 0, content);
}

bool exists(const std::string& path) {
  struct stat st {};
  return ::lstat(path.c_str(), &st) == 0;
}

}  // namespace vremote::live
