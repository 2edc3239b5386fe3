// Appends of several nodes at once.
#include <fcntl.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <map>
#include <set>
#include <vector>

#include "posix_support.h"

namespace vremote::live {
namespace {

// A child that appends `count` records, each of one letter and one byte after the other of `sizes`
// long.
pid_t appender(const std::string& path, char letter, int count, const std::vector<size_t>& sizes) {
  const pid_t pid = ::fork();
  if (pid != 0) return pid;
  PosixTest::cluster->in_child();
  Fd fd = open_at(path, O_WRONLY | O_APPEND);
  for (int i = 0; i < count; ++i) {
    const size_t size = sizes[static_cast<size_t>(i) % sizes.size()];
    std::string record(size, letter);
    record.back() = '\n';
    if (::write(fd.get(), record.data(), size) != static_cast<ssize_t>(size)) ::_exit(1);
  }
  ::_exit(0);
}

void expect_records(const std::string& text, const std::map<char, std::multiset<size_t>>& wanted) {
  std::map<char, std::multiset<size_t>> found;
  for (size_t at = 0; at < text.size();) {
    size_t end = text.find_first_not_of(text[at], at);
    ASSERT_NE(std::string::npos, end) << "no end of the record at " << at;
    ASSERT_EQ('\n', text[end]) << "another record in the midst of that at " << at << ", after "
                               << end - at << " bytes";
    found[text[at]].insert(end + 1 - at);
    at = end + 1;
  }
  EXPECT_EQ(wanted, found);
}

void run(const std::vector<std::string>& paths, int count, const std::vector<size_t>& sizes,
         const std::string& seen_by) {
  std::vector<pid_t> children;
  std::map<char, std::multiset<size_t>> wanted;
  for (size_t i = 0; i < paths.size(); ++i) {
    const char letter = static_cast<char>('a' + i);
    children.push_back(appender(paths[i], letter, count, sizes));
    for (int n = 0; n < count; ++n)
      wanted[letter].insert(sizes[static_cast<size_t>(n) % sizes.size()]);
  }
  for (const pid_t pid : children) {
    int status = 0;
    ::waitpid(pid, &status, 0);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  }
  expect_records(read_all(seen_by), wanted);
}

// Longer than one request of the kernel, which sends them in pieces (K15).
TEST_F(PosixTest, RecordsOfSeveralMegabytesStayInOnePiece) {
  ASSERT_EQ(0, put(a("log"), ""));
  run({a("log"), b("log"), b("log"), c("log")}, 6, {3u << 20, 1u << 20, (3u << 20) + 77, 2'500'000},
      c("log"));
}

TEST_F(PosixTest, RecordsOfSeveralWritersOnEachNodeAreWhole) {
  ASSERT_EQ(0, put(a("log"), ""));
  run({a("log"), a("log"), b("log"), b("log"), c("log"), c("log")}, 60, {1 + 1, 100, 4096, 5000},
      b("log"));
}

// An end that is decided anew after each truncation: no record is lost or torn, and none lies
// behind a hole.
TEST_F(PosixTest, RecordsBesideTruncationsAndReadersAreWholeOrGone) {
  ASSERT_EQ(0, put(a("log"), ""));
  const std::vector<pid_t> writers{appender(b("log"), 'b', 150, {7, 300, 9000}),
                                   appender(c("log"), 'c', 150, {7, 300, 9000})};
  const pid_t reader = ::fork();
  if (reader == 0) {
    PosixTest::cluster->in_child();
    for (int i = 0; i < 60; ++i) {
      struct stat st {};
      if (::stat(c("log").c_str(), &st) != 0) ::_exit(1);
      const std::string text = read_all(b("log"));
      if (text.starts_with("no ") || text.starts_with("unreadable")) ::_exit(2);
    }
    ::_exit(0);
  }
  for (int i = 0; i < 40; ++i) {
    EXPECT_OK(::truncate(a("log").c_str(), 0));
    ::usleep(3000);
  }
  int status = 0;
  for (const pid_t pid : {writers[0], writers[1], reader}) {
    ::waitpid(pid, &status, 0);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  }
  const std::string text = read_all(a("log"));
  for (size_t at = 0; at < text.size();) {
    const size_t end = text.find_first_not_of(text[at], at);
    ASSERT_TRUE(text[at] == 'b' || text[at] == 'c') << "at " << at;
    ASSERT_TRUE(end != std::string::npos && text[end] == '\n') << "at " << at;
    at = end + 1;
  }
}

}  // namespace
}  // namespace vremote::live
