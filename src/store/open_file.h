// One file held open: an O_PATH descriptor, and descriptors for its data as they are needed.
#pragma once

#include <sys/stat.h>

#include <atomic>
#include <cstdio>
#include <mutex>

#include "base/attributes.h"
#include "base/fd.h"
#include "base/result.h"

namespace vremote::store {

// The path that names what a descriptor refers to, a symbolic link itself included: for calls that
// do not take O_PATH descriptors.
class ProcPath {
 public:
  explicit ProcPath(int fd) { std::snprintf(text_, sizeof text_, "/proc/self/fd/%d", fd); }
  const char* c_str() const { return text_; }

 private:
  char text_[32];
};

Attributes attributes_of(const struct stat& st);

// Opens what an O_PATH descriptor refers to, without touching its atime later when that is
// permitted.
Result<Fd> reopen(int path, int flags);

// chmod() of what an O_PATH descriptor refers to.
Status change_mode(int path, mode_t mode);

// Thread-safe.
class OpenFile {
 public:
  // `type`: S_IF bits. `writable`: a descriptor open for reading and writing, when there is one.
  OpenFile(Fd path, mode_t type, Fd writable = Fd());

  int path() const { return path_.get(); }
  mode_t type() const { return type_; }
  bool is_directory() const { return type_ == S_IFDIR; }
  bool is_regular() const { return type_ == S_IFREG; }

  // A descriptor to read or write the bytes of a regular file with; EISDIR or EINVAL for others (a
  // device is never opened). It lives as long as this object.
  Result<int> readable();
  Result<int> writable();
  // -1 when readable() would have to open it.
  int readable_if_open() const { return readable_.load(std::memory_order_acquire); }

  Result<struct stat> stat() const;

 private:
  Status check_regular() const;

  const Fd path_;
  const mode_t type_;
  std::mutex mutex_;  // opening
  Fd reading_, writing_;
  std::atomic<int> readable_{-1}, writable_{-1};
};

}  // namespace vremote::store
