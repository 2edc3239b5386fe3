// The cluster of three nodes that the cases of posix_test share, and short words for what they do.
#pragma once

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <functional>
#include <string>
#include <string_view>

#include "base/fd.h"
#include "support/files.h"
#include "support/playground.h"

namespace vremote::live {

// Paths are of the export of the first node, seen through the mounts of node A (its origin), B and
// C.
class PosixTest : public ::testing::Test {
 public:
  static Playground* cluster;  // made by main()

 protected:
  void SetUp() override;

  // A directory of this case alone, made through A.
  std::string a(const std::string& name = {}) const {
    return cluster->path(0, 0, dir_ + (name.empty() ? "" : "/" + name));
  }
  std::string b(const std::string& name = {}) const {
    return cluster->path(1, 0, dir_ + (name.empty() ? "" : "/" + name));
  }
  std::string c(const std::string& name = {}) const {
    return cluster->path(2, 0, dir_ + (name.empty() ? "" : "/" + name));
  }
  // In the origin's own directory, behind the mounts.
  std::string disk(const std::string& name = {}) const {
    return cluster->disk(0, dir_ + (name.empty() ? "" : "/" + name));
  }

 private:
  std::string dir_;
};

// errno of a call that failed, 0 of one that did not.
inline int error_of(int64_t result) { return result < 0 ? errno : 0; }

// One of a node's counters, as `vremote status` tells them.
uint64_t counter(size_t node, const char* name);

std::string read_at(const Fd& fd, uint64_t offset, size_t length);
struct stat stat_of(const std::string& path);
int64_t mtime_ns(const struct stat& st);
// A text of `size` bytes that no shift maps to itself.
std::string pattern(size_t size, unsigned seed = 1);
// Runs `body` in a child; its process number. `body`'s value becomes the exit status.
pid_t in_child(const std::function<int()>& body);
int status_of(pid_t pid);  // waits for its end
inline bool ended_well(pid_t pid) {
  const int status = status_of(pid);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}
// Until the process waits in the kernel for an answer of its node, to a call whose stack names
// this.
testing::AssertionResult waits_for_its_node(pid_t pid, std::string_view call = {});
// Runs `body` in a child with this uid and gid; its value (errno or 0) comes back.
int as_user(unsigned uid, unsigned gid, const std::function<int()>& body);

#define ASSERT_OK(call) ASSERT_EQ(0, ::vremote::live::error_of(call)) << #call
#define EXPECT_OK(call) EXPECT_EQ(0, ::vremote::live::error_of(call)) << #call
#define EXPECT_ERROR(error, call) EXPECT_EQ(error, ::vremote::live::error_of(call)) << #call

}  // namespace vremote::live
