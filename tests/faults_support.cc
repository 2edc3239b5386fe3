#include "faults_support.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "support/playground.h"

namespace vremote::live {

std::string FaultsTest::base;

Nodes& FaultsTest::nodes(size_t count, const std::string& extra) {
  if (!nodes_) {
    const std::string dir =
        base + "/" + ::testing::UnitTest::GetInstance()->current_test_info()->name();
    ::mkdir(dir.c_str(), 0755);
    nodes_ = std::make_unique<Nodes>(VREMOTE_PROGRAM, dir, count, extra);
  }
  return *nodes_;
}

std::string read_all(const std::string& path) {
  const Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return std::string("no ") + std::strerror(errno);
  std::string text, chunk(1 << 16, '\0');
  for (;;) {
    const ssize_t n = ::read(fd.get(), chunk.data(), chunk.size());
    if (n < 0) return std::string("unreadable: ") + std::strerror(errno);
    if (n == 0) return text;
    text.append(chunk, 0, static_cast<size_t>(n));
  }
}

int put(const std::string& path, std::string_view content) {
  const Fd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
  if (!fd.valid()) return errno;
  return ::write(fd.get(), content.data(), content.size()) == static_cast<ssize_t>(content.size())
             ? 0
             : errno;
}

bool exists(const std::string& path) {
  struct stat st {};
  return ::lstat(path.c_str(), &st) == 0;
}

pid_t in_child(const std::function<int()>& body) {
  std::fflush(nullptr);
  const pid_t pid = ::fork();
  if (pid == 0) ::_exit(body());
  return pid;
}

}  // namespace vremote::live

int main(int argc, char** argv) {
  using namespace vremote::live;
  ::testing::InitGoogleTest(&argc, argv);
  if (::testing::GTEST_FLAG(list_tests)) return RUN_ALL_TESTS();
  if (const std::string why = why_no_mounts(); !why.empty()) {
    std::fprintf(stderr, "SKIPPED: %s\n", why.c_str());
    return kSkipped;
  }
  ::umask(022);
  return guarded(280, [](const std::string& dir) {
    FaultsTest::base = dir;
    return RUN_ALL_TESTS();
  });
}
