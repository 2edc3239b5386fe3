// Calls that hardly a program makes: what they give through the mounts, where that is not what the
// differential test compares. What is refused here is in docs/promise.md, Limits.
#include <fcntl.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <signal.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <vector>

#include "posix_support.h"

namespace vremote::live {
namespace {

// Those that older headers do not have.
constexpr int kNoAppend = 0x20, kUncached = 0x80;  // RWF_NOAPPEND, RWF_DONTCACHE
constexpr long kFchmodat2 = 452;
constexpr unsigned kWhiteout = 4;

int write_with(const Fd& fd, const std::string& text, off_t offset, int flags) {
  iovec part{const_cast<char*>(text.data()), text.size()};
  return error_of(::pwritev2(fd.get(), &part, 1, offset, flags));
}
int read_with(const Fd& fd, int flags) {
  char byte = 0;
  iovec part{&byte, 1};
  return error_of(::preadv2(fd.get(), &part, 1, 0, flags));
}
std::string content(const std::string& path) { return read_at(open_at(path, O_RDONLY), 0, 100); }

TEST_F(PosixTest, FlagsOfSingleReadsAndWrites) {
  ASSERT_EQ(0, put(a("f"), "12345678"));
  const Fd fd = open_at(b("f"), O_RDWR), appends = open_at(b("f"), O_WRONLY | O_APPEND);
  for (int flags : {RWF_HIPRI, RWF_DSYNC, RWF_SYNC}) EXPECT_EQ(0, read_with(fd, flags));
  for (int flags : {RWF_HIPRI, RWF_DSYNC, RWF_SYNC}) EXPECT_EQ(0, write_with(fd, "ab", 0, flags));
  EXPECT_EQ("ab345678", content(disk("f"))) << "RWF_SYNC is O_SYNC";
  for (int flags : {RWF_NOWAIT, kUncached}) EXPECT_EQ(EOPNOTSUPP, read_with(fd, flags));
  // The kernel places it, at the end that it knows.
  struct stat st {};
  ASSERT_OK(::fstat(fd.get(), &st));
  EXPECT_EQ(0, write_with(fd, "+", 0, RWF_APPEND));
  EXPECT_EQ("ab345678+", content(c("f")));
  // The kernel does not tell that it is none: it goes to the end.
  if (const int error = write_with(appends, "-", 0, kNoAppend); error == 0) {
    EXPECT_EQ("ab345678+-", content(c("f")));
  } else {
    EXPECT_EQ(EOPNOTSUPP, error) << "before Linux 6.9";
  }
}

TEST_F(PosixTest, WhatTheFileSystemsOwnCallsGive) {
  ASSERT_EQ(0, put(a("f"), "x"));
  ASSERT_EQ(0, put(a("g"), "y"));
  const Fd f = open_at(b("f"), O_RDWR), g = open_at(b("g"), O_RDWR);
  const Fd dir = open_at(b(), O_RDONLY | O_DIRECTORY);
  int number = 0;
  struct fsxattr extended {};
  struct fstrim_range trim {};
  char label[FSLABEL_MAX] = {};
  EXPECT_ERROR(ENOTTY, ::ioctl(f.get(), FS_IOC_GETFLAGS, &number));
  EXPECT_ERROR(ENOTTY, ::ioctl(f.get(), FS_IOC_SETFLAGS, &number));
  EXPECT_ERROR(ENOTTY, ::ioctl(f.get(), FS_IOC_FSGETXATTR, &extended));
  EXPECT_ERROR(ENOTTY, ::ioctl(f.get(), FS_IOC_GETVERSION, &number));
  EXPECT_ERROR(ENOTTY, ::ioctl(dir.get(), FITRIM, &trim));
  EXPECT_ERROR(ENOTTY, ::ioctl(dir.get(), FS_IOC_GETFSLABEL, label));
  EXPECT_ERROR(EOPNOTSUPP, ::ioctl(f.get(), FICLONE, g.get()));
  struct file_clone_range range {
    g.get(), 0, 0, 0
  };
  EXPECT_ERROR(EOPNOTSUPP, ::ioctl(f.get(), FICLONERANGE, &range));
  struct fiemap map {};
  map.fm_length = ~uint64_t{0};
  EXPECT_ERROR(EOPNOTSUPP, ::ioctl(f.get(), FS_IOC_FIEMAP, &map));
  EXPECT_EQ("x", content(c("f")));
  for (int mode : {FALLOC_FL_COLLAPSE_RANGE, FALLOC_FL_INSERT_RANGE})
    EXPECT_ERROR(EOPNOTSUPP, ::fallocate(f.get(), mode, 0, 4096));
  EXPECT_ERROR(EINVAL, ::syscall(SYS_renameat2, AT_FDCWD, b("f").c_str(), AT_FDCWD, b("h").c_str(),
                                 kWhiteout));
  EXPECT_EQ("x", content(c("f"))) << "nothing has moved";
}

TEST_F(PosixTest, HandlesOfFilesAreGoodOnTheirNodeWhileItKnowsThem) {
  ASSERT_EQ(0, put(a("f"), "here"));
  const Fd known = open_at(b("f"), O_RDONLY);
  std::vector<std::byte> room(sizeof(file_handle) + MAX_HANDLE_SZ);
  auto* handle = reinterpret_cast<file_handle*>(room.data());
  handle->handle_bytes = MAX_HANDLE_SZ;
  int mount = 0;
  ASSERT_OK(::name_to_handle_at(AT_FDCWD, b("f").c_str(), handle, &mount, 0));
  const Fd on_b = open_at(b(), O_RDONLY | O_DIRECTORY), on_c = open_at(c(), O_RDONLY | O_DIRECTORY);
  ASSERT_OK(::rename(a("f").c_str(), a("g").c_str()));
  const Fd again(::open_by_handle_at(on_b.get(), handle, O_RDONLY));
  ASSERT_TRUE(again.valid()) << std::strerror(errno);
  EXPECT_EQ("here", read_at(again, 0, 10));
  // Another node's kernel gives numbers of its own.
  const int other = ::open_by_handle_at(on_c.get(), handle, O_PATH);
  if (other >= 0) {
    const Fd of_c(other);
    EXPECT_NE("here", read_at(open_at("/proc/self/fd/" + std::to_string(other), O_RDONLY), 0, 10));
  } else {
    EXPECT_EQ(ESTALE, errno);
  }
}

TEST_F(PosixTest, StatxTellsWhatStatDoes) {
  ASSERT_EQ(0, put(a("f"), "12345"));
  struct statx here {
  }, there{};
  ASSERT_OK(::statx(AT_FDCWD, a("f").c_str(), 0, STATX_ALL, &here));
  ASSERT_OK(::statx(AT_FDCWD, b("f").c_str(), AT_STATX_FORCE_SYNC, STATX_ALL, &there));
  EXPECT_EQ(STATX_BASIC_STATS, there.stx_mask & STATX_BASIC_STATS);
  // When it was made (Linux 6.6), as the origin's file system knows it, however it changes.
  struct statx born {};
  ASSERT_OK(::statx(AT_FDCWD, disk("f").c_str(), 0, STATX_BTIME, &born));
  if ((there.stx_mask & STATX_BTIME) != 0) {
    ASSERT_OK(::chmod(c("f").c_str(), 0604));
    for (const std::string& path : {a("f"), b("f"), c("f")}) {
      ASSERT_OK(::statx(AT_FDCWD, path.c_str(), 0, STATX_BTIME, &there));
      EXPECT_NE(0u, there.stx_mask & STATX_BTIME) << path;
      EXPECT_EQ(born.stx_btime.tv_sec, there.stx_btime.tv_sec);
      EXPECT_EQ(born.stx_btime.tv_nsec, there.stx_btime.tv_nsec);
    }
  }
  EXPECT_NE(0u, there.stx_mask & STATX_MNT_ID);
  EXPECT_EQ(here.stx_ino, there.stx_ino);
  EXPECT_EQ(5u, there.stx_size);
  ASSERT_EQ(0, put(c("f"), "123456789"));
  ASSERT_OK(::statx(AT_FDCWD, b("f").c_str(), 0, STATX_SIZE, &there));
  EXPECT_EQ(9u, there.stx_size);
}

TEST_F(PosixTest, DescriptorsOfPathsOnlyDoWhatTheyDoOnADisk) {
  ASSERT_EQ(0, put(a("f"), "x"));
  ASSERT_OK(::symlink("f", a("l").c_str()));
  const Fd file = open_at(b("f"), O_PATH), link = open_at(b("l"), O_PATH | O_NOFOLLOW);
  EXPECT_ERROR(EBADF, ::fchmod(file.get(), 0600));
  EXPECT_ERROR(EBADF, ::fsync(file.get()));
  ASSERT_OK(::chmod(c("f").c_str(), 0604));
  struct stat st {};
  ASSERT_OK(::fstat(file.get(), &st));
  EXPECT_EQ(0604u, st.st_mode & 07777) << "of another node, by a descriptor of before";
  EXPECT_OK(::linkat(file.get(), "", AT_FDCWD, b("second").c_str(), AT_EMPTY_PATH));
  EXPECT_EQ("x", content(c("second")));
  EXPECT_OK(::fchownat(file.get(), "", 1, 2, AT_EMPTY_PATH));
  EXPECT_EQ(2u, stat_of(c("f")).st_gid);
  char text[8] = {};
  EXPECT_EQ(1, ::readlinkat(link.get(), "", text, sizeof text));
  const struct timespec times[2] = {{5, 6}, {7, 8}};
  EXPECT_OK(::utimensat(AT_FDCWD, b("l").c_str(), times, AT_SYMLINK_NOFOLLOW));
  EXPECT_EQ(7'000'000'008, mtime_ns(stat_of(c("l"))));
  EXPECT_NE(7'000'000'008, mtime_ns(stat_of(c("f")))) << "not what it leads to";
  if (::syscall(kFchmodat2, file.get(), "", 0640, AT_EMPTY_PATH) != 0) {
    EXPECT_EQ(ENOSYS, errno) << "before Linux 6.6";
  } else {
    EXPECT_EQ(0640u, stat_of(c("f")).st_mode & 07777);
    EXPECT_ERROR(EOPNOTSUPP, ::syscall(kFchmodat2, link.get(), "", 0640, AT_EMPTY_PATH));
  }
}

// The names are everybody's, what goes through them is a node's; devices are never opened.
TEST_F(PosixTest, SocketsConnectWithinANode) {
  const auto address_of = [](const std::string& name) {
    struct sockaddr_un address {};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, name.c_str(), sizeof address.sun_path - 1);
    return address;
  };
  // The paths are too long for a socket's name: from within the directory.
  const auto within = [&](const std::string& dir, auto call) {
    const pid_t child = in_child([&] {
      if (::chdir(dir.c_str()) != 0) return 255;
      const Fd made(::socket(AF_UNIX, SOCK_STREAM, 0));
      const struct sockaddr_un address = address_of("socket");
      return error_of(
          call(made.get(), reinterpret_cast<const sockaddr*>(&address), socklen_t{sizeof address}));
    });
    return WEXITSTATUS(status_of(child));
  };
  const Fd listener(::socket(AF_UNIX, SOCK_STREAM, 0));
  const Fd before = open_at(".", O_RDONLY | O_DIRECTORY);
  ASSERT_OK(::chdir(b().c_str()));
  const struct sockaddr_un address = address_of("socket");
  const int bound =
      error_of(::bind(listener.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address));
  ASSERT_OK(::fchdir(before.get()));
  ASSERT_EQ(0, bound);
  ASSERT_OK(::listen(listener.get(), 5));
  EXPECT_TRUE(S_ISSOCK(stat_of(c("socket")).st_mode));
  EXPECT_EQ(0, within(b(), ::connect));
  EXPECT_EQ(ECONNREFUSED, within(c(), ::connect));
  EXPECT_EQ(EADDRINUSE, within(c(), ::bind));
  ASSERT_OK(::mknod(a("null").c_str(), S_IFCHR | 0666, makedev(1, 3)));
  EXPECT_EQ(makedev(1, 3), stat_of(c("null")).st_rdev);
  EXPECT_ERROR(EACCES, ::open(b("null").c_str(), O_RDWR)) << "nodev";
}

TEST_F(PosixTest, NothingLeavesItsExport) {
  ASSERT_EQ(0, put(a("f"), "x"));
  const std::string other = cluster->path(1, 1, "beyond"), local = cluster->dir() + "/beyond";
  EXPECT_ERROR(EXDEV, ::rename(b("f").c_str(), other.c_str()));
  EXPECT_ERROR(EXDEV, ::link(b("f").c_str(), other.c_str()));
  EXPECT_ERROR(EXDEV, ::link(b("f").c_str(), local.c_str()));
  EXPECT_ERROR(EXDEV, ::rename(b("f").c_str(), c("g").c_str())) << "two mounts, to the kernel";
  EXPECT_ERROR(EPERM, ::mkdir((cluster->nodes()[1].mount + "/more").c_str(), 0755));
  struct statfs st {};
  ASSERT_OK(::statfs(b().c_str(), &st));
  EXPECT_EQ(0x65735546, st.f_type) << "FUSE";
  EXPECT_EQ(255, st.f_namelen);
}

// Over two exports, and two mounts, the kernel copies; it asks for the size first.
TEST_F(PosixTest, CopiesHaveTheSizeThatAnotherNodeJustMade) {
  ASSERT_EQ(0, put(a("from"), pattern(5000)));
  const Fd from = open_at(b("from"), O_RDONLY);
  ASSERT_EQ(pattern(5000), read_at(from, 0, 10'000));
  const std::string beyond = cluster->path(1, 1, "copy of " + std::string("this"));
  size_t size = 5000;
  for (const std::string& to : {b("within"), beyond}) {
    const Fd grows = open_at(c("from"), O_WRONLY | O_APPEND);
    const std::string more(3000, 'm');
    ASSERT_EQ(3000, ::write(grows.get(), more.data(), more.size()));
    size += 3000;
    const Fd copy = open_at(to, O_RDWR | O_CREAT | O_TRUNC);
    off_t in = 0, out = 0;
    for (ssize_t n = 1; n > 0;)
      n = ::copy_file_range(from.get(), &in, copy.get(), &out, 1 << 20, 0);
    EXPECT_EQ(static_cast<off_t>(size), out) << to;
    EXPECT_EQ(size, read_at(copy, 0, 1 << 20).size()) << to;
  }
  ASSERT_OK(::truncate(c("from").c_str(), 10));
  const Fd copy = open_at(beyond, O_RDWR | O_TRUNC);
  off_t in = 0, out = 0;
  EXPECT_EQ(10, ::copy_file_range(from.get(), &in, copy.get(), &out, 1 << 20, 0));
}

// The kernel serves them without asking: they know of programs of the same node.
TEST_F(PosixTest, FileLeasesAndWatchesAreOfANode) {
  ASSERT_EQ(0, put(a("f"), "x"));
  const Fd reads = open_at(b("f"), O_RDONLY);
  const auto before = ::signal(SIGIO, SIG_IGN);  // says that a lease is being broken
  EXPECT_OK(::fcntl(reads.get(), F_SETLEASE, F_RDLCK));
  EXPECT_EQ(F_RDLCK, ::fcntl(reads.get(), F_GETLEASE));
  EXPECT_ERROR(EWOULDBLOCK, ::open(b("f").c_str(), O_WRONLY | O_NONBLOCK)) << "is being broken";
  EXPECT_OK(::fcntl(reads.get(), F_SETLEASE, F_UNLCK));
  EXPECT_OK(::fcntl(reads.get(), F_SETLEASE, F_RDLCK));
  EXPECT_TRUE(open_at(c("f"), O_WRONLY).valid()) << "of another node";
  EXPECT_OK(::fcntl(reads.get(), F_SETLEASE, F_UNLCK));
  ::signal(SIGIO, before);
  const Fd watch(::inotify_init1(IN_NONBLOCK));
  ASSERT_LE(0, ::inotify_add_watch(watch.get(), b().c_str(), IN_CREATE));
  char events[4096];
  ASSERT_EQ(0, put(c("made elsewhere"), "x"));
  EXPECT_ERROR(EAGAIN, ::read(watch.get(), events, sizeof events));
  ASSERT_EQ(0, put(b("made here"), "x"));
  EXPECT_LT(0, ::read(watch.get(), events, sizeof events));
}

TEST_F(PosixTest, AdviceAndReadaheadAreTaken) {
  ASSERT_EQ(0, put(a("f"), pattern(200'000)));
  const Fd reads = open_at(b("f"), O_RDONLY), writes = open_at(b("f"), O_RDWR);
  for (const Fd* fd : {&reads, &writes}) {
    for (int advice : {POSIX_FADV_NORMAL, POSIX_FADV_SEQUENTIAL, POSIX_FADV_RANDOM,
                       POSIX_FADV_NOREUSE, POSIX_FADV_WILLNEED, POSIX_FADV_DONTNEED})
      EXPECT_EQ(0, ::posix_fadvise(fd->get(), 0, 0, advice));
    EXPECT_OK(::readahead(fd->get(), 0, 100'000));
    EXPECT_OK(::sync_file_range(fd->get(), 0, 0, SYNC_FILE_RANGE_WRITE));
    EXPECT_OK(::syncfs(fd->get()));
  }
  // What was read ahead is not shown once another node has written.
  ASSERT_EQ(0, write_at(open_at(c("f"), O_WRONLY), 50'000, "new"));
  EXPECT_EQ("new", read_at(reads, 50'000, 3));
  EXPECT_EQ("new", read_at(writes, 50'000, 3));
}

}  // namespace
}  // namespace vremote::live
