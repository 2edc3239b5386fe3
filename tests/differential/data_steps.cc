// Calls on what files hold, by descriptors that stay open.
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/falloc.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cstring>

#include "differential/step.h"

namespace vremote::differential {
namespace {

off_t size_of(int fd) {
  struct stat st {};
  return ::fstat(fd, &st) == 0 && S_ISREG(st.st_mode) ? st.st_size : -1;
}

// The position after an append is the kernel's guess on the mount (promise.md, Limits).
void settle_position(int fd) {
  const int flags = ::fcntl(fd, F_GETFL);
  if (flags >= 0 && (flags & O_APPEND) != 0) ::lseek(fd, 0, SEEK_SET);
}

Step read_step(Draw& draw, size_t slot) {
  const size_t length = draw.chance(80) ? draw.size() % 20'000 : 0;
  const int64_t offset = draw.odd_size();
  const int how = static_cast<int>(draw.random().below(3));
  return {fmt::format("{}(slot {}, {} at {})",
                      std::array{"read", "pread", "preadv"}[static_cast<size_t>(how)], slot, length,
                      offset),
          [=](const Side& side) {
            std::string text(length, '\0');
            ssize_t n = -1;
            // Where a directory's stream stands is each file system's own.
            if (how == 0 && size_of(side.fd(slot)) < 0) ::lseek(side.fd(slot), 0, SEEK_SET);
            if (how == 0) {
              n = ::read(side.fd(slot), text.data(), length);
            } else if (how == 1) {
              n = ::pread(side.fd(slot), text.data(), length, offset);
            } else {
              iovec parts[2] = {{text.data(), length / 3},
                                {text.data() + length / 3, length - length / 3}};
              n = ::preadv(side.fd(slot), parts, 2, offset);
            }
            const std::string result = outcome(n);
            text.resize(n > 0 ? static_cast<size_t>(n) : 0);
            return result + " " + quoted(text);
          },
          {}};
}

Step write_step(Draw& draw, size_t slot) {
  const std::string text = draw.bytes();
  const int64_t offset = draw.odd_size();
  const int how = static_cast<int>(draw.random().below(3));
  return {fmt::format("{}(slot {}, {} at {})",
                      std::array{"write", "pwrite", "pwritev"}[static_cast<size_t>(how)], slot,
                      quoted(text), offset),
          [=](const Side& side) {
            ssize_t n = -1;
            if (how == 0) {
              n = ::write(side.fd(slot), text.data(), text.size());
            } else if (how == 1) {
              n = ::pwrite(side.fd(slot), text.data(), text.size(), offset);
            } else {
              auto* data = const_cast<char*>(text.data());
              iovec parts[2] = {{data, text.size() / 2},
                                {data + text.size() / 2, text.size() - text.size() / 2}};
              n = ::pwritev(side.fd(slot), parts, 2, offset);
            }
            const std::string result = outcome(n);
            settle_position(side.fd(slot));
            return result;
          },
          {}};
}

// Under RLIMIT_FSIZE: how much is written, and whether the signal comes.
Step limited_write_step(Draw& draw, size_t slot) {
  static volatile sig_atomic_t signals = 0;
  const std::string text = draw.bytes();
  const auto offset = static_cast<off_t>(draw.random().below(12'000));
  return {
      fmt::format("pwrite(slot {}, {} at {}) with RLIMIT_FSIZE 8000", slot, quoted(text), offset),
      [=](const Side& side) {
        // What an append is measured at is the kernel's guess (promise.md).
        const int flags = ::fcntl(side.fd(slot), F_GETFL);
        if (flags >= 0 && (flags & O_APPEND) != 0) return std::string("left out");
        struct sigaction action {
        }, before{};
        action.sa_handler = [](int) { signals = signals + 1; };
        ::sigaction(SIGXFSZ, &action, &before);
        rlimit limit{}, old{};
        ::getrlimit(RLIMIT_FSIZE, &old);
        limit = {8000, old.rlim_max};
        signals = 0;
        ::setrlimit(RLIMIT_FSIZE, &limit);
        const std::string result =
            outcome(::pwrite(side.fd(slot), text.data(), text.size(), offset));
        ::setrlimit(RLIMIT_FSIZE, &old);
        ::sigaction(SIGXFSZ, &before, nullptr);
        return fmt::format("{}, {} signals", result, static_cast<int>(signals));
      },
      {}};
}

// The end of a directory is each file system's own.
Step seek_step(Draw& draw, size_t slot) {
  const int whence = draw.one_of({SEEK_SET, SEEK_CUR, SEEK_END, 17});
  const int64_t offset = draw.one_of<int64_t>({0, 1, -1, 4096, -5000, 100});
  return {fmt::format("lseek(slot {}, {}, {})", slot, offset, whence),
          [=](const Side& side) {
            if (size_of(side.fd(slot)) < 0) return std::string("left out");
            return outcome(::lseek(side.fd(slot), offset, whence));
          },
          {}};
}

// Where data and holes lie is the disk's business; only the ends are the same everywhere.
Step seek_data_step(Draw& draw, size_t slot) {
  const int whence = draw.one_of({SEEK_DATA, SEEK_HOLE});
  const int64_t beyond = draw.one_of<int64_t>({0, 1, 5000, -1});
  return {fmt::format("lseek(slot {}, size + {}, {})", slot, beyond,
                      whence == SEEK_DATA ? "SEEK_DATA" : "SEEK_HOLE"),
          [=](const Side& side) {
            const off_t size = size_of(side.fd(slot));
            if (size < 0) return std::string("left out");
            if (beyond < 0) return outcome(::lseek(side.fd(slot), -1, whence));
            const std::string result = outcome(::lseek(side.fd(slot), size + beyond, whence));
            ::lseek(side.fd(slot), 0, SEEK_SET);
            return result;
          },
          {}};
}

Step allocate_step(Draw& draw, size_t slot) {
  const int mode = draw.one_of({0, FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                FALLOC_FL_ZERO_RANGE, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
                                FALLOC_FL_PUNCH_HOLE, 0x1000});
  const auto offset = draw.chance(95) ? static_cast<int64_t>(draw.size() % 60'000) : -1;
  const auto length = draw.chance(95) ? static_cast<int64_t>(draw.size() % 60'000) : -1;
  return {
      fmt::format("fallocate(slot {}, {:#x}, {}, {})", slot, mode, offset, length),
      [=](const Side& side) { return outcome(::fallocate(side.fd(slot), mode, offset, length)); },
      {}};
}

Step copy_step(Draw& draw, size_t slot) {
  const size_t to = draw.slot();
  const auto from_offset = static_cast<off_t>(draw.size() % 30'000);
  const auto to_offset = static_cast<off_t>(draw.size() % 30'000);
  const size_t length = draw.size() % 30'000;
  const unsigned flags = draw.chance(95) ? 0 : 1;
  return {fmt::format("copy_file_range(slot {} at {}, slot {} at {}, {}, {})", slot, from_offset,
                      to, to_offset, length, flags),
          [=](const Side& side) {
            // Two mounts of one file are two files to the kernel: it does not see that they
            // overlap.
            struct stat here {
            }, there{};
            if (slot != to && ::fstat(side.fd(slot), &here) == 0 &&
                ::fstat(side.fd(to), &there) == 0 && here.st_ino == there.st_ino)
              return std::string("left out");
            off_t in = from_offset, out = to_offset;
            const std::string result = outcome(
                ::copy_file_range(side.seen_fd(slot), &in, side.seen_fd(to), &out, length, flags));
            return fmt::format("{} {} {}", result, in, out);
          },
          {}};
}

Step send_step(Draw& draw, size_t slot) {
  const auto offset = static_cast<off_t>(draw.size() % 30'000);
  const size_t length = draw.random().below(20'000);
  return {fmt::format("sendfile(pipe, slot {} at {}, {})", slot, offset, length),
          [=](const Side& side) {
            int ends[2];
            if (::pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) return std::string("no pipe");
            off_t at = offset;
            std::string got;
            std::string result;
            // In as many pieces as it likes.
            for (size_t left = length; left > 0;) {
              const ssize_t n = ::sendfile(ends[1], side.fd(slot), &at, left);
              if (n < 0) result = outcome(n);
              if (n <= 0) break;
              std::string piece(static_cast<size_t>(n), '\0');
              if (::read(ends[0], piece.data(), piece.size()) != n) result = "short pipe";
              got += piece;
              left -= static_cast<size_t>(n);
            }
            ::close(ends[0]);
            ::close(ends[1]);
            return result + quoted(got);
          },
          {}};
}

Step map_step(Draw& draw, size_t slot) {
  const auto page = static_cast<off_t>(draw.random().below(6));
  const size_t in_page = draw.random().below(4096);
  const bool stores = draw.chance(60);
  const char letter = static_cast<char>('a' + draw.random().below(26));
  const bool is_private = draw.chance(15);
  return {
      fmt::format("{} through a {} mapping of slot {}, page {} byte {}", stores ? "store" : "load",
                  is_private ? "private" : "shared", slot, page, in_page),
      [=](const Side& side) {
        const int fd = side.fd(slot);
        const off_t size = size_of(fd);
        void* at = ::mmap(nullptr, 4096, stores ? PROT_READ | PROT_WRITE : PROT_READ,
                          is_private ? MAP_PRIVATE : MAP_SHARED, fd, page * 4096);
        if (at == MAP_FAILED) return outcome(-1);
        auto* bytes = static_cast<volatile char*>(at);
        std::string result = "behind the end";
        if (page * 4096 + static_cast<off_t>(in_page) < size) {
          result = fmt::format("{:02x}", static_cast<unsigned char>(bytes[in_page]));
          if (stores) bytes[in_page] = letter;
        }
        // Of the new time other nodes hear a second later, or with msync (promise.md).
        if (stores) ::msync(at, 4096, MS_SYNC);
        ::munmap(at, 4096);
        return result;
      },
      {}};
}

// Of the open file: a process that uses two mounts is two to them.
Step lock_step(Draw& draw, size_t slot) {
  const bool whole = draw.chance(30);
  const int how = draw.one_of({F_RDLCK, F_WRLCK, F_UNLCK});
  const auto start = static_cast<off_t>(draw.random().below(100));
  const auto length = static_cast<off_t>(draw.random().below(100));
  // Asking what one holds oneself (F_UNLCK, Linux 6.6) is not for FUSE.
  const int command = how == F_UNLCK ? F_OFD_SETLK : draw.one_of({F_OFD_SETLK, F_OFD_GETLK});
  return {whole ? fmt::format("flock(slot {}, {})", slot, how)
                : fmt::format("fcntl(slot {}, {}, {} {}+{})", slot, command, how, start, length),
          [=](const Side& side) {
            if (whole)
              return outcome(::flock(side.fd(slot), (how == F_RDLCK   ? LOCK_SH
                                                     : how == F_WRLCK ? LOCK_EX
                                                                      : LOCK_UN) |
                                                        LOCK_NB));
            struct flock lock {};
            lock.l_type = static_cast<short>(how);
            lock.l_whence = SEEK_SET;
            lock.l_start = start;
            lock.l_len = length;
            const std::string result = outcome(::fcntl(side.fd(slot), command, &lock));
            // Of several in the way any may be told.
            return fmt::format("{} {}", result, lock.l_type == F_UNLCK ? "free" : "held");
          },
          {}};
}

}  // namespace

Step draw_data_step(Draw& draw) {
  const size_t slot = draw.slot();
  const int64_t size = draw.odd_size();
  switch (draw.random().below(20)) {
    case 0:
    case 1:
    case 2:
      return read_step(draw, slot);
    case 3:
    case 4:
    case 5:
    case 6:
      return write_step(draw, slot);
    case 7:
      return limited_write_step(draw, slot);
    case 8:
      return seek_step(draw, slot);
    case 9:
      return seek_data_step(draw, slot);
    case 10:
    case 11:
      return allocate_step(draw, slot);
    case 12:
      return copy_step(draw, slot);
    case 13:
      return send_step(draw, slot);
    case 14:
    case 15:
      return map_step(draw, slot);
    case 16:
      return lock_step(draw, slot);
    case 17:
      return {fmt::format("fsync(slot {})", slot),
              [=](const Side& side) { return outcome(::fsync(side.fd(slot))); },
              {}};
    case 18:
      if (draw.chance(70)) return map_step(draw, slot);
      return {fmt::format("close(slot {})", slot),
              [=](const Side& side) {
                int& fd = (*side.slots)[slot];
                const std::string result = outcome(::close(fd));
                fd = -1;
                return result;
              },
              {}};
    default:
      return {fmt::format("ftruncate(slot {}, {})", slot, size),
              [=](const Side& side) { return outcome(::ftruncate(side.fd(slot), size)); },
              {}};
  }
}

}  // namespace vremote::differential
