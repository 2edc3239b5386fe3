#include "support/guard.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string_view>
#include <vector>

#include "fuse/fusectl.h"
#include "fuse/mountinfo.h"

namespace vremote::live {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr auto kPatience = std::chrono::seconds(30);       // with a playground told to end
constexpr auto kForcedPatience = std::chrono::seconds(5);  // once its connections are gone

// Our own children by now: a subreaper inherits the nodes of a playground that died.
std::vector<pid_t> children() {
  std::vector<pid_t> found;
  std::ifstream list(fmt::format("/proc/self/task/{}/children", ::getpid()));
  for (pid_t pid = 0; list >> pid;) found.push_back(pid);
  return found;
}

bool reap_until(pid_t pid, Clock::time_point deadline, int* status) {
  for (;;) {
    const pid_t got = ::waitpid(pid, status, WNOHANG);
    if (got == pid || (got < 0 && errno == ECHILD)) return true;
    if (Clock::now() >= deadline) return false;
    ::poll(nullptr, 0, 20);
  }
}

pid_t start(const GuardOrders& orders) {
  const std::string log = orders.dir + "/playground.log";
  const std::string nodes = std::to_string(orders.nodes);
  const std::string dir = orders.dir + "/p";
  const pid_t parent = ::getpid();
  const pid_t pid = ::fork();
  if (pid != 0) return pid;
  for (int signal : {SIGINT, SIGTERM, SIGHUP, SIGPIPE})
    ::signal(signal, SIG_DFL);  // what is ignored stays so after exec
  ::prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (::getppid() != parent) ::_exit(127);
  const int out = ::open(log.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
  ::dup2(out, STDOUT_FILENO);
  ::dup2(out, STDERR_FILENO);
  ::execl(orders.program.c_str(), "vremote", "playground", "--nodes", nodes.c_str(), "--dir",
          dir.c_str(), nullptr);
  ::_exit(127);
}

// Whatever is left of the playground: by force.
bool force_end(const GuardOrders& orders, pid_t playground, bool playground_gone) {
  remove_mounts_below(orders.dir, true);
  if (!playground_gone) ::kill(playground, SIGKILL);
  const auto deadline = Clock::now() + kForcedPatience;
  for (;;) {
    const std::vector<pid_t> left = children();
    if (left.empty()) return true;
    for (pid_t pid : left) {
      ::kill(pid, SIGKILL);
      ::waitpid(pid, nullptr, WNOHANG);
    }
    remove_mounts_below(orders.dir, true);
    if (Clock::now() >= deadline) return false;
    ::poll(nullptr, 0, 20);
  }
}

}  // namespace

void remove_mounts_below(const std::string& dir, bool abort_first) {
  for (int round = 0; round < 4; ++round) {
    auto mounts = fuse::read_mountinfo();
    if (!mounts) return;
    bool any = false;
    for (auto it = mounts->rbegin(); it != mounts->rend(); ++it) {
      if (!it->point.starts_with(dir + "/")) continue;
      any = true;
      if (abort_first && it->type.starts_with("fuse")) {
        // Not detached then: without its mount nobody would find the connection again.
        if (auto done = fuse::abort_connection(it->minor); !done) {
          fmt::print(stderr, "guard: abort of {}: {}\n", it->point, done.error().what);
          continue;
        }
      }
      ::umount2(it->point.c_str(), MNT_DETACH | UMOUNT_NOFOLLOW);
    }
    if (!any) return;
  }
}

int guard_playground(const GuardOrders& orders, int alive) {
  ::setsid();
  ::prctl(PR_SET_CHILD_SUBREAPER, 1);
  ::prctl(PR_SET_NAME, "vremote-guard");
  for (int signal : {SIGINT, SIGTERM, SIGHUP, SIGPIPE}) ::signal(signal, SIG_IGN);
  const auto deadline = Clock::now() + std::chrono::seconds(orders.seconds);
  const pid_t playground = start(orders);
  int result = kGuardClean;
  int status = 0;
  bool gone = playground < 0;
  for (;;) {
    pollfd entry{alive, POLLIN, 0};
    const int ready = ::poll(&entry, 1, 100);
    if (ready > 0) {
      char byte = 0;
      if (::read(alive, &byte, 1) <= 0) break;  // the test is over
    }
    if (!gone && ::waitpid(playground, &status, WNOHANG) == playground) {
      gone = true;
      result = kGuardUnclean;
      break;
    }
    if (Clock::now() >= deadline) {
      fmt::print(stderr, "guard: {} s are over: ending the playground in {} by force\n",
                 orders.seconds, orders.dir);
      result = kGuardTimeout;
      break;
    }
  }
  if (!gone && result == kGuardClean) {
    ::kill(playground, SIGTERM);
    gone = reap_until(playground, Clock::now() + kPatience, &status);
    if (!gone || !WIFEXITED(status) || WEXITSTATUS(status) != 0) {
      fmt::print(stderr, "guard: the playground in {} {}\n", orders.dir,
                 gone ? "ended badly" : "does not end");
      result = kGuardUnclean;
    }
  }
  if (!force_end(orders, playground, gone)) {
    fmt::print(stderr, "guard: some process of {} cannot be ended\n", orders.dir);
    if (result == kGuardClean) result = kGuardUnclean;
  }
  if (result != kGuardClean) {
    std::ifstream log(orders.dir + "/playground.log");
    std::string line;
    for (int i = 0; i < 60 && std::getline(log, line); ++i)
      fmt::print(stderr, "playground: {}\n", line);
  }
  // Nothing is mounted below any more, or remove_all would enter it: look again, and rather leave
  // the directory.
  auto mounts = fuse::read_mountinfo();
  bool mounted = !mounts;
  if (mounts)
    for (const auto& mount : *mounts) mounted |= mount.point.starts_with(orders.dir + "/");
  if (!orders.keep && !mounted) {
    std::error_code ignored;
    std::filesystem::remove_all(orders.dir, ignored);
  }
  return result;
}

}  // namespace vremote::live
