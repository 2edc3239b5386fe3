// Calls that make, change, remove and list names.
#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>

#include "differential/step.h"

namespace vremote::differential {
namespace {

// The slot has this descriptor from now on.
std::string held(const Side& side, size_t slot, int fd) {
  int& before = (*side.slots)[slot];
  if (before >= 0) ::close(before);
  before = fd;
  return "ok";
}

std::string listing(int fd) {
  DIR* dir = ::fdopendir(fd);
  if (dir == nullptr) {
    const std::string why = outcome(-1);
    ::close(fd);
    return why;
  }
  std::vector<std::string> names;
  errno = 0;
  // Whether a removed directory still lists itself is each file system's own.
  while (const dirent* entry = ::readdir(dir))
    if (std::string_view(entry->d_name) != "." && std::string_view(entry->d_name) != "..")
      names.push_back(fmt::format("{}:{}", entry->d_name, static_cast<int>(entry->d_type)));
  const std::string end = errno == 0 ? "" : outcome(-1);
  ::closedir(dir);
  std::sort(names.begin(), names.end());
  return fmt::format("{} {}", fmt::join(names, " "), end);
}

Step open_step(Draw& draw) {
  const size_t slot = draw.slot();
  const std::string name = draw.odd_name();
  int flags = draw.one_of({O_RDONLY, O_RDONLY, O_WRONLY, O_RDWR, O_RDWR});
  if (draw.chance(60)) flags |= O_CREAT;
  if (draw.chance(15)) flags |= O_EXCL;
  if (draw.chance(20)) flags |= O_TRUNC;
  if (draw.chance(20)) flags |= O_APPEND;
  if (draw.chance(10)) flags |= O_NOFOLLOW;
  if (draw.chance(15)) flags |= O_DIRECTORY;
  if (draw.chance(7)) flags |= O_PATH;
  if (draw.chance(7)) flags |= O_SYNC;
  // Until Linux 6.4 the two together made a file.
  if ((flags & O_CREAT) != 0) flags &= ~O_DIRECTORY;
  flags |= O_NONBLOCK;  // it may be a FIFO
  const uint32_t mode = draw.mode();
  return {fmt::format("slot {} = open({}, {:#o}, {:#o})", slot, name, flags, mode),
          [=](const Side& side) {
            // Devices cannot be opened on the mount (nodev), and FIFOs are each node's own.
            struct stat st {};
            if (::stat(side.at(name).c_str(), &st) == 0 &&
                (S_ISCHR(st.st_mode) || S_ISFIFO(st.st_mode)))
              return std::string("left out");
            const int fd = ::open(side.at(name).c_str(), flags | O_CLOEXEC, mode);
            return fd < 0 ? outcome(fd) : held(side, slot, fd);
          },
          {name}};
}

// A file without a name, and a name for what a descriptor stands for.
Step tmp_file_step(Draw& draw) {
  const size_t slot = draw.slot();
  const std::string name = draw.odd_name();
  if (draw.chance(50)) {
    const int flags = draw.one_of({O_RDONLY, O_WRONLY, O_RDWR, O_RDWR, O_RDWR | O_APPEND}) |
                      (draw.chance(25) ? O_EXCL : 0);
    const uint32_t mode = draw.mode();
    return {fmt::format("slot {} = open({}, O_TMPFILE | {:#o}, {:#o})", slot, name, flags, mode),
            [=](const Side& side) {
              const int fd = ::open(side.at(name).c_str(), O_TMPFILE | flags | O_CLOEXEC, mode);
              return fd < 0 ? outcome(fd) : held(side, slot, fd);
            },
            {name}};
  }
  const bool by_number = draw.chance(50);
  return {fmt::format("linkat(slot {}, {}, {})", slot, name,
                      by_number ? "AT_SYMLINK_FOLLOW" : "AT_EMPTY_PATH"),
          [=](const Side& side) {
            const int fd = side.seen_fd(slot);
            const std::string path = side.beside(slot, name);
            return outcome(by_number
                               ? ::linkat(AT_FDCWD, fmt::format("/proc/self/fd/{}", fd).c_str(),
                                          AT_FDCWD, path.c_str(), AT_SYMLINK_FOLLOW)
                               : ::linkat(fd, "", AT_FDCWD, path.c_str(), AT_EMPTY_PATH));
          },
          {name}};
}

Step open_at_step(Draw& draw) {
  const size_t slot = draw.slot();
  const std::string name = draw.one_of<const char*>({"a", "b", "z", "..", ".", "link", "z/a"});
  const int what = static_cast<int>(draw.random().below(6));
  return {fmt::format("in slot {}: {} {}", slot,
                      std::array{"create", "open", "mkdir", "unlink", "rmdir",
                                 "stat"}[static_cast<size_t>(what)],
                      name),
          [=](const Side& side) {
            int result = -1;
            struct stat st {
            }, root{};
            // Above the tree they are not the same.
            if (name == ".." && ::fstat(side.fd(slot), &st) == 0 &&
                ::stat(side.beside(slot, ".").c_str(), &root) == 0 && st.st_ino == root.st_ino)
              return std::string("left out");
            switch (what) {
              case 0:
              case 1:
                // As in open_step().
                if (::fstatat(side.fd(slot), name.c_str(), &st, 0) == 0 &&
                    (S_ISCHR(st.st_mode) || S_ISFIFO(st.st_mode)))
                  return std::string("left out");
                result = ::openat(
                    side.fd(slot), name.c_str(),
                    (what == 0 ? O_CREAT | O_EXCL | O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK,
                    0644);
                if (result >= 0) result = ::close(result);
                break;
              case 2:
                result = ::mkdirat(side.fd(slot), name.c_str(), 0755);
                break;
              case 3:
              case 4:
                result = ::unlinkat(side.fd(slot), name.c_str(), what == 4 ? AT_REMOVEDIR : 0);
                break;
              default:
                result = ::fstatat(side.fd(slot), name.c_str(), &st, AT_SYMLINK_NOFOLLOW);
                return fmt::format("{} {:o} {}", outcome(result), st.st_mode, st.st_nlink);
            }
            return outcome(result);
          },
          {}};
}

Step list_step(Draw& draw) {
  const size_t slot = draw.slot();
  const std::string name = draw.name();
  const bool by_slot = draw.chance(50);
  return {by_slot ? fmt::format("list slot {}", slot) : fmt::format("list {}", name),
          [=](const Side& side) {
            if (!by_slot) {
              const int fd = ::open(side.at(name).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
              return fd < 0 ? outcome(-1) : listing(fd);
            }
            if (side.fd(slot) < 0) return std::string("EBADF");
            const int fd = ::fcntl(side.fd(slot), F_DUPFD_CLOEXEC, 0);
            ::lseek(fd, 0, SEEK_SET);
            return listing(fd);
          },
          {}};
}

Step make_node_step(Draw& draw) {
  const std::string name = draw.odd_name();
  const mode_t mode = draw.mode() | draw.one_of<mode_t>({S_IFIFO, S_IFREG, S_IFSOCK, S_IFCHR, 0});
  return {fmt::format("mknod({}, {:#o})", name, mode),
          [=](const Side& side) {
            return outcome(::mknod(side.at(name).c_str(), mode, makedev(1, 3)));
          },
          {name}};
}

Step rename_step(Draw& draw) {
  const std::string from = draw.odd_name(), to = draw.odd_name();
  const unsigned flags = draw.one_of({0u, 0u, 0u, 0u, 1u, 2u, 3u, 8u});
  return {fmt::format("renameat2({}, {}, {})", from, to, flags),
          [=](const Side& side) {
            return outcome(::syscall(SYS_renameat2, AT_FDCWD, side.at(from).c_str(), AT_FDCWD,
                                     side.at(to).c_str(), flags));
          },
          {from, to}};
}

Step link_step(Draw& draw) {
  const std::string from = draw.odd_name(), to = draw.odd_name();
  const int flags = draw.one_of({0, 0, AT_SYMLINK_FOLLOW});
  return {fmt::format("linkat({}, {}, {})", from, to, flags),
          [=](const Side& side) {
            return outcome(
                ::linkat(AT_FDCWD, side.at(from).c_str(), AT_FDCWD, side.at(to).c_str(), flags));
          },
          {from, to}};
}

Step symlink_step(Draw& draw) {
  const std::string name = draw.odd_name();
  const std::string target =
      draw.one_of<const char*>({"a", "b", "x", "../a", "none", "link", "x/z", "./y/../a", ""});
  return {
      fmt::format("symlink({}, {})", target, name),
      [=](const Side& side) { return outcome(::symlink(target.c_str(), side.at(name).c_str())); },
      {name}};
}

Step read_link_step(Draw& draw) {
  const std::string name = draw.odd_name();
  const size_t room = draw.one_of<size_t>({100, 3, 1, 0});
  return {fmt::format("readlink({}, {})", name, room),
          [=](const Side& side) {
            char text[128] = {};
            const ssize_t n = ::readlink(side.at(name).c_str(), text, room);
            return outcome(n) + " " + text;
          },
          {}};
}

}  // namespace

Step draw_name_step(Draw& draw) {
  const std::string name = draw.odd_name();
  const uint32_t mode = draw.mode();
  switch (draw.random().below(16)) {
    case 0:
    case 1:
    case 2:
      return open_step(draw);
    case 3:
      return {fmt::format("mkdir({}, {:#o})", name, mode),
              [=](const Side& side) { return outcome(::mkdir(side.at(name).c_str(), mode)); },
              {name}};
    case 4:
      return {fmt::format("rmdir({})", name),
              [=](const Side& side) { return outcome(::rmdir(side.at(name).c_str())); },
              {name}};
    case 5:
      return {fmt::format("unlink({})", name),
              [=](const Side& side) { return outcome(::unlink(side.at(name).c_str())); },
              {name}};
    case 6:
    case 7:
      return rename_step(draw);
    case 8:
      return link_step(draw);
    case 9:
      return symlink_step(draw);
    case 10:
      return read_link_step(draw);
    case 11:
      return make_node_step(draw);
    case 12:
      return list_step(draw);
    case 13:
    case 14:
      return tmp_file_step(draw);
    default:
      return open_at_step(draw);
  }
}

}  // namespace vremote::differential
