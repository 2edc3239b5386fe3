#include "base/durable_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

namespace vremote {
namespace {

std::unexpected<Error> failed(const std::string& what) {
  const int code = errno;
  return fail(code, what + ": " + std::strerror(code));
}

}  // namespace

Status write_all(const Fd& fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd.get(), bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail(errno, std::strerror(errno));
    bytes.remove_prefix(static_cast<size_t>(n));
  }
  return {};
}

Status replace_soon(const std::string& path, std::string_view text) {
  const std::string fresh = path + ".new";
  const Fd fd(::open(fresh.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!fd.valid()) return failed(fresh);
  if (const auto written = write_all(fd, text); !written)
    return fail(written.error().code, fresh + ": " + written.error().what);
  if (::fdatasync(fd.get()) != 0 || ::rename(fresh.c_str(), path.c_str()) != 0) return failed(path);
  return {};
}

Status replace_durably(const std::string& path, std::string_view text) {
  VR_TRY_VOID(replace_soon(path, text));
  return sync_directory_of(path);
}

Status sync_directory_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  const std::string directory = slash == std::string::npos ? "." : path.substr(0, slash + 1);
  const Fd dir(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!dir.valid() || ::fsync(dir.get()) != 0) return failed(directory);
  return {};
}

}  // namespace vremote
