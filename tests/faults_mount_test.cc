// What a node's configuration says of its mount, and what its machine allows.
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "faults_support.h"

namespace vremote::live {
namespace {

constexpr unsigned kOwner = 4321, kCaller = 65534;

// What `id -u`, copied to `program`, says to somebody without rights: the user it runs as.
std::string effective_user(const std::string& program) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return "no pipe";
  // The way to the mount is for root alone.
  const Fd file = open_at(program, O_PATH);
  const Fd out(ends[0]);
  Fd in(ends[1]);
  const pid_t pid = in_child([&] {
    if (::dup2(in.get(), STDOUT_FILENO) < 0 || ::setgid(kCaller) != 0 || ::setuid(kCaller) != 0)
      return 1;
    char name[] = "id", option[] = "-u";
    char* const arguments[] = {name, option, nullptr};
    ::fexecve(file.get(), arguments, environ);
    return errno;
  });
  in = Fd();
  char text[32];
  const ssize_t length = ::read(out.get(), text, sizeof text);
  int status = 0;
  ::waitpid(pid, &status, 0);
  if (length <= 0) return "ended with " + std::to_string(status);
  return {text, static_cast<size_t>(length)};
}

void check(Nodes& nodes, const std::string& runs_as) {
  nodes.start_all();
  const std::string program = read_all("/usr/bin/id");
  ASSERT_EQ(0, put(nodes.path(0, 0, "id"), program));
  ASSERT_EQ(0, ::chown(nodes.path(0, 0, "id").c_str(), kOwner, kOwner));
  ASSERT_EQ(0, ::chmod(nodes.path(0, 0, "id").c_str(), 04755));
  EXPECT_EQ(runs_as, effective_user(nodes.path(0, 0, "id"))) << "at its origin";
  EXPECT_EQ(runs_as, effective_user(nodes.path(1, 0, "id"))) << "on another node";
  // The bit goes at the other node, and counts no more here.
  ASSERT_EQ(0, ::chmod(nodes.path(1, 0, "id").c_str(), 0755));
  EXPECT_EQ(std::to_string(kCaller) + "\n", effective_user(nodes.path(0, 0, "id")));
}

TEST_F(FaultsTest, SetUserIdProgramsRunAsTheirOwnerWhereTheMountAllowsIt) {
  check(nodes(2, "mount_suid = true\n"), std::to_string(kOwner) + "\n");
}

TEST_F(FaultsTest, SetUserIdProgramsRunAsTheirCallerUnlessTheMountAllowsIt) {
  check(nodes(2), std::to_string(kCaller) + "\n");
}

// An origin keeps so many files open for others as its descriptors allow, half of that for one
// node.
TEST_F(FaultsTest, OneMoreFileWithoutANameThanAnOriginCanKeepIsRefused) {
  nodes().start(0, 1024);
  nodes().start(1);
  ASSERT_TRUE(eventually([&] { return nodes().connected(0) && nodes().connected(1); }));
  const std::string dir = nodes().path(1, 0);
  ASSERT_EQ(0, put(dir + "/named", "bytes"));
  std::vector<Fd> files;
  int error = 0;
  while (files.size() < 1024) {
    Fd fd(::open(dir.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
    if (!fd.valid()) {
      error = errno;
      break;
    }
    files.push_back(std::move(fd));
  }
  if (files.empty() && error == EOPNOTSUPP) GTEST_SKIP() << "no O_TMPFILE here (Linux 6.2)";
  EXPECT_EQ(ENFILE, error);
  EXPECT_GE(files.size(), 100u) << "1024 descriptors / 4 / 2, but for what else is open";
  EXPECT_LE(files.size(), 128u);
  for (const Fd& fd : files) EXPECT_EQ(1, ::pwrite(fd.get(), "x", 1, 0));
  // Files with names are opened all the same, and the node itself has a share of its own.
  const Fd named(::open((dir + "/named").c_str(), O_RDWR | O_CLOEXEC));
  EXPECT_TRUE(named.valid());
  const Fd own(::open(nodes().path(0, 0).c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  EXPECT_TRUE(own.valid());
  files.clear();
  EXPECT_TRUE(eventually([&] {
    return Fd(::open(dir.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600)).valid();
  })) << "room again when they are closed";
}

}  // namespace
}  // namespace vremote::live
