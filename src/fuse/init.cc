#include "fuse/init.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>

namespace vremote::fuse {
namespace {

// Without these the kernel's cache cannot be kept coherent, or requests do not have the form we
// decode. All are older than kProtocolMinorMin.
constexpr uint64_t kRequired = FUSE_ASYNC_READ | FUSE_BIG_WRITES | FUSE_MAX_PAGES |
                               FUSE_EXPLICIT_INVAL_DATA | FUSE_ATOMIC_O_TRUNC | FUSE_POSIX_LOCKS |
                               FUSE_FLOCK_LOCKS;

// Taken when the kernel has them. READDIRPLUS tells us when a program will look at the files it
// lists. The lock flags above stay set although a lock may be refused: left out, the kernel would
// grant locks on its own, and every node would get its own. POSIX_ACL: without it the kernel stores
// access control lists and obeys none; it forgets them with the attributes
// (fuse_reverse_inval_inode).
constexpr uint64_t kOptional = FUSE_PARALLEL_DIROPS | FUSE_DO_READDIRPLUS | FUSE_READDIRPLUS_AUTO |
                               FUSE_INIT_EXT | FUSE_HANDLE_KILLPRIV_V2 | kInitHasResend |
                               kInitHasExpireOnly | FUSE_ABORT_ERROR | FUSE_POSIX_ACL;

// Left out on purpose, each for what it would do:
//   WRITEBACK_CACHE       dirty pages nobody was asked about; sizes decided by the kernel
//   AUTO_INVAL_DATA       drops pages by guessing from mtime
//   ASYNC_DIO             direct calls would fill the background queue a write-back needs (K7)
//   NO_OPEN(DIR)_SUPPORT  we must see every open (K2)
//   PASSTHROUGH           reads and writes past us
//   REQUEST_TIMEOUT       a request may wait for a lease as long as it takes
//   HANDLE_KILLPRIV       its first version strips bits it must not
//   CACHE_SYMLINKS, OVER_IO_URING, SETXATTR_EXT  not built

void describe_lacks(const Capabilities& can, const InitOptions& options, uint64_t offered,
                    std::vector<std::string>& lacks) {
  if (!can.direct_io_allow_mmap) {
    lacks.emplace_back((offered & kInitDirectIoAllowMmap) != 0 && !options.allow_mmap
                           ? "Shared writable mappings are refused: before Linux 6.16 a purge may "
                             "return with a write-back "
                             "still on its way."
                           : "Shared writable mappings are refused: the kernel has no "
                             "DIRECT_IO_ALLOW_MMAP (Linux 6.6).");
  }
  if (!can.resend) {
    lacks.emplace_back(
        "A restarted daemon cannot take over requests in progress, they fail: the kernel has no "
        "HAS_RESEND (Linux 6.9).");
  }
  if (!can.expire_only) {
    lacks.emplace_back(
        "Invalidating a name also unmounts what is mounted on it: the kernel has no "
        "HAS_EXPIRE_ONLY (Linux 6.2).");
  }
  if (!can.inc_epoch) {
    lacks.emplace_back(
        "Names of a contended directory cannot be dropped without its lock and are not cached: the "
        "kernel "
        "has no NOTIFY_INC_EPOCH (Linux 6.16).");
  }
  if (!can.handle_killpriv_v2) {
    lacks.emplace_back(
        "Every write asks for file capabilities first, which is slow: the kernel has no "
        "HANDLE_KILLPRIV_V2 "
        "(Linux 5.11).");
  }
  if (can.max_pages < kMaxPages) {
    lacks.push_back(fmt::format("Transfers are limited to {} KiB: fs.fuse.max_pages_limit is {}.",
                                can.max_pages * 4, options.max_pages_limit));
  }
}

}  // namespace

Result<Negotiation> negotiate(const Init& init, const InitOptions& options) {
  Negotiation result;
  fuse_init_out& reply = result.reply;
  reply.major = kProtocolMajor;
  reply.minor = kProtocolMinor;
  if (init.major > kProtocolMajor) {
    result.again = true;
    return result;
  }
  if (init.major < kProtocolMajor || init.minor < kProtocolMinorMin) {
    return fail(
        EPROTO,
        fmt::format(
            "the kernel speaks FUSE {}.{}, at least {}.{} is needed: use Linux 5.4 or newer",
            init.major, init.minor, kProtocolMajor, kProtocolMinorMin));
  }
  if ((init.flags & kRequired) != kRequired) {
    return fail(
        EPROTO,
        fmt::format(
            "the kernel's FUSE {}.{} offers flags {:#x} and lacks {:#x}: use a newer kernel",
            init.major, init.minor, init.flags, kRequired & ~init.flags));
  }

  uint64_t flags = kRequired | (init.flags & kOptional);
  if (options.allow_mmap) flags |= init.flags & kInitDirectIoAllowMmap;
  // The high half is read only with INIT_EXT.
  if ((flags & FUSE_INIT_EXT) == 0) flags &= 0xffff'ffff;

  Capabilities& can = result.capabilities;
  can.minor = std::min(init.minor, kProtocolMinor);
  can.max_pages = std::clamp(options.max_pages_limit, 1u, kMaxPages);
  can.max_write = can.max_pages * 4096;
  // Not init.max_readahead: that is only the default of the bdi, which is raised later
  // (Mount::set_read_ahead()).
  can.max_read_ahead = std::min(options.max_readahead, can.max_write);
  can.direct_io_allow_mmap = (flags & kInitDirectIoAllowMmap) != 0;
  can.resend = (flags & kInitHasResend) != 0;
  can.expire_only = (flags & kInitHasExpireOnly) != 0;
  can.inc_epoch = init.minor >= 44;
  can.handle_killpriv_v2 = (flags & FUSE_HANDLE_KILLPRIV_V2) != 0;
  can.abort_error = (flags & FUSE_ABORT_ERROR) != 0;
  describe_lacks(can, options, init.flags, result.lacks);

  reply.minor = can.minor;
  reply.max_readahead = can.max_read_ahead;
  reply.flags = static_cast<uint32_t>(flags);
  reply.flags2 = static_cast<uint32_t>(flags >> 32);
  reply.max_background = options.max_background;
  reply.congestion_threshold = options.max_background;
  reply.max_write = can.max_write;
  reply.time_gran = 1;
  reply.max_pages = static_cast<uint16_t>(can.max_pages);
  return result;
}

}  // namespace vremote::fuse
