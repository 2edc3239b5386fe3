// A daemon is killed under programs that use its mount: the next one goes on with it, and they with
// their open files, mappings and working directories (docs/operations.md, "When a daemon dies or
// stops").
#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <set>

#include "crash_support.h"
#include "node/guardian/guardian_locks.h"
#include "posix_mapping.h"

namespace vremote::live {
namespace {

struct flock whole(short type) {
  struct flock lock {};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;
  return lock;
}

TEST_F(CrashTest, AProgramKeepsItsOpenFiles) {
  nodes(2, "[lease]\nterm_ms = 2000\n").start_all();
  ASSERT_EQ(0, put(nodes().path(0, 0, "read"), std::string(100'000, 'a')));
  ASSERT_EQ(0, put(nodes().path(0, 0, "mapped"), std::string(8192, 'm')));
  ASSERT_EQ(0, ::mkdir(nodes().path(0, 0, "dir").c_str(), 0755));
  ASSERT_EQ(0, put(nodes().path(0, 0, "dir/inside"), "inside"));
  const Fd reading(::open(nodes().path(1, 0, "read").c_str(), O_RDONLY | O_CLOEXEC));
  const Fd writing(
      ::open(nodes().path(1, 0, "written").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
  const Fd appending(
      ::open(nodes().path(1, 0, "log").c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644));
  const Fd mapping(::open(nodes().path(1, 0, "mapped").c_str(), O_RDWR | O_CLOEXEC));
  const Fd here(::open(nodes().path(1, 0, "dir").c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  auto* mapped = static_cast<char*>(
      ::mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, mapping.get(), 0));
  ASSERT_TRUE(mapped != MAP_FAILED || errno == ENODEV);
  char byte = 0;
  ASSERT_EQ(1, ::pread(reading.get(), &byte, 1, 0));
  ASSERT_EQ(6, ::pwrite(writing.get(), "synced", 6, 0));
  ASSERT_EQ(0, ::fsync(writing.get()));
  ASSERT_EQ(6, ::write(appending.get(), "first\n", 6));
  ASSERT_EQ(0, ::fsync(appending.get()));
  if (mapped != MAP_FAILED) {
    ASSERT_EQ('m', *mapped);
  }
  kill(1);
  // Meanwhile others go on, and this node's programs wait.
  ASSERT_EQ(0, put(nodes().path(0, 0, "read"), std::string(50'000, 'b')));
  ASSERT_EQ(0, put(nodes().path(0, 0, "mapped"), std::string(8192, 'n')));
  const pid_t waiting = in_child([&] {
    return error_of(::pwrite(writing.get(), "S", 1, 0)) != 0 || ::fsync(writing.get()) != 0;
  });
  const pid_t making =
      in_child([&] { return error_of(::mkdirat(here.get(), "made while away", 0755)); });
  start(1);
  EXPECT_EQ(0, exit_status(waiting)) << nodes().log(1);
  EXPECT_EQ(0, exit_status(making)) << nodes().log(1);
  EXPECT_EQ(1, ::pread(reading.get(), &byte, 1, 0)) << std::strerror(errno) << nodes().log(1);
  EXPECT_EQ('b', byte) << "coherence";
  struct stat st {};
  EXPECT_EQ(0, ::fstat(reading.get(), &st));
  EXPECT_EQ(50'000, st.st_size);
  char text[8] = {};
  EXPECT_EQ(6, ::pread(writing.get(), text, 7, 0));
  EXPECT_STREQ("Synced", text);
  EXPECT_EQ(7, ::write(appending.get(), "second\n", 7)) << std::strerror(errno);
  EXPECT_EQ(0, ::fsync(appending.get())) << "nothing was lost of it";
  EXPECT_EQ("first\nsecond\n", read_all(nodes().path(0, 0, "log")));
  EXPECT_EQ("Synced", read_all(nodes().path(0, 0, "written")));
  if (mapped != MAP_FAILED) {
    EXPECT_EQ('n', mapped[4096]);
    mapped[5] = 'x';
    EXPECT_EQ(0, ::msync(mapped, 8192, MS_SYNC));
    EXPECT_EQ('x', read_all(nodes().path(0, 0, "mapped"))[5]);
    ASSERT_EQ(0, put(nodes().path(0, 0, "mapped"), std::string(8192, 'o')));
    EXPECT_EQ('o', mapped[5]);
    ::munmap(mapped, 8192);
  }
  const Fd inside(::openat(here.get(), "inside", O_RDONLY | O_CLOEXEC));
  EXPECT_TRUE(inside.valid()) << std::strerror(errno);
  EXPECT_TRUE(exists(nodes().path(0, 0, "dir/made while away")));
  // And the other way round.
  ASSERT_EQ(1, ::pwrite(writing.get(), "T", 1, 0));
  EXPECT_EQ("Tynced", read_all(nodes().path(0, 0, "written")));
}

TEST_F(CrashTest, OnlyWhereBytesWereLostFsyncSaysSo) {
  nodes(2, "[cache]\nflush_after_ms = 600000\n").start_all();
  const Fd lost(::open(nodes().path(1, 0, "lost").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
  const Fd kept(::open(nodes().path(1, 0, "kept").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
  const Fd cut(::open(nodes().path(1, 0, "cut").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
  for (const Fd* fd : {&lost, &kept}) {
    ASSERT_EQ(5, ::pwrite(fd->get(), "first", 5, 0));
    ASSERT_EQ(0, ::fsync(fd->get()));
  }
  ASSERT_EQ(5, ::pwrite(cut.get(), "first", 5, 0));
  ASSERT_EQ(0, ::ftruncate(cut.get(), 0));
  ASSERT_EQ(5, ::pwrite(lost.get(), "later", 5, 0));
  kill_and_start(1);
  char text[8] = {};
  EXPECT_EQ(5, ::pread(lost.get(), text, 7, 0)) << nodes().log(1);
  EXPECT_STREQ("first", text) << "as after a crash";
  EXPECT_EQ(EIO, error_of(::fsync(lost.get()))) << nodes().log(1);
  EXPECT_EQ(0, ::fsync(lost.get())) << "once";
  EXPECT_EQ(0, ::fsync(kept.get())) << nodes().log(1);
  EXPECT_EQ(0, ::fsync(cut.get())) << nodes().log(1);
  const std::string told = nodes().path(1, 0, "lost") + " (inode ";
  EXPECT_TRUE(eventually([&] { return nodes().log(1).find(told) != std::string::npos; }))
      << nodes().log(1);
  EXPECT_NE(nodes().log(1).find("before the last daemon was killed"), std::string::npos);
  // Also when another daemon dies before anybody has asked.
  ASSERT_EQ(5, ::pwrite(lost.get(), "again", 5, 0));
  kill_and_start(1);
  kill_and_start(1);
  EXPECT_EQ(EIO, error_of(::fsync(lost.get()))) << nodes().log(1);
  ASSERT_EQ(5, ::pwrite(lost.get(), "works", 5, 0));
  ASSERT_EQ(0, ::fsync(lost.get()));
  EXPECT_EQ("works", read_all(nodes().path(0, 0, "lost")));
}

TEST_F(CrashTest, StoresInMappingsAreKeptAndFsyncSaysSo) {
  nodes().start_all();
  ASSERT_EQ(0, put(nodes().path(0, 0, "f"), std::string(8192, 'a')));
  const Fd fd(::open(nodes().path(1, 0, "f").c_str(), O_RDWR | O_CLOEXEC));
  const Mapping mapping(fd, 8192, kBoth);
  if (!mapping.valid() && errno == ENODEV) GTEST_SKIP() << "no shared writable mappings";
  ASSERT_TRUE(mapping.valid());
  char* const mapped = mapping.at();
  std::strcpy(mapped + 4096, "stored and not flushed");
  kill_and_start(1);
  EXPECT_EQ('a', mapped[4096]) << "at its origin it never was";
  EXPECT_EQ(EIO, error_of(::fsync(fd.get()))) << nodes().log(1);
  EXPECT_NE(nodes().log(1).find("is kept in"), std::string::npos);
  mapped[4096] = 'b';
  EXPECT_EQ(0, ::msync(mapped, 8192, MS_SYNC));
  EXPECT_EQ('b', read_all(nodes().path(0, 0, "f"))[4096]);
}

// The table in which a daemon notes who holds locks has room for so many. With one that found no
// room nobody can go on: its program would not be told. With room again, all are told.
TEST_F(CrashTest, WithMoreLocksThanCanBeNotedTheMountIsBegunAnew) {
  constexpr size_t kNoted = node::GuardianLocks::kMax;
  const rlimit many{kNoted + 1024, kNoted + 1024};
  if (::setrlimit(RLIMIT_NOFILE, &many) != 0) GTEST_SKIP() << "no more descriptors";
  nodes(1).start_all();
  const std::string path = nodes().path(0, 0, "f");
  ASSERT_EQ(0, put(path, "bytes"));
  std::vector<Fd> fds;
  const auto lock_all = [&] {
    while (fds.size() < kNoted + 1) {
      fds.emplace_back(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
      ASSERT_EQ(0, ::flock(fds.back().get(), LOCK_SH)) << fds.size();
    }
  };
  lock_all();
  fds.erase(fds.begin());  // whose place the last one gets, a moment after close(2)
  const auto held = [&] {
    return nodes().ask(0, "status").find("\"home_locks\":16384") != std::string::npos;
  };
  static_assert(kNoted == 16384);
  ASSERT_TRUE(eventually(held)) << nodes().ask(0, "status");
  kill_and_start(0);
  EXPECT_NE(nodes().log(0).find("16384 locks that are"), std::string::npos) << nodes().log(0);
  for (const Fd& fd : fds) ASSERT_EQ(EIO, error_of(::flock(fd.get(), LOCK_SH)));
  fds.clear();
  lock_all();
  kill(0);
  nodes().start(0);
  EXPECT_TRUE(eventually([&] { return nodes().ready(0); })) << nodes().log(0);
  EXPECT_NE(nodes().log(0).find("is begun anew"), std::string::npos) << nodes().log(0);
  EXPECT_NE(0, error_of(::flock(fds.back().get(), LOCK_SH)));
}

TEST_F(CrashTest, WhoHeldALockIsToldThatItIsLost) {
  nodes().start_all();
  for (const char* name : {"posix", "ofd", "flock", "given back"})
    ASSERT_EQ(0, put(nodes().path(0, 0, name), "bytes"));
  std::array<Fd, 4> fds;
  const char* names[] = {"posix", "ofd", "flock", "given back"};
  for (size_t i = 0; i < 4; ++i)
    fds[i] = Fd(::open(nodes().path(1, 0, names[i]).c_str(), O_RDWR | O_CLOEXEC));
  struct flock lock = whole(F_WRLCK), unlock = whole(F_UNLCK);
  ASSERT_EQ(0, ::fcntl(fds[0].get(), F_SETLK, &lock));
  ASSERT_EQ(0, ::fcntl(fds[1].get(), F_OFD_SETLK, &lock));
  ASSERT_EQ(0, ::flock(fds[2].get(), LOCK_EX));
  ASSERT_EQ(0, ::fcntl(fds[3].get(), F_SETLK, &lock));
  ASSERT_EQ(0, ::fcntl(fds[3].get(), F_SETLK, &unlock));
  kill_and_start(1);
  for (int round = 0; round < 2; ++round) {
    char byte = 0;
    for (size_t i = 0; i < 3; ++i) {
      EXPECT_EQ(EIO, error_of(::pread(fds[i].get(), &byte, 1, 0))) << names[i];
      EXPECT_EQ(EIO, error_of(::pwrite(fds[i].get(), "x", 1, 0))) << names[i];
      EXPECT_EQ(EIO, error_of(::fsync(fds[i].get()))) << names[i];
    }
    EXPECT_EQ(EIO, error_of(::fcntl(fds[0].get(), F_SETLK, &lock)));
    EXPECT_EQ(EIO, error_of(::fcntl(fds[1].get(), F_OFD_SETLK, &lock)));
    EXPECT_EQ(EIO, error_of(::flock(fds[2].get(), LOCK_EX)));
    EXPECT_EQ(1, ::pread(fds[3].get(), &byte, 1, 0));
    // Others may have them.
    const Fd other(::open(nodes().path(0, 0, "posix").c_str(), O_RDWR | O_CLOEXEC));
    EXPECT_EQ(0, ::fcntl(other.get(), F_OFD_SETLK, &lock)) << std::strerror(errno);
    // Also through one more crash, and an upgrade.
    if (round == 0) kill_and_start(1);
  }
  // Who opens the file anew, knows.
  for (size_t i = 0; i < 3; ++i) {
    fds[i] = Fd(::open(nodes().path(1, 0, names[i]).c_str(), O_RDWR | O_CLOEXEC));
    EXPECT_EQ(1, ::pwrite(fds[i].get(), "x", 1, 0)) << names[i] << std::strerror(errno);
  }
  EXPECT_EQ(0, ::fcntl(fds[0].get(), F_SETLK, &lock));
  EXPECT_EQ(0, ::fcntl(fds[1].get(), F_OFD_SETLK, &lock));
  EXPECT_EQ(0, ::flock(fds[2].get(), LOCK_EX));
}

// While a truncation is not answered the kernel writes nothing of its file back.
TEST_F(CrashTest, ATruncationThatHoldsPagesBackIsEnded) {
  nodes(2, "[lease]\nterm_ms = 50000\n").start_all();
  ASSERT_EQ(0, put(nodes().path(0, 0, "f"), std::string(16384, 'a')));
  const Fd fd(::open(nodes().path(1, 0, "f").c_str(), O_RDWR | O_CLOEXEC));
  const Mapping mapping(fd, 16384, kBoth);
  if (!mapping.valid() && errno == ENODEV) GTEST_SKIP() << "no shared writable mappings";
  ASSERT_TRUE(mapping.valid());
  char* const mapped = mapping.at();
  mapped[0] = 'b';
  nodes().signal(0, SIGSTOP);
  const pid_t truncating = in_child([&] { return error_of(::ftruncate(fd.get(), 8192)); });
  ASSERT_TRUE(
      eventually([&] { return nodes().ask(1, "blocked").find("truncate") != std::string::npos; }));
  mapped[1] = 'c';  // dirty, whenever the kernel looked
  kill(1);
  nodes().start(1);
  EXPECT_EQ(EIO, exit_status(truncating)) << nodes().log(1);
  nodes().signal(0, SIGCONT);
  EXPECT_TRUE(eventually([&] { return went_on(1) == 1; })) << nodes().log(1);
  EXPECT_TRUE(eventually([&] { return nodes().connected(1); })) << nodes().log(1);
  EXPECT_EQ(EIO, error_of(::fsync(fd.get()))) << "what was stored is in a recovery file";
  struct stat st {};
  EXPECT_EQ(0, ::fstat(fd.get(), &st)) << std::strerror(errno);
  EXPECT_EQ(0, ::ftruncate(fd.get(), 4096)) << std::strerror(errno);
  EXPECT_EQ('a', mapped[0]);
}

// What had been read and not answered is asked again; what may have happened already is not done
// twice.
TEST_F(CrashTest, CallsUnderWayAreAnsweredOnceOrTheirProgramsAreTold) {
  nodes(2, "[lease]\nterm_ms = 50000\n").start_all();
  ASSERT_EQ(0, put(nodes().path(0, 0, "f"), std::string(8192, 'a')));
  ASSERT_EQ(0, ::mkdir(nodes().path(0, 0, "d").c_str(), 0755));
  ASSERT_TRUE(exists(nodes().path(1, 0, "d")));
  const Fd dir(::open(nodes().path(1, 0, "d").c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  const Fd fd(::open(nodes().path(1, 0, "f").c_str(), O_RDWR | O_CLOEXEC));
  const Fd grown(::open(nodes().path(1, 0, "grown").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
  struct flock lock = whole(F_WRLCK);
  // A process of its own has it: who forks beside it would have to close it, at the stopped node.
  int ends[2];
  ASSERT_EQ(0, ::pipe2(ends, O_CLOEXEC));
  Fd told(ends[0]), tell(ends[1]);
  const pid_t holder = in_child([&] {
    tell.reset();
    const Fd locked(::open(nodes().path(0, 0, "f").c_str(), O_RDWR | O_CLOEXEC));
    const int error = error_of(::fcntl(locked.get(), F_OFD_SETLK, &lock));
    char byte = 0;
    (void)!::read(told.get(), &byte, 1);
    return error;
  });
  const auto is_locked = [&] {
    struct flock test = whole(F_WRLCK);
    return ::fcntl(fd.get(), F_OFD_GETLK, &test) == 0 && test.l_type != F_UNLCK;
  };
  ASSERT_TRUE(eventually(is_locked));
  const pid_t waiter = in_child([&] { return error_of(::fcntl(fd.get(), F_OFD_SETLKW, &lock)); });
  const auto waiting = [&](int64_t many) {
    return eventually([&] {
      const std::string blocked = nodes().ask(1, "blocked");
      return std::count(blocked.begin(), blocked.end(), '{') >= many;
    });
  };
  EXPECT_TRUE(waiting(1));
  nodes().signal(0, SIGSTOP);
  const pid_t reader = in_child([&] {
    char byte = 0;
    return ::pread(fd.get(), &byte, 1, 4096) == 1 && byte == 'a' ? 0 : 1;
  });
  const pid_t maker = in_child([&] { return error_of(::fallocate(grown.get(), 0, 0, 8192)); });
  EXPECT_TRUE(waiting(3)) << nodes().ask(1, "blocked");
  kill(1);
  // This one is not known to any daemon before the next.
  const pid_t later = in_child([&] { return error_of(::mkdirat(dir.get(), "later", 0755)); });
  nodes().start(1);
  EXPECT_TRUE(eventually([&] { return nodes().ready(1); })) << nodes().log(1);
  // Before anybody's end: closing a file that has locks asks their home.
  nodes().signal(0, SIGCONT);
  EXPECT_EQ(EIO, exit_status(maker)) << nodes().log(1);
  EXPECT_EQ(0, exit_status(reader)) << nodes().log(1) << nodes().log(0);
  EXPECT_EQ(0, exit_status(later)) << nodes().log(1);
  EXPECT_EQ(0, ::waitpid(waiter, nullptr, WNOHANG)) << "the lock is not free";
  ASSERT_EQ(1, ::write(tell.get(), "x", 1));
  EXPECT_EQ(0, exit_status(waiter)) << nodes().log(1);
  EXPECT_EQ(0, exit_status(holder));
}

TEST_F(CrashTest, AListingGoesOnWhereItWas) {
  nodes().start_all();
  ASSERT_EQ(0, ::mkdir(nodes().path(0, 0, "list").c_str(), 0755));
  constexpr unsigned kFiles = 3000;  // more than one answer holds
  for (unsigned i = 0; i < kFiles; ++i)
    ASSERT_EQ(0, put(nodes().path(0, 0, fmt::format("list/a-file-of-many-{}", i)), ""));
  for (size_t node : {1u, 0u}) {
    started_ = 0;
    DIR* dir = ::opendir(nodes().path(node, 0, "list").c_str());
    ASSERT_NE(dir, nullptr);
    std::multiset<std::string> names;
    for (int i = 0; i < 700; ++i)
      if (const dirent* entry = ::readdir(dir)) names.insert(entry->d_name);
    kill_and_start(node);
    errno = 0;
    while (const dirent* entry = ::readdir(dir)) names.insert(entry->d_name);
    EXPECT_EQ(0, errno) << std::strerror(errno) << nodes().log(node);
    EXPECT_EQ(kFiles + 2, names.size());
    EXPECT_EQ(kFiles + 2, std::set<std::string>(names.begin(), names.end()).size());
    ::closedir(dir);
  }
}

TEST_F(CrashTest, ANodeThatIsAnotherBeginsAnew) {
  nodes().start_all();
  ASSERT_EQ(0, put(nodes().path(0, 0, "f"), "bytes"));
  const Fd fd(::open(nodes().path(1, 0, "f").c_str(), O_RDONLY | O_CLOEXEC));
  kill(1);
  const std::string config = nodes().at(1).config;
  const std::string was = read_all(config);
  const size_t at = was.find("[[export]]\nname = \"node2\"");
  ASSERT_NE(at, was.npos) << was;
  ASSERT_EQ(0, put(config, std::string(was).insert(at + 24, "s")));
  nodes().start(1);
  EXPECT_TRUE(eventually([&] { return nodes().connected(1); })) << nodes().log(1);
  EXPECT_NE(nodes().log(1).find("is begun anew: the node has another"), std::string::npos)
      << nodes().log(1);
  char byte = 0;
  const int error = error_of(::pread(fd.get(), &byte, 1, 0));
  EXPECT_TRUE(error == ENOTCONN || error == ECONNABORTED) << std::strerror(error);
  EXPECT_EQ("bytes", read_all(nodes().path(1, 0, "f")));
}

// Others could have put another guardian there: the start is refused, and the guardian waits on.
TEST_F(CrashTest, WhereOthersCanWriteNothingIsTakenUpUntilTheyCannot) {
  nodes().start_all();
  ASSERT_EQ(0, put(nodes().path(0, 0, "f"), "bytes"));
  const Fd fd(::open(nodes().path(1, 0, "f").c_str(), O_RDONLY | O_CLOEXEC));
  ASSERT_EQ(0, ::chmod(nodes().at(1).state_dir.c_str(), 0777));
  kill(1);
  nodes().start(1);
  EXPECT_TRUE(eventually([&] {
    return nodes().log(1).find(nodes().at(1).state_dir + " can be written to by others") !=
           std::string::npos;
  })) << nodes().log(1);
  kill(1);
  ASSERT_EQ(0, ::chmod(nodes().at(1).state_dir.c_str(), 0700));
  nodes().start(1);
  EXPECT_TRUE(eventually([&] { return nodes().connected(1); })) << nodes().log(1);
  char byte = 0;
  EXPECT_EQ(1, ::pread(fd.get(), &byte, 1, 0)) << std::strerror(errno);
  EXPECT_EQ('b', byte);
}

// A crash that comes again each time: nobody waits for ever.
TEST_F(CrashTest, DaemonsThatDieAtOnceAreNotFollowedForEver) {
  nodes().start_all();
  ASSERT_EQ(0, put(nodes().path(0, 0, "f"), "bytes"));
  const Fd fd(::open(nodes().path(1, 0, "f").c_str(), O_RDONLY | O_CLOEXEC));
  const auto given_up = [&] {
    return nodes().log(1).find("daemons in a row died") != std::string::npos;
  };
  for (size_t deaths = 1; deaths < 40 && !given_up(); ++deaths) {
    kill(1);
    nodes().start(1);
    EXPECT_TRUE(eventually([&] { return went_on(1) == deaths || given_up(); })) << nodes().log(1);
  }
  if (!given_up()) GTEST_SKIP() << "this machine is too slow to kill a daemon at once";
  EXPECT_TRUE(eventually([&] { return nodes().connected(1); })) << nodes().log(1);
  EXPECT_EQ("bytes", read_all(nodes().path(1, 0, "f")));
  char byte = 0;
  EXPECT_NE(1, ::pread(fd.get(), &byte, 1, 0));
}

}  // namespace
}  // namespace vremote::live
