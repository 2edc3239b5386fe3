// Files that have lost their last name and are open when a daemon is killed.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <string>
#include <vector>

#include "crash_support.h"

namespace vremote::live {
namespace {

class CrashRemovedTest : public CrashTest {
 protected:
  void removed_files_stay_open(size_t user, size_t killed);
};

void CrashRemovedTest::removed_files_stay_open(size_t user, size_t killed) {
  nodes().start_all();
  constexpr off_t kBig = 9 << 20;
  const auto path = [&](const char* name) { return nodes().path(user, 0, name); };
  const int flags = O_RDWR | O_CREAT | O_CLOEXEC;
  std::vector<Fd> fds;
  fds.emplace_back(::open(path("by its node").c_str(), flags, 0644));
  fds.emplace_back(::open(path("by another").c_str(), flags, 0644));
  fds.emplace_back(::open(path("replaced").c_str(), flags, 0644));
  fds.emplace_back(::open(nodes().path(user, 0).c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  if (!fds.back().valid()) fds.pop_back();  // from Linux 6.2 on
  for (size_t i = 0; i < fds.size(); ++i) {
    ASSERT_EQ(5, ::pwrite(fds[i].get(), "bytes", 5, 0));
    // More than what is kept of a file that nobody has open.
    const std::string some(kBig, 'b');
    const size_t more = i == 1 ? 0 : kBig;
    ASSERT_EQ(more, ::pwrite(fds[i].get(), some.data(), more, 4096));
    ASSERT_EQ(0, ::fsync(fds[i].get()));
  }
  ASSERT_EQ(0, ::unlink(path("by its node").c_str()));
  ASSERT_EQ(0, ::unlink(nodes().path(1 - user, 0, "by another").c_str()));
  ASSERT_EQ(0, put(path("new"), "new"));
  ASSERT_EQ(0, ::rename(path("new").c_str(), path("replaced").c_str()));
  for (int round = 0; round < 2; ++round) {
    kill_and_start(killed);
    ASSERT_TRUE(eventually([&] { return nodes().connected(1 - killed); }));
    for (size_t i = 0; i < fds.size(); ++i) {
      char text[8] = {};
      EXPECT_EQ(5, ::pread(fds[i].get(), text, 5, 0))
          << i << std::strerror(errno) << nodes().log(0) << nodes().log(1);
      EXPECT_STREQ(round == 0 ? "bytes" : "again", text);
      EXPECT_EQ(5, ::pwrite(fds[i].get(), "again", 5, 0)) << std::strerror(errno);
      EXPECT_EQ(0, ::fsync(fds[i].get())) << i << std::strerror(errno);
      struct stat st {};
      EXPECT_EQ(0, ::fstat(fds[i].get(), &st));
      EXPECT_EQ(0u, st.st_nlink) << i;
      EXPECT_EQ(i == 1 ? 5 : 4096 + kBig, st.st_size) << i;
    }
  }
  fds.clear();
  EXPECT_EQ("new", read_all(nodes().path(1 - user, 0, "replaced")));
  ASSERT_EQ(0, put(path("by its node"), "another"));
  EXPECT_EQ("another", read_all(nodes().path(1 - user, 0, "by its node")));
}

TEST_F(CrashRemovedTest, ARemovedFileThatWasOpenStaysOpen) { removed_files_stay_open(1, 1); }
TEST_F(CrashRemovedTest, ARemovedFileOutlivesTheDaemonOfItsOrigin) {
  removed_files_stay_open(1, 0);
}
TEST_F(CrashRemovedTest, ARemovedFileOutlivesTheDaemonOfItsOwnNode) {
  removed_files_stay_open(0, 0);
}

// Whoever removes it must get from the dead node what that may have cached, and waits for it.
TEST_F(CrashRemovedTest, AFileThatIsRemovedMeanwhileStaysOpen) {
  nodes(2, "[lease]\nterm_ms = 60000\n").start_all();
  const std::string some(9 << 20, 'b');
  const Fd fd(::open(nodes().path(1, 0, "f").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
  ASSERT_EQ(ssize_t(some.size()), ::pwrite(fd.get(), some.data(), some.size(), 0));
  ASSERT_EQ(0, ::fsync(fd.get()));
  kill(1);
  const std::string name = nodes().path(0, 0, "f");
  const pid_t remover = in_child([&] { return error_of(::unlink(name.c_str())); });
  EXPECT_TRUE(eventually([&] { return nodes().ask(0, "blocked").find('{') != std::string::npos; }));
  start(1);
  EXPECT_EQ(0, exit_status(remover)) << nodes().log(0);
  EXPECT_FALSE(exists(name));
  char byte = 0;
  EXPECT_EQ(1, ::pread(fd.get(), &byte, 1, ssize_t(some.size()) - 1))
      << std::strerror(errno) << nodes().log(0) << nodes().log(1);
  EXPECT_EQ('b', byte);
  EXPECT_EQ(1, ::pwrite(fd.get(), "c", 1, 0));
  EXPECT_EQ(0, ::fsync(fd.get())) << std::strerror(errno);
  struct stat st {};
  EXPECT_EQ(0, ::fstat(fd.get(), &st));
  EXPECT_EQ(0u, st.st_nlink);
  EXPECT_EQ(ssize_t(some.size()), st.st_size);
}

}  // namespace
}  // namespace vremote::live
