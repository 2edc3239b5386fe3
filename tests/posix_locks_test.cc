// Advisory locks of programs on several nodes: fcntl(2) byte ranges of processes and of open files
// (OFD), and flock(2).
//
// To a node a process is an owner of its own: what this program locks through B conflicts with what
// it locks through C.
#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstring>
#include <fstream>
#include <thread>
#include <vector>

#include "posix_support.h"

namespace vremote::live {
namespace {

struct flock range_of(short type, off_t start = 0, off_t length = 0) {
  struct flock lock {};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;
  lock.l_start = start;
  lock.l_len = length;
  return lock;
}

int set_range(const Fd& fd, short type, off_t start = 0, off_t length = 0, int command = F_SETLK) {
  struct flock lock = range_of(type, start, length);
  return error_of(::fcntl(fd.get(), command, &lock));
}

// The three kinds in the same words; errno or 0.
enum class Kind { Process, OpenFile, Flock };
constexpr Kind kKinds[] = {Kind::Process, Kind::OpenFile, Kind::Flock};

int take(Kind kind, const Fd& fd, short type, bool wait) {
  if (kind == Kind::Flock) {
    const int operation = type == F_RDLCK ? LOCK_SH : type == F_WRLCK ? LOCK_EX : LOCK_UN;
    return error_of(::flock(fd.get(), operation | (wait ? 0 : LOCK_NB)));
  }
  const bool process = kind == Kind::Process;
  return set_range(fd, type, 0, 0,
                   wait ? (process ? F_SETLKW : F_OFD_SETLKW) : (process ? F_SETLK : F_OFD_SETLK));
}
int try_take(Kind kind, const Fd& fd, short type) { return take(kind, fd, type, false); }

// What stands in the way, as "type start length", or "free".
std::string in_the_way(const Fd& fd, short type, off_t start, off_t length) {
  struct flock lock = range_of(type, start, length);
  if (::fcntl(fd.get(), F_GETLK, &lock) != 0) return std::strerror(errno);
  if (lock.l_type == F_UNLCK) return "free";
  return std::string(lock.l_type == F_WRLCK ? "write " : "read ") + std::to_string(lock.l_start) +
         " " + std::to_string(lock.l_len);
}

// Its open() may wait for the node, too.
bool waits_for_lock(pid_t pid) {
  for (int i = 0; i < 60000; ++i) {
    std::ifstream file("/proc/" + std::to_string(pid) + "/syscall");
    if (long call = 0; file >> call && (call == SYS_fcntl || call == SYS_flock))
      return waits_for_its_node(pid);
    ::usleep(1000);
  }
  return false;
}

class LocksTest : public PosixTest {
 protected:
  void SetUp() override {
    PosixTest::SetUp();
    ASSERT_EQ(0, put(a("f"), "x"));
  }
  Fd open_a() { return open_at(a("f"), O_RDWR); }
  Fd open_b() { return open_at(b("f"), O_RDWR); }
  Fd open_c() { return open_at(c("f"), O_RDWR); }
};

TEST_F(LocksTest, ReadersShareAndWritersExclude) {
  for (Kind kind : kKinds) {
    SCOPED_TRACE(static_cast<int>(kind));
    Fd on_a = open_a(), on_b = open_b(), on_c = open_c();
    EXPECT_EQ(0, try_take(kind, on_b, F_RDLCK));
    EXPECT_EQ(0, try_take(kind, on_c, F_RDLCK));
    EXPECT_EQ(EAGAIN, try_take(kind, on_a, F_WRLCK));
    EXPECT_EQ(EAGAIN, try_take(kind, on_b, F_WRLCK)) << "no upgrade beside another reader";
    EXPECT_EQ(0, try_take(kind, on_c, F_UNLCK));
    // flock(2) lets go of the old lock before it tries for the new one; the others keep theirs.
    EXPECT_EQ(0, try_take(kind, on_b, F_WRLCK)) << "upgraded";
    EXPECT_EQ(EAGAIN, try_take(kind, on_a, F_RDLCK));
    EXPECT_EQ(0, try_take(kind, on_b, F_RDLCK)) << "downgraded";
    EXPECT_EQ(0, try_take(kind, on_a, F_RDLCK));
  }
}

// Two files opened by one process on one node are two owners to OFD locks and flock, one to fcntl.
TEST_F(LocksTest, OwnersOnOneNodeAreToldApart) {
  Fd one = open_b(), two = open_b();
  EXPECT_EQ(0, try_take(Kind::Process, one, F_WRLCK));
  EXPECT_EQ(0, try_take(Kind::Process, two, F_WRLCK));
  const pid_t other = in_child([&] { return try_take(Kind::Process, open_b(), F_WRLCK); });
  EXPECT_EQ(EAGAIN, WEXITSTATUS(status_of(other)));
  EXPECT_EQ(0, try_take(Kind::Process, one, F_UNLCK));
  EXPECT_EQ(0, try_take(Kind::OpenFile, one, F_WRLCK));
  EXPECT_EQ(EAGAIN, try_take(Kind::OpenFile, two, F_WRLCK));
  EXPECT_EQ(EAGAIN, try_take(Kind::Process, two, F_WRLCK)) << "a range is a range";
  EXPECT_EQ(0, try_take(Kind::Flock, one, F_WRLCK)) << "flock knows nothing of ranges";
  EXPECT_EQ(EAGAIN, try_take(Kind::Flock, two, F_WRLCK));
}

TEST_F(LocksTest, RangesAreSplitAndJoined) {
  Fd on_a = open_a(), on_b = open_b(), on_c = open_c();
  ASSERT_EQ(0, set_range(on_a, F_WRLCK, 0, 100));
  EXPECT_EQ("write 0 100", in_the_way(on_b, F_RDLCK, 99, 1));
  EXPECT_EQ("free", in_the_way(on_b, F_WRLCK, 100, 0));
  ASSERT_EQ(0, set_range(on_a, F_UNLCK, 40, 20));
  EXPECT_EQ("write 0 40", in_the_way(on_b, F_WRLCK, 0, 60));
  EXPECT_EQ("write 60 40", in_the_way(on_b, F_WRLCK, 40, 0));
  ASSERT_EQ(0, set_range(on_b, F_WRLCK, 40, 20));
  EXPECT_EQ(EAGAIN, set_range(on_a, F_WRLCK, 0, 100));
  EXPECT_EQ("write 40 20", in_the_way(on_a, F_RDLCK, 0, 0));
  ASSERT_EQ(0, set_range(on_b, F_UNLCK));
  ASSERT_EQ(0, set_range(on_a, F_WRLCK, 40, 20));
  EXPECT_EQ("write 0 100", in_the_way(on_c, F_WRLCK, 50, 1)) << "joined again";
  // A downgrade of the middle parts it in three.
  ASSERT_EQ(0, set_range(on_a, F_RDLCK, 10, 80));
  EXPECT_EQ(0, set_range(on_b, F_RDLCK, 10, 80));
  EXPECT_EQ(EAGAIN, set_range(on_b, F_RDLCK, 9, 1));
  EXPECT_EQ(EAGAIN, set_range(on_b, F_RDLCK, 90, 1));
  EXPECT_EQ("read 10 80", in_the_way(on_c, F_WRLCK, 20, 1));
  // To the end of the file, wherever that will be; and from its end backwards.
  ASSERT_EQ(0, set_range(on_c, F_WRLCK, 1000, 0));
  EXPECT_EQ("write 1000 0", in_the_way(on_b, F_RDLCK, off_t{1} << 50, 1));
  ASSERT_EQ(0, write_at(on_b, 0, std::string(5000, 'x')));
  struct flock from_end = range_of(F_WRLCK, -10, 5);
  from_end.l_whence = SEEK_END;
  EXPECT_ERROR(EAGAIN, ::fcntl(on_b.get(), F_SETLK, &from_end));
  ASSERT_EQ(0, set_range(on_c, F_UNLCK, 4990, 5));
  EXPECT_OK(::fcntl(on_b.get(), F_SETLK, &from_end)) << "counted from the new end";
}

TEST_F(LocksTest, TheHoldersProcessIsTold) {
  Fd on_a = open_a(), on_b = open_b(), on_c = open_c();
  ASSERT_EQ(0, set_range(on_b, F_WRLCK, 5, 10));
  struct flock lock = range_of(F_WRLCK);
  ASSERT_OK(::fcntl(on_c.get(), F_GETLK, &lock));
  EXPECT_EQ(F_WRLCK, lock.l_type);
  EXPECT_EQ(SEEK_SET, lock.l_whence);
  EXPECT_EQ(5, lock.l_start);
  EXPECT_EQ(10, lock.l_len);
  EXPECT_EQ(0, lock.l_pid) << "the number of a process elsewhere would be another's here";
  const pid_t other = in_child([&] {
    struct flock wanted = range_of(F_WRLCK);
    Fd fd = open_b();
    return ::fcntl(fd.get(), F_GETLK, &wanted) == 0 && wanted.l_pid == ::getppid() ? 0 : 1;
  });
  EXPECT_TRUE(ended_well(other));
  ASSERT_EQ(0, set_range(on_b, F_UNLCK));
  // An open file is no process.
  ASSERT_EQ(0, set_range(on_b, F_WRLCK, 0, 0, F_OFD_SETLK));
  lock = range_of(F_WRLCK);
  ASSERT_OK(::fcntl(on_c.get(), F_OFD_GETLK, &lock));
  EXPECT_EQ(F_WRLCK, lock.l_type);
  EXPECT_NE(::getpid(), lock.l_pid);
}

TEST_F(LocksTest, AccessThatWasNotAskedForIsRefused) {
  Fd reader = open_at(b("f"), O_RDONLY), writer = open_at(b("f"), O_WRONLY);
  EXPECT_EQ(EBADF, set_range(reader, F_WRLCK));
  EXPECT_EQ(EBADF, set_range(writer, F_RDLCK));
  EXPECT_EQ(0, try_take(Kind::Flock, reader, F_WRLCK)) << "flock does not ask";
  EXPECT_EQ(EINVAL, set_range(reader, F_RDLCK, -1, 5));
}

TEST_F(LocksTest, WhoWaitsIsWoken) {
  for (Kind kind : kKinds) {
    SCOPED_TRACE(static_cast<int>(kind));
    Fd on_a = open_a();
    ASSERT_EQ(0, try_take(kind, on_a, F_WRLCK));
    const pid_t waiting[] = {in_child([&] { return take(kind, open_b(), F_RDLCK, true); }),
                             in_child([&] { return take(kind, open_c(), F_RDLCK, true); }),
                             in_child([&] { return take(kind, open_a(), F_WRLCK, true); })};
    for (const pid_t pid : waiting) ASSERT_TRUE(waits_for_lock(pid));
    for (const pid_t pid : waiting) EXPECT_EQ(0, ::waitpid(pid, nullptr, WNOHANG)) << "too early";
    EXPECT_EQ(0, try_take(kind, on_a, F_UNLCK));
    for (const pid_t pid : waiting) EXPECT_TRUE(ended_well(pid));
  }
}

TEST_F(LocksTest, AnUnlockedPartWakesOnlyWhoWaitsForIt) {
  Fd on_a = open_a();
  ASSERT_EQ(0, set_range(on_a, F_WRLCK, 0, 100));
  const pid_t front = in_child([&] { return set_range(open_b(), F_WRLCK, 0, 10, F_SETLKW); });
  const pid_t back = in_child([&] { return set_range(open_c(), F_WRLCK, 90, 10, F_SETLKW); });
  ASSERT_TRUE(waits_for_lock(front) && waits_for_lock(back));
  ASSERT_EQ(0, set_range(on_a, F_UNLCK, 50, 50));
  EXPECT_TRUE(ended_well(back));
  EXPECT_EQ(0, ::waitpid(front, nullptr, WNOHANG));
  ASSERT_EQ(0, set_range(on_a, F_RDLCK, 0, 50));
  EXPECT_EQ(0, ::waitpid(front, nullptr, WNOHANG)) << "a downgrade is not enough for a writer";
  ASSERT_EQ(0, set_range(on_a, F_UNLCK));
  EXPECT_TRUE(ended_well(front));
}

TEST_F(LocksTest, CirclesOfWaitersAreRefused) {
  Fd on_a = open_a(), on_b = open_b(), on_c = open_c();
  ASSERT_EQ(0, set_range(on_a, F_WRLCK, 0, 1));
  ASSERT_EQ(0, set_range(on_b, F_WRLCK, 1, 1));
  ASSERT_EQ(0, set_range(on_c, F_WRLCK, 2, 1));
  std::atomic<int> a_got = -1, b_got = -1;
  std::thread a_waits([&] { a_got = set_range(on_a, F_WRLCK, 1, 1, F_SETLKW); });
  std::thread b_waits([&] { b_got = set_range(on_b, F_WRLCK, 2, 1, F_SETLKW); });
  // Only when both wait does the third close the circle: until then it would wait itself.
  for (int i = 0; i < 60'000 && counter(0, "home_locks_waiting") < 2; ++i) ::usleep(1000);
  EXPECT_EQ(EDEADLK, set_range(on_c, F_WRLCK, 0, 1, F_SETLKW));
  EXPECT_EQ(-1, a_got);
  EXPECT_EQ(-1, b_got);
  ASSERT_EQ(0, set_range(on_c, F_UNLCK));
  b_waits.join();
  ASSERT_EQ(0, set_range(on_b, F_UNLCK));
  a_waits.join();
  EXPECT_EQ(0, a_got);
  EXPECT_EQ(0, b_got);
}

TEST_F(LocksTest, ClosingLetsGo) {
  Fd on_c = open_c();
  {
    Fd one = open_b(), two = open_b();
    ASSERT_EQ(0, set_range(one, F_WRLCK));
    two.reset();
    EXPECT_EQ(0, try_take(Kind::Process, on_c, F_WRLCK))
        << "any close of the file by the process, as POSIX has it";
    ASSERT_EQ(0, try_take(Kind::Process, on_c, F_UNLCK));
  }
  for (Kind kind : {Kind::OpenFile, Kind::Flock}) {
    SCOPED_TRACE(static_cast<int>(kind));
    Fd one = open_b(), other = open_b();
    Fd same(::dup(one.get()));
    ASSERT_EQ(0, try_take(kind, one, F_WRLCK));
    other.reset();
    one.reset();
    EXPECT_EQ(EAGAIN, try_take(kind, on_c, F_WRLCK)) << "a duplicate keeps it";
    const pid_t child = in_child([] { return 0; });
    EXPECT_TRUE(ended_well(child));
    EXPECT_EQ(EAGAIN, try_take(kind, on_c, F_WRLCK)) << "the end of a child is not the last close";
    same.reset();
    EXPECT_EQ(0, take(kind, on_c, F_WRLCK, true)) << "RELEASE comes after close(2) returns";
    EXPECT_EQ(0, try_take(kind, on_c, F_UNLCK));
  }
}

TEST_F(LocksTest, TheEndOfAProcessLetsGo) {
  for (Kind kind : kKinds) {
    for (bool killed : {false, true}) {
      SCOPED_TRACE(static_cast<int>(kind) * 10 + killed);
      std::array<int, 2> ready{}, go{};
      ASSERT_OK(::pipe(ready.data()));
      ASSERT_OK(::pipe(go.data()));
      const pid_t holder = in_child([&] {
        Fd fd = open_b();
        char byte = static_cast<char>(take(kind, fd, F_WRLCK, true));
        (void)!::write(ready[1], &byte, 1);
        (void)!::read(go[0], &byte, 1);
        ::_exit(0);  // without a close
        return 0;
      });
      char byte = 1;
      ASSERT_EQ(1, ::read(ready[0], &byte, 1));
      ASSERT_EQ(0, byte);
      Fd on_c = open_c();
      EXPECT_EQ(EAGAIN, try_take(kind, on_c, F_WRLCK));
      const pid_t waiting = in_child([&] { return take(kind, open_a(), F_WRLCK, true); });
      ASSERT_TRUE(waits_for_lock(waiting));
      if (killed) {
        ASSERT_OK(::kill(holder, SIGKILL));
      } else {
        ASSERT_EQ(1, ::write(go[1], &byte, 1));
      }
      status_of(holder);
      EXPECT_TRUE(ended_well(waiting));
      for (int fd : {ready[0], ready[1], go[0], go[1]}) ::close(fd);
    }
  }
}

// A waiter that is killed leaves neither a lock nor a place in the line.
TEST_F(LocksTest, AKilledWaiterIsForgotten) {
  for (Kind kind : kKinds) {
    SCOPED_TRACE(static_cast<int>(kind));
    Fd on_a = open_a(), on_c = open_c();
    ASSERT_EQ(0, try_take(kind, on_a, F_RDLCK));
    const pid_t writer = in_child([&] { return take(kind, open_b(), F_WRLCK, true); });
    ASSERT_TRUE(waits_for_lock(writer));
    EXPECT_EQ(EAGAIN, try_take(kind, on_c, F_RDLCK)) << "behind the writer that waits";
    ASSERT_OK(::kill(writer, SIGKILL));
    EXPECT_TRUE(WIFSIGNALED(status_of(writer)));
    EXPECT_EQ(0, take(kind, on_c, F_RDLCK, true));
  }
}

// Each loops over lock, work, unlock: neither starves.
TEST_F(LocksTest, NodesThatCompeteBothMakeProgress) {
  for (Kind kind : kKinds) {
    SCOPED_TRACE(static_cast<int>(kind));
    auto* rounds = static_cast<std::atomic<int>*>(
        ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    ASSERT_NE(MAP_FAILED, static_cast<void*>(rounds));
    std::atomic<int>&stop = rounds[3], &inside = rounds[4];
    const std::string paths[] = {a("f"), b("f"), c("f")};
    std::vector<pid_t> children;
    for (int i = 0; i < 3; ++i)
      children.push_back(in_child([&, i] {
        Fd fd = open_at(paths[i], O_RDWR);
        while (stop == 0) {
          if (take(kind, fd, F_WRLCK, true) != 0) return 1;
          if (++inside != 1) return 2;
          ++rounds[i];
          --inside;
          if (take(kind, fd, F_UNLCK, true) != 0) return 3;
        }
        return 0;
      }));
    ::sleep(1);
    stop = 1;
    for (const pid_t pid : children) {
      const int status = status_of(pid);
      EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0)
          << status << ": 2 would be two at once in it";
    }
    const int all = rounds[0] + rounds[1] + rounds[2];
    for (int i = 0; i < 3; ++i) EXPECT_GT(rounds[i], all / 20) << i << " of " << all;
    ::munmap(rounds, 4096);
  }
}

// The page goes where the lock goes.
TEST_F(LocksTest, ACounterInASharedMappingUnderALockLosesNothing) {
  ASSERT_EQ(0, put(a("counter"), std::string(4096, '\0')));
  constexpr int kEach = 5000;
  std::vector<pid_t> children;
  for (const std::string& path : {b("counter"), c("counter")})
    children.push_back(in_child([&] {
      Fd fd = open_at(path, O_RDWR);
      void* memory = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
      if (memory == MAP_FAILED) return errno == ENODEV ? 77 : 1;
      auto* counter = static_cast<volatile uint64_t*>(memory);
      for (int i = 0; i < kEach; ++i) {
        if (set_range(fd, F_WRLCK, 0, 8, F_SETLKW) != 0) return 2;
        *counter = *counter + 1;
        if (set_range(fd, F_UNLCK, 0, 8) != 0) return 3;
      }
      return 0;
    }));
  bool can = true;
  for (const pid_t pid : children) {
    const int status = status_of(pid);
    can = can && !(WIFEXITED(status) && WEXITSTATUS(status) == 77);
    if (can) {
      EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
    }
  }
  if (!can) GTEST_SKIP() << "no writable shared mappings on this kernel";
  uint64_t value = 0;
  Fd fd = open_at(a("counter"), O_RDONLY);
  ASSERT_EQ(8, ::pread(fd.get(), &value, 8, 0));
  EXPECT_EQ(2u * kEach, value);
}

}  // namespace
}  // namespace vremote::live
