// What a node's configuration says of its mount.
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>

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

}  // namespace
}  // namespace vremote::live
