// Calls that hardly a program makes.
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <vector>

#include "base/fd.h"
#include "differential/step.h"

namespace vremote::differential {
namespace {

// Those that older headers do not have (Linux 6.9, 6.11).
constexpr int kNoAppend = 0x20, kAtomic = 0x40;
constexpr long kFchmodat2 = 452;  // 6.6

bool appends(int fd) {
  const int flags = ::fcntl(fd, F_GETFL);
  return flags >= 0 && (flags & O_APPEND) != 0;
}

bool is_regular(int fd) {
  struct stat st {};
  return ::fstat(fd, &st) == 0 && S_ISREG(st.st_mode);
}

// Without RWF_NOWAIT (promise.md, Limits).
Step flagged_read_step(Draw& draw, size_t slot) {
  const int64_t offset = draw.odd_size();
  const size_t length = draw.size() % 9000;
  const int flags = draw.one_of({0, RWF_HIPRI, RWF_DSYNC, RWF_SYNC, 1 << 20});
  return {fmt::format("preadv2(slot {}, {} at {}, {:#x})", slot, length, offset, flags),
          [=](const Side& side) {
            if (offset == -1 && !is_regular(side.fd(slot))) return std::string("left out");
            std::string text(length, '\0');
            iovec part{text.data(), length};
            const ssize_t n = ::preadv2(side.fd(slot), &part, 1, offset, flags);
            const std::string result = outcome(n);
            text.resize(n > 0 ? static_cast<size_t>(n) : 0);
            return result + " " + quoted(text);
          },
          {}};
}

Step flagged_write_step(Draw& draw, size_t slot) {
  const std::string text = draw.bytes();
  const int64_t offset = draw.odd_size();
  const int flags =
      draw.one_of({RWF_HIPRI, RWF_DSYNC, RWF_SYNC, RWF_APPEND, kNoAppend, kAtomic, 1 << 20});
  return {fmt::format("pwritev2(slot {}, {} at {}, {:#x})", slot, quoted(text), offset, flags),
          [=](const Side& side) {
            // Both are decided by the kernel alone: an append on a descriptor without O_APPEND, and
            // a write that is none on one with it (promise.md, Limits).
            if (flags == kNoAppend && appends(side.fd(slot))) return std::string("left out");
            iovec part{const_cast<char*>(text.data()), text.size()};
            const std::string result =
                outcome(::pwritev2(side.seen_fd(slot), &part, 1, offset, flags));
            if (appends(side.fd(slot))) ::lseek(side.fd(slot), 0, SEEK_SET);
            return result;
          },
          {}};
}

Step advice_step(Draw& draw, size_t slot) {
  const int64_t offset = draw.odd_size();
  const auto length = static_cast<off_t>(draw.size());
  const int advice = draw.one_of({POSIX_FADV_NORMAL, POSIX_FADV_SEQUENTIAL, POSIX_FADV_RANDOM,
                                  POSIX_FADV_NOREUSE, POSIX_FADV_WILLNEED, POSIX_FADV_DONTNEED, 9});
  const bool ahead = draw.chance(30);
  return {ahead ? fmt::format("readahead(slot {}, {}, {})", slot, offset, length)
                : fmt::format("posix_fadvise(slot {}, {}, {}, {})", slot, offset, length, advice),
          [=](const Side& side) {
            if (ahead)
              return outcome(::readahead(side.fd(slot), offset, static_cast<size_t>(length)));
            errno = ::posix_fadvise(side.fd(slot), offset, length, advice);
            return outcome(errno == 0 ? 0 : -1);
          },
          {}};
}

Step sync_step(Draw& draw, size_t slot) {
  const int64_t offset = draw.odd_size();
  const auto length = static_cast<off_t>(draw.size());
  const unsigned flags = draw.one_of({0u, 1u, 2u, 4u, 7u, 8u});
  switch (draw.random().below(3)) {
    case 0:
      return {fmt::format("syncfs(slot {})", slot),
              [=](const Side& side) { return outcome(::syncfs(side.fd(slot))); },
              {}};
    case 1:
      return {fmt::format("fdatasync(slot {})", slot),
              [=](const Side& side) { return outcome(::fdatasync(side.fd(slot))); },
              {}};
    default:
      return {fmt::format("sync_file_range(slot {}, {}, {}, {})", slot, offset, length, flags),
              [=](const Side& side) {
                return outcome(::sync_file_range(side.fd(slot), offset, length, flags));
              },
              {}};
  }
}

Step chmod_at_step(Draw& draw, size_t slot) {
  const std::string name = draw.odd_name();
  const uint32_t mode = draw.mode();
  const bool by_slot = draw.chance(50);
  const int flags =
      by_slot ? AT_EMPTY_PATH : draw.one_of({0, AT_SYMLINK_NOFOLLOW, AT_EMPTY_PATH, 1 << 20});
  return {fmt::format("fchmodat2({}, {:#o}, {:#x})", by_slot ? fmt::format("slot {}", slot) : name,
                      mode, flags),
          [=](const Side& side) {
            return outcome(::syscall(kFchmodat2, by_slot ? side.seen_fd(slot) : AT_FDCWD,
                                     by_slot ? "" : side.at(name).c_str(), mode, flags));
          },
          {name}};
}

// A handle opens what it was made of. (It is good on its node, as long as the kernel has the
// inode.)
Step handle_step(Draw& draw) {
  const std::string name = draw.odd_name();
  const int flags = draw.one_of({0, AT_SYMLINK_FOLLOW, AT_EMPTY_PATH});
  return {fmt::format("open_by_handle_at(name_to_handle_at({}, {:#x}))", name, flags),
          [=](const Side& side) {
            if (name.empty()) return std::string("left out");  // the working directory
            const Fd file(::open(side.at(name).c_str(), O_PATH | O_NOFOLLOW | O_CLOEXEC));
            std::vector<std::byte> room(sizeof(file_handle) + MAX_HANDLE_SZ);
            auto* handle = reinterpret_cast<file_handle*>(room.data());
            handle->handle_bytes = MAX_HANDLE_SZ;
            int mount = 0;
            if (::name_to_handle_at(AT_FDCWD, side.at(name).c_str(), handle, &mount, flags) != 0)
              return outcome(-1);
            const Fd root(::open(side.root.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
            const Fd again(::open_by_handle_at(root.get(), handle, O_PATH | O_CLOEXEC));
            if (!again.valid()) return "handle " + outcome(-1);
            struct stat by_name {
            }, by_handle{};
            ::fstat(file.get(), &by_name);
            ::fstat(again.get(), &by_handle);
            const bool same = flags == AT_SYMLINK_FOLLOW || by_name.st_ino == by_handle.st_ino;
            return fmt::format("handle {} {:o}", same, by_handle.st_mode);
          },
          {}};
}

// Of a file from itself: descriptors of two mounts are of two file systems to the kernel.
Step clone_step(size_t slot) {
  return {fmt::format("ioctl(slot {}, FICLONE, slot {})", slot, slot),
          [=](const Side& side) { return outcome(::ioctl(side.fd(slot), FICLONE, side.fd(slot))); },
          {}};
}

constexpr unsigned kStats = STATX_BASIC_STATS | STATX_BTIME;

Step statx_step(Draw& draw, size_t slot) {
  const std::string name = draw.odd_name();
  const bool by_slot = draw.chance(30);
  const int flags = draw.one_of({AT_STATX_SYNC_AS_STAT, AT_STATX_FORCE_SYNC, AT_SYMLINK_NOFOLLOW,
                                 AT_STATX_FORCE_SYNC | AT_STATX_DONT_SYNC});
  return {fmt::format("statx({}, {:#x})", by_slot ? fmt::format("slot {}", slot) : name, flags),
          [=](const Side& side) {
            struct statx st {};
            const int result = by_slot
                                   ? ::statx(side.fd(slot), "", AT_EMPTY_PATH | flags, kStats, &st)
                                   : ::statx(AT_FDCWD, side.at(name).c_str(), flags, kStats, &st);
            const bool sized = !S_ISDIR(st.stx_mode);
            return fmt::format("{} {:o} {} {}:{} {}", outcome(result), st.stx_mode, st.stx_nlink,
                               st.stx_uid, st.stx_gid, sized ? st.stx_size : 0);
          },
          {}};
}

}  // namespace

Step draw_other_step(Draw& draw) {
  const size_t slot = draw.slot();
  const int access = draw.one_of({F_OK, R_OK, W_OK, X_OK});
  switch (draw.random().below(12)) {
    case 0:
    case 1:
      return flagged_read_step(draw, slot);
    case 2:
    case 3:
    case 4:
      return flagged_write_step(draw, slot);
    case 5:
      return advice_step(draw, slot);
    case 6:
      return sync_step(draw, slot);
    case 7:
      return chmod_at_step(draw, slot);
    case 8:
      return handle_step(draw);
    case 9:
      return clone_step(slot);
    case 10:
      return {fmt::format("faccessat2(slot {}, {}, AT_EMPTY_PATH)", slot, access),
              [=](const Side& side) {
                return outcome(::syscall(SYS_faccessat2, side.fd(slot), "", access, AT_EMPTY_PATH));
              },
              {}};
    default:
      return statx_step(draw, slot);
  }
}

}  // namespace vremote::differential
