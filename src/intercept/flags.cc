#include "intercept/flags.h"

#include <fcntl.h>

namespace vremote::intercept {
namespace {

// The open flags of the kernel that openat2(2) accepts. O_LARGEFILE is not among them: a 64-bit
// caller of openat2 has it anyway.
constexpr uint32_t kKnown = O_ACCMODE | O_CREAT | O_EXCL | O_NOCTTY | O_TRUNC | O_APPEND |
                            O_NONBLOCK | O_DSYNC | O_SYNC | O_ASYNC | O_DIRECT | O_DIRECTORY |
                            O_NOFOLLOW | O_NOATIME | O_CLOEXEC | O_PATH | O_TMPFILE;
// open() ignores all else beside O_PATH; openat2 refuses it.
constexpr uint32_t kWithPath = O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
constexpr uint32_t kTmpfileBit = O_TMPFILE & ~O_DIRECTORY;

}  // namespace

bool OpenFlags::cloexec() const { return kernel & O_CLOEXEC; }
bool OpenFlags::creates() const { return kernel & (O_CREAT | kTmpfileBit); }
bool OpenFlags::changes() const { return creates() || (kernel & O_TRUNC); }
bool OpenFlags::follows_last() const {
  return !(kernel & O_NOFOLLOW) && (kernel & (O_CREAT | O_EXCL)) != (O_CREAT | O_EXCL);
}

OpenFlags interpret_flags(uint32_t flags) {
  OpenFlags result;
  result.remote = flags & kRemoteFlag;
  if (!result.remote) {
    result.kernel = flags;
    return result;
  }
  result.decimal = (flags & kDecimalOrigin) == kDecimalOrigin;
  result.origin = result.decimal || (flags & kOriginFlag);
  if (result.decimal) flags &= ~kDecimalOrigin;
  flags &= kKnown;
  if (flags & O_PATH) flags &= kWithPath;
  result.kernel = flags;
  return result;
}

uint32_t interpret_mode(const OpenFlags& flags, uint32_t mode) {
  return flags.creates() ? mode & 07777 : 0;
}

}  // namespace vremote::intercept
