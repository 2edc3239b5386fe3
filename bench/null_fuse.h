// A file system that does nothing: what the kernel's side of a FUSE request costs, before anybody
// thinks about it.
#pragma once

#include <sys/types.h>

#include <string>

namespace vremote::bench {

// One file, "file". A process of its own with one thread, blocked in read(2) on /dev/fuse; it
// answers a WRITE at once and drops its bytes. Handles are direct, as those for writing of a real
// node are.
class NullFuse {
 public:
  explicit NullFuse(const std::string& directory);
  ~NullFuse();
  NullFuse(const NullFuse&) = delete;
  NullFuse& operator=(const NullFuse&) = delete;

  std::string file() const { return point_ + "/file"; }

 private:
  std::string point_;
  pid_t process_ = -1;
};

}  // namespace vremote::bench
