// The seccomp filter of `vremote run`: which calls of CMD stop for the supervisor.
//
//   open, openat     with O_REMOTE among their flags: USER_NOTIF; without: allowed, at full speed
//   openat2          allowed: a filter cannot see its flags, but the kernel refuses the bit
//   (EINVAL) creat            allowed: it has no flags io_uring_setup   ENOSYS unless told
//   otherwise: opens through a ring pass by every filter
//
// for each of the kernel's ABIs: a 64-bit kernel also serves 32-bit programs, whose call numbers
// differ. A call of an ABI we do not know gets ENOSYS, for it might be an open.
//
// From the moment the supervisor has received a trapped call only a fatal signal ends its wait
// (WAIT_KILLABLE_RECV). In the microseconds before, a signal makes the call start again, or fail
// with EINTR when its handler has no SA_RESTART: a local open never does that, one on a network
// may.
#pragma once

#include <linux/filter.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "base/fd.h"
#include "base/result.h"

struct seccomp_data;

namespace vremote::intercept {

std::vector<sock_filter> build_trap_filter(bool allow_io_uring);

// The arguments of a trapped call.
struct TrappedOpen {
  bool relative_to_fd = false;  // openat: `directory` counts
  int directory = 0;
  uint64_t path = 0;  // an address in the caller
  uint32_t flags = 0;
  uint32_t mode = 0;
};
// Nothing when it is no call the filter traps.
std::optional<TrappedOpen> decode_trap(const seccomp_data& data);

struct InstalledFilter {
  Fd listener;
  bool wait_killable =
      true;  // false before Linux 5.19: a periodic signal may then starve a slow open
  bool no_new_privileges = false;  // had to be set: setuid programs get no privileges
};
// Installs it in the calling thread, for good. EBUSY when a listener is there already.
Result<InstalledFilter> install_trap_filter(bool allow_io_uring);

}  // namespace vremote::intercept
