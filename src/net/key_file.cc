// The file a node keeps its key in.
#include <fcntl.h>
#include <fmt/format.h>
#include <openssl/crypto.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "base/durable_file.h"
#include "base/fd.h"
#include "net/key_ring.h"

namespace vremote::net {
namespace {

constexpr size_t kFileMax = 4096;  // of a line or two

}  // namespace

Result<KeyRing> read_key_file(const std::string& path) {
  // Not held up by a FIFO of that name.
  Fd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  if (!file.valid()) {
    const int code = errno;
    if (code == ENOENT) return fail(ENOENT, fmt::format("{} does not exist", path));
    return fail(code, fmt::format("{}: {}", path, std::strerror(code)));
  }
  struct stat info {};
  if (::fstat(file.get(), &info) != 0)
    return fail(errno, fmt::format("{}: {}", path, std::strerror(errno)));
  if (!S_ISREG(info.st_mode)) return fail(EINVAL, fmt::format("{} is not a regular file", path));
  if ((info.st_mode & 077) != 0)
    return fail(EPERM,
                fmt::format("{} has mode {:04o}: others may read or change the key; type 'chmod "
                            "600 {}', and make a new key if somebody has read it",
                            path, info.st_mode & 07777, path));
  if (info.st_uid != 0 && info.st_uid != ::geteuid())
    return fail(EPERM, fmt::format("{} belongs to user {}, who is neither root nor the node's user "
                                   "{}; type 'chown {} {}'",
                                   path, info.st_uid, ::geteuid(), ::geteuid(), path));
  std::array<char, kFileMax + 1> text;
  const ssize_t n = ::read(file.get(), text.data(), text.size());
  if (n < 0) return fail(errno, fmt::format("{}: {}", path, std::strerror(errno)));
  auto keys = KeyRing::parse(std::string_view(text.data(), static_cast<size_t>(n)));
  OPENSSL_cleanse(text.data(), text.size());
  if (!keys) return fail(keys.error().code, fmt::format("{} {}", path, keys.error().what));
  return keys;
}

Status write_key_file(const std::string& path, const KeyRing& keys) {
  Fd file(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!file.valid()) {
    const int code = errno;
    return fail(code,
                fmt::format("{}: {}", path,
                            code == EEXIST ? "there is a key already; 'vremote cluster renew' "
                                             "changes it while the nodes run; remove it first "
                                             "if it is of no more use"
                                           : std::strerror(code)));
  }
  std::string text = keys.text();
  const ssize_t n = ::write(file.get(), text.data(), text.size());
  const bool whole = n == static_cast<ssize_t>(text.size()) && ::fsync(file.get()) == 0;
  const int code = n < 0 || !whole ? (errno != 0 ? errno : EIO) : 0;
  OPENSSL_cleanse(text.data(), text.size());
  if (whole) return {};
  (void)::unlink(path.c_str());  // half a key is none
  return fail(code, fmt::format("{}: {}", path, std::strerror(code)));
}

Status replace_key_file(const std::string& path, const KeyRing& keys) {
  struct stat old {};
  if (::stat(path.c_str(), &old) != 0)
    return fail(errno, fmt::format("{}: {}", path, std::strerror(errno)));
  const std::string next = path + ".new";
  (void)::unlink(next.c_str());  // of an attempt that was cut off
  VR_TRY_VOID(write_key_file(next, keys));
  if (::chown(next.c_str(), old.st_uid, old.st_gid) == 0 &&
      ::rename(next.c_str(), path.c_str()) == 0) {
    (void)sync_directory_of(path);
    return {};
  }
  const int code = errno;
  (void)::unlink(next.c_str());
  return fail(code, fmt::format("{}: {}", path, std::strerror(code)));
}

}  // namespace vremote::net
