// What signals do to whoever waits for a file operation: as on a local disk.
#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <functional>
#include <thread>

#include "posix_support.h"
#include "support/nodes.h"

namespace vremote::live {
namespace {

// A handler that is called every `microseconds`; interrupted calls are not taken up again.
void disturb(long microseconds) {
  struct sigaction action {};
  action.sa_handler = [](int) {};
  ::sigaction(SIGALRM, &action, nullptr);
  const itimerval often{{0, microseconds}, {0, microseconds}};
  ::setitimer(ITIMER_REAL, &often, nullptr);
}

// Several programs stop when a file operation ends with EINTR, which no local disk gives.
TEST_F(PosixTest, SignalsWithAHandlerDoNotEndFileOperations) {
  ASSERT_EQ(0, put(a("shared"), pattern(20'000)));
  const pid_t disturbed = in_child([&] {
    disturb(300);
    for (int i = 0; i < 300; ++i) {
      Fd fd = open_at(b("shared"), O_RDWR);
      char bytes[5000];
      struct stat st {};
      if (!fd.valid()) return 1;
      if (::pread(fd.get(), bytes, sizeof(bytes), 100) != sizeof(bytes)) return 2;
      if (::pwrite(fd.get(), bytes, sizeof(bytes), 100) != sizeof(bytes)) return 3;
      if (::fsync(fd.get()) != 0) return 4;
      if (::stat(b("shared").c_str(), &st) != 0) return 5;
      Fd made = open_at(b("made"), O_CREAT | O_EXCL | O_WRONLY);
      if (!made.valid()) return 6;
      if (::rename(b("made").c_str(), b("renamed").c_str()) != 0) return 7;
      if (::unlink(b("renamed").c_str()) != 0) return 8;
    }
    return 0;
  });
  // The other node has what it wants, again and again, so that it has to wait.
  std::atomic<bool> done{false};
  std::thread contender([&] {
    Fd fd = open_at(a("shared"), O_RDWR);
    for (unsigned i = 0; !done; ++i) {
      (void)write_at(fd, 0, pattern(8'000, i));
      (void)put(a("other"), "x");
      (void)::unlink(a("other").c_str());
    }
  });
  const int status = status_of(disturbed);
  done = true;
  contender.join();
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(0, WEXITSTATUS(status)) << "the number tells which call was ended";
}

TEST_F(PosixTest, WhoWaitsForALockMayBeInterruptedOrKilled) {
  ASSERT_EQ(0, put(a("f"), "x"));
  Fd mine = open_at(a("f"), O_RDWR);
  struct flock whole {};
  whole.l_type = F_WRLCK;
  ASSERT_OK(::fcntl(mine.get(), F_OFD_SETLK, &whole));
  ASSERT_OK(::flock(mine.get(), LOCK_EX));

  const pid_t with_handler = in_child([&] {
    Fd fd = open_at(b("f"), O_RDWR);
    disturb(50'000);
    struct flock wanted {};
    wanted.l_type = F_WRLCK;
    if (::fcntl(fd.get(), F_SETLKW, &wanted) == 0 || errno != EINTR) return 1;
    if (::flock(fd.get(), LOCK_EX) == 0 || errno != EINTR) return 2;
    return 0;
  });
  int status = status_of(with_handler);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(0, WEXITSTATUS(status));

  const pid_t killed = in_child([&] {
    Fd fd = open_at(b("f"), O_RDWR);
    struct flock wanted {};
    wanted.l_type = F_WRLCK;
    return ::fcntl(fd.get(), F_OFD_SETLKW, &wanted);
  });
  ASSERT_TRUE(waits_for_its_node(killed));
  ASSERT_OK(::kill(killed, SIGTERM));
  status = status_of(killed);
  EXPECT_TRUE(WIFSIGNALED(status));

  // Neither has left anything behind.
  ASSERT_OK(::flock(mine.get(), LOCK_UN));
  whole.l_type = F_UNLCK;
  ASSERT_OK(::fcntl(mine.get(), F_OFD_SETLK, &whole));
  Fd other = open_at(c("f"), O_RDWR);
  whole.l_type = F_WRLCK;
  EXPECT_OK(::fcntl(other.get(), F_OFD_SETLK, &whole));
  EXPECT_OK(::flock(other.get(), LOCK_EX | LOCK_NB));
}

// Each thread gets to know of a SIGSTOP by itself.
bool has_stopped(pid_t pid) {
  for (const auto& task :
       std::filesystem::directory_iterator("/proc/" + std::to_string(pid) + "/task")) {
    const std::string stat = read_all(task.path() / "stat");
    if (stat.find(") T ") == std::string::npos) return false;
  }
  return true;
}

// The origin's daemon, stopped for as long as this lives.
class Silence {
 public:
  Silence() {
    const std::string text = PosixTest::cluster->status(0);
    const size_t at = text.find("\"pid\":");
    if (at != std::string::npos) pid_ = std::stoi(text.substr(at + 6));
    works_ =
        pid_ > 0 && ::kill(pid_, SIGSTOP) == 0 && eventually([&] { return has_stopped(pid_); });
  }
  ~Silence() {
    if (pid_ > 0) ::kill(pid_, SIGCONT);
  }
  bool works() const { return works_; }

 private:
  pid_t pid_ = 0;
  bool works_ = false;
};

int lock_all(const Fd& fd, int command) {
  struct flock whole {};
  whole.l_type = F_WRLCK;
  return ::fcntl(fd.get(), command, &whole);
}

// What ends cannot be killed: it must not wait for anybody.
TEST_F(PosixTest, AProcessWithoutLocksEndsBesideASilentNode) {
  Fd locked = open_at(b("f"), O_CREAT | O_RDWR);
  ASSERT_OK(lock_all(locked, F_SETLK));
  Silence silence;
  ASSERT_TRUE(silence.works());
  const pid_t pid = in_child([] { return 0; });  // closes the file
  int status = -1;
  EXPECT_TRUE(eventually([&] { return ::waitpid(pid, &status, WNOHANG) == pid; }));
  EXPECT_EQ(0, status);
}

TEST_F(PosixTest, AProcessWithLocksEndsBesideASilentNode) {
  Fd file = open_at(b("f"), O_CREAT | O_RDWR);
  int ends[2] = {};
  ASSERT_OK(::pipe2(ends, O_CLOEXEC));
  Fd told(ends[0]), go_on(ends[1]);
  const pid_t pid = in_child([&] {
    char byte = 0;
    go_on.reset();
    return lock_all(file, F_SETLK) != 0 || ::read(told.get(), &byte, 1) != 0;
  });
  struct flock whole {};
  whole.l_type = F_WRLCK;
  ASSERT_TRUE(eventually([&] {
    whole.l_type = F_WRLCK;
    return ::fcntl(file.get(), F_GETLK, &whole) == 0 && whole.l_type != F_UNLCK;
  }));
  {
    Silence silence;
    ASSERT_TRUE(silence.works());
    go_on.reset();
    int status = -1;
    EXPECT_TRUE(eventually([&] { return ::waitpid(pid, &status, WNOHANG) == pid; }));
    EXPECT_EQ(0, status);
  }
  EXPECT_TRUE(eventually([&] { return lock_all(file, F_SETLK) == 0; })) << "it is free";
}

TEST_F(PosixTest, WhoWaitsForASilentNodeCanBeKilledAlsoAfterAnotherSignal) {
  ASSERT_EQ(0, put(a("f"), "x"));
  ASSERT_EQ(0, put(a("g"), "x"));
  Fd written = open_at(b("h"), O_CREAT | O_RDWR);
  ASSERT_EQ(0, write_at(written, 0, "x"));
  Silence silence;
  ASSERT_TRUE(silence.works());
  // One after the other: two that wait at once may wait for a lock of the kernel's in either order.
  const std::function<int()> waiting[] = {
      [&] { return exists(b("never asked for")); },
      [&] { return ::mkdir(b("new").c_str(), 0777); },
      [&] { return ::chmod(b("g").c_str(), 0600); },
      [&] { return ::fsync(written.get()); },
      [&] { return lock_all(written, F_SETLK); },
      [&] { return ::flock(written.get(), LOCK_EX | LOCK_NB); },
      [&] {
        disturb(30'000);  // the kernel tells of the first signal only
        return ::unlink(b("g").c_str());
      },
  };
  for (const auto& body : waiting) {
    SCOPED_TRACE(&body - waiting);
    const pid_t pid = in_child(body);
    ASSERT_TRUE(waits_for_its_node(pid));
    ::usleep(100'000);
    ASSERT_EQ(0, ::waitpid(pid, nullptr, WNOHANG)) << "ended without being killed";
    ASSERT_OK(::kill(pid, SIGTERM));
    const int status = status_of(pid);
    EXPECT_TRUE(WIFSIGNALED(status));
  }
}

}  // namespace
}  // namespace vremote::live
