#include "posix_support.h"

#include <fcntl.h>
#include <grp.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

namespace vremote::live {

Playground* PosixTest::cluster = nullptr;

void PosixTest::SetUp() {
  dir_ = ::testing::UnitTest::GetInstance()->current_test_info()->name();
  ASSERT_OK(::mkdir(a().c_str(), 0777));
  ASSERT_OK(::chmod(a().c_str(), 0777));
}

uint64_t counter(size_t node, const char* name) {
  const auto status = nlohmann::json::parse(PosixTest::cluster->status(node), nullptr, false);
  const auto at = nlohmann::json::json_pointer("/counters") / name;
  if (!status.contains(at)) ADD_FAILURE() << "no counter " << name;
  return status.value(at, uint64_t{0});
}

std::string read_at(const Fd& fd, uint64_t offset, size_t length) {
  std::string text(length, '\0');
  const ssize_t n = ::pread(fd.get(), text.data(), length, static_cast<off_t>(offset));
  if (n < 0) return std::string("unreadable: ") + std::strerror(errno);
  text.resize(static_cast<size_t>(n));
  return text;
}

struct stat stat_of(const std::string& path) {
  struct stat st {};
  if (::lstat(path.c_str(), &st) != 0) ADD_FAILURE() << path << ": " << std::strerror(errno);
  return st;
}

int64_t mtime_ns(const struct stat& st) {
  return st.st_mtim.tv_sec * 1'000'000'000 + st.st_mtim.tv_nsec;
}

std::string pattern(size_t size, unsigned seed) {
  std::string text(size, '\0');
  uint64_t x = seed * 0x9E3779B97F4A7C15u + 1;
  for (char& ch : text) {
    x = x * 6364136223846793005u + 1442695040888963407u;
    ch = static_cast<char>('!' + (x >> 33) % 90);
  }
  return text;
}

pid_t in_child(const std::function<int()>& body) {
  std::fflush(nullptr);
  const pid_t pid = ::fork();
  if (pid == 0) {
    PosixTest::cluster->in_child();
    ::_exit(body());
  }
  return pid;
}

int status_of(pid_t pid) {
  int status = 0;
  ::waitpid(pid, &status, 0);
  return status;
}

testing::AssertionResult waits_for_its_node(pid_t pid, std::string_view call) {
  const std::string process = "/proc/" + std::to_string(pid);
  auto read = [&](const char* name) {
    std::ifstream file(process + name);
    return std::string((std::istreambuf_iterator<char>(file)), {});
  };
  std::string stack;
  for (int i = 0; i < 60000; ++i) {  // a loaded machine may be slow
    stack = read("/stack");
    if (stack.find("request_wait_answer") != std::string::npos &&
        stack.find(call) != std::string::npos)
      return testing::AssertionSuccess();
    ::usleep(1000);
  }
  return testing::AssertionFailure() << "process " << pid << " does this instead:\n"
                                     << read("/status") << read("/syscall") << stack;
}

int as_user(unsigned uid, unsigned gid, const std::function<int()>& body) {
  std::fflush(nullptr);
  const pid_t pid = ::fork();
  if (pid == 0) {
    PosixTest::cluster->in_child();
    if (::setgroups(0, nullptr) != 0 || ::setgid(gid) != 0 || ::setuid(uid) != 0) ::_exit(255);
    ::_exit(body());
  }
  int status = 0;
  ::waitpid(pid, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

}  // namespace vremote::live

// Cases share one cluster: starting three nodes for each would take longer than the cases.
int main(int argc, char** argv) {
  using namespace vremote::live;
  ::testing::InitGoogleTest(&argc, argv);
  if (::testing::GTEST_FLAG(list_tests)) return RUN_ALL_TESTS();
  if (const std::string why = why_no_mounts(); !why.empty()) {
    std::fprintf(stderr, "SKIPPED: %s\n", why.c_str());
    return kSkipped;
  }
  ::umask(022);
  auto cluster = Playground::start(
      {.program = VREMOTE_PROGRAM, .nodes = 3, .seconds = 800, .base = {}, .keep = false});
  if (!cluster) {
    std::fprintf(stderr, "%s\n", cluster.error().what.c_str());
    return 1;
  }
  // Others than root go through the cluster's directories too.
  ::chmod((*cluster)->dir().c_str(), 0755);
  PosixTest::cluster = cluster->get();
  const int result = RUN_ALL_TESTS();
  const std::string ended = (*cluster)->stop();
  if (!ended.empty()) std::fprintf(stderr, "%s\n", ended.c_str());
  return result != 0 || !ended.empty() ? 1 : 0;
}
