// What the supervisor must know of a trapped thread to open a file in its place. All of it is read
// from /proc and may belong to another process when the thread has died meanwhile: ask the kernel
// whether the notification still stands before using it.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"
#include "intercept/caller_path.h"
#include "intercept/trap_filter.h"

namespace vremote::intercept {

// What permission checks look at.
struct Credentials {
  uid_t fsuid = 0;
  gid_t fsgid = 0;
  std::vector<gid_t> groups;
  uint64_t capabilities =
      0;  // the effective ones; none when they hold in another user namespace than ours
  bool operator==(const Credentials&) const = default;
};

struct Caller {
  View view;
  Credentials credentials;
  mode_t umask = 022;
  uint64_t table_size = 0;  // of its descriptor table, FDSize
};

// The fields of /proc/PID/status used here; an Error (EPROTO) when one is missing.
Result<Caller> parse_status(const std::string& text);

// Errors as the kernel would give the caller: EBADF and ENOTDIR for its dirfd, ENOENT for a removed
// working directory.
Result<Caller> read_caller(pid_t thread, const TrappedOpen& call, bool relative);

// The string at `address`, of at most PATH_MAX bytes with its NUL: EFAULT, ENAMETOOLONG, EPERM
// (with a sentence) where the kernel does not let us look.
Result<std::string> read_string(pid_t thread, uint64_t address);

// Whether the thread's process can take one more descriptor. The kernel checks that before it opens
// (and creates or truncates) a file, but injecting one into another process checks it after.
bool has_room_for_descriptor(pid_t thread, uint64_t table_size);

// Makes the calling thread, not its process, pass for somebody else on the file system; the next
// wear() or bare() undoes it.
class Disguise {
 public:
  Disguise();  // remembers what the thread is
  Disguise(const Disguise&) = delete;
  Disguise& operator=(const Disguise&) = delete;
  Status wear(const Credentials& credentials);
  void bare();

 private:
  Credentials own_;
  uint64_t permitted_ = 0;
  bool worn_ = false;
};

}  // namespace vremote::intercept
