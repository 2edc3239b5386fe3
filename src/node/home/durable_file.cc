#include "node/home/durable_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "base/fd.h"

namespace vremote::node {
namespace {

std::unexpected<Error> failed(const std::string& what) {
  const int code = errno;
  return fail(code, what + ": " + std::strerror(code));
}

}  // namespace

Status replace_soon(const std::string& path, std::string_view text) {
  const std::string fresh = path + ".new";
  Fd fd(::open(fresh.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!fd.valid()) return failed(fresh);
  while (!text.empty()) {
    const ssize_t n = ::write(fd.get(), text.data(), text.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return failed(fresh);
    text.remove_prefix(static_cast<size_t>(n));
  }
  if (::fdatasync(fd.get()) != 0 || ::rename(fresh.c_str(), path.c_str()) != 0) return failed(path);
  return {};
}

Status replace_durably(const std::string& path, std::string_view text) {
  VR_TRY_VOID(replace_soon(path, text));
  const size_t slash = path.rfind('/');
  return sync_directory(slash == std::string::npos ? "." : path.substr(0, slash == 0 ? 1 : slash));
}

Status sync_directory(const std::string& path) {
  const Fd dir(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!dir.valid() || ::fsync(dir.get()) != 0) return failed(path);
  return {};
}

}  // namespace vremote::node
