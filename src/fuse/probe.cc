#include "fuse/probe.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>

#include "base/fd.h"

namespace vremote::fuse {
namespace {

constexpr int kAnswerFd = 3;
constexpr int kFdsBeforeCloseRange = 4096;
constexpr int kEndMs = 100;

// The child: only async-signal-safe calls, since its parent may have threads.
[[noreturn]] void ask(const char* mount_point, int answer_fd) {
  // Should this process be held for good, it must hold nothing of ours: not a /dev/fuse descriptor
  // above all, whose connection would then never end.
  if (answer_fd != kAnswerFd) ::dup2(answer_fd, kAnswerFd);
  if (::syscall(SYS_close_range, kAnswerFd + 1, ~0U, 0) != 0) {  // Linux 5.9
    for (int fd = kAnswerFd + 1; fd < kFdsBeforeCloseRange; ++fd) ::close(fd);
  }
  // statfs, not stat: the kernel never answers it from its caches.
  struct statfs info {};
  const int error = ::statfs(mount_point, &info) == 0 ? 0 : errno;
  const ssize_t written = ::write(kAnswerFd, &error, sizeof(error));
  ::_exit(written == static_cast<ssize_t>(sizeof(error)) ? 0 : 1);
}

}  // namespace

Liveness probe(const std::string& mount_point, int timeout_ms) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return Liveness::Silent;
  const Fd reader(ends[0]);
  Fd writer(ends[1]);
  const pid_t child = ::fork();
  if (child < 0) return Liveness::Silent;
  if (child == 0) ask(mount_point.c_str(), writer.get());
  writer.reset();

  pollfd wait{.fd = reader.get(), .events = POLLIN, .revents = 0};
  int ready = 0;
  do {
    ready = ::poll(&wait, 1, timeout_ms);
  } while (ready < 0 && errno == EINTR);
  int error = 0;
  const bool answered = ready == 1 && ::read(reader.get(), &error, sizeof(error)) == sizeof(error);
  if (!answered) {
    // It may be beyond killing until the daemon answers: then it is left, to be gone with us.
    const Fd process(static_cast<int>(::syscall(SYS_pidfd_open, child, 0)));
    ::kill(child, SIGKILL);
    pollfd ended{.fd = process.get(), .events = POLLIN, .revents = 0};
    ::poll(&ended, 1, kEndMs);
    ::waitpid(child, nullptr, WNOHANG);
    return Liveness::Silent;
  }
  ::waitpid(child, nullptr, 0);
  // ECONNREFUSED: its INIT failed, so it can never serve.
  const bool dead = error == ENOTCONN || error == ECONNABORTED || error == ECONNREFUSED;
  return dead ? Liveness::Dead : Liveness::Alive;
}

}  // namespace vremote::fuse
