#include "faults_support.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>

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
