// A cluster whose daemons are killed under programs that use its mounts, and what the next ones are
// seen to go on with (docs/operations.md, "When a daemon dies or stops").
#pragma once

#include <signal.h>
#include <sys/wait.h>

#include <cerrno>
#include <string>

#include "faults_support.h"
#include "node/process_setup.h"

namespace vremote::live {

inline constexpr int kResend = 6009;  // Linux 6.9

class CrashTest : public FaultsTest {
 protected:
  void SetUp() override {
    if (node::kernel_version() < kResend)
      GTEST_SKIP() << "this kernel cannot deliver requests again (Linux 6.9)";
  }
  void kill(size_t node) {
    nodes().signal(node, SIGKILL);
    nodes().wait_for_end(node);
  }
  // The next daemon goes on with the mount of this one.
  void kill_and_start(size_t node) {
    kill(node);
    start(node);
  }
  void start(size_t node) {
    nodes().start(node);
    EXPECT_TRUE(eventually([&] { return nodes().connected(node); })) << nodes().log(node);
    ++started_;
    EXPECT_TRUE(eventually([&] { return went_on(node) == started_; })) << nodes().log(node);
  }
  size_t went_on(size_t node) {
    size_t count = 0;
    const std::string log = nodes().log(node);
    for (size_t at = 0; (at = log.find("went on with the mount", at)) != log.npos; ++at) ++count;
    return count;
  }

  size_t started_ = 0;
};

inline int error_of(ssize_t result) { return result < 0 ? errno : 0; }

inline int exit_status(pid_t pid) {
  int status = 0;
  if (!eventually([&] { return ::waitpid(pid, &status, WNOHANG) == pid; })) return -1;  // it hangs
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

}  // namespace vremote::live
