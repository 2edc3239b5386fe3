// The playground as a process, around nodes without a daemon (fake_node.h).
//
// This program is `vremote` itself when its first argument is a subcommand: the playground starts
// its nodes from /proc/self/exe.
#include "cli/playground.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <sstream>

#include "base/fd.h"
#include "cli/commands.h"
#include "cli/fake_node.h"
#include "cli/mount_cleanup.h"
#include "control/client.h"
#include "fuse/mountinfo.h"
#include "node/config/config.h"

namespace vremote::cli {
namespace {

using ::testing::HasSubstr;
namespace fs = std::filesystem;

// Looks every 10 ms until `done`; false after `seconds`.
bool eventually(const std::function<bool()>& done, int seconds = 30) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(seconds);
  while (!done()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    ::poll(nullptr, 0, 10);
  }
  return true;
}

std::string text_of(const fs::path& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

class PlaygroundTest : public ::testing::Test {
 protected:
  PlaygroundTest() {
    ::prctl(PR_SET_CHILD_SUBREAPER, 1);  // orphaned nodes come to us: we see that they end
    char path[] = "/tmp/vremote-play-XXXXXX";
    EXPECT_NE(::mkdtemp(path), nullptr);
    root_ = path;
    dir_ = root_ / "play";
    for (const char* name : {"VREMOTE_FAKE_node1", "VREMOTE_FAKE_node2"}) ::unsetenv(name);
  }
  ~PlaygroundTest() override {
    for (const pid_t pid : started_) {
      if (::waitpid(pid, nullptr, WNOHANG) != 0) continue;  // ended
      ::kill(pid, SIGKILL);
      ::waitpid(pid, nullptr, 0);
    }
    for (const char* node : {"node1", "node2"})
      static_cast<void>(remove_mounts(dir_ / node / "mnt"));
    EXPECT_TRUE(eventually([] { return ::waitpid(-1, nullptr, WNOHANG) < 0; }))
        << "a node is left behind";
    fs::remove_all(root_);
  }

  // `vremote playground --dir DIR …`, its output in root_/out and root_/err.
  pid_t start(std::vector<std::string> more = {}) {
    std::vector<std::string> arguments = {"vremote", "playground", "--dir", dir_};
    arguments.insert(arguments.end(), more.begin(), more.end());
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    const Fd out(::open((root_ / "out").c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
    const Fd err(::open((root_ / "err").c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
    const pid_t pid = ::fork();
    if (pid == 0) {
      ::prctl(PR_SET_PDEATHSIG,
              SIGTERM);  // a test that is killed leaves no node and no mount either
      ::dup2(out.get(), STDOUT_FILENO);
      ::dup2(err.get(), STDERR_FILENO);
      ::execv("/proc/self/exe", argv.data());
      ::_exit(126);
    }
    started_.push_back(pid);
    return pid;
  }
  // The exit status, or -signal, or -1000 when it did not end in time.
  int wait_for(pid_t pid, int seconds = 40) {
    int status = 0;
    if (!eventually([&] { return ::waitpid(pid, &status, WNOHANG) == pid; }, seconds)) return -1000;
    std::erase(started_, pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }
  bool ready() const { return fs::exists(dir_ / "ready"); }
  std::string out() const { return text_of(root_ / "out"); }
  std::string err() const { return text_of(root_ / "err"); }
  pid_t node_pid(const std::string& node) const {
    auto reply = control::control_query(dir_ / node / "state/control.sock", "status");
    EXPECT_TRUE(reply) << reply.error().what;
    return reply ? nlohmann::json::parse(*reply)["pid"].get<pid_t>() : -1;
  }
  bool mounted(const std::string& node) const {
    auto mount = fuse::mounted_at((dir_ / node / "mnt").string());
    return mount && mount->has_value();
  }

  fs::path root_, dir_;
  std::vector<pid_t> started_;
};

TEST_F(PlaygroundTest, GetsReadyAndEndsWithoutATrace) {
  const pid_t playground = start({"--nodes", "2"});
  ASSERT_TRUE(eventually([&] { return ready(); })) << err();
  const auto json = nlohmann::json::parse(text_of(dir_ / "ready"));
  EXPECT_EQ(json["pid"], playground);
  EXPECT_EQ(json["nodes"][1]["config"], (dir_ / "node2/node.toml").string());
  EXPECT_THAT(out(), HasSubstr((dir_ / "node2/mnt").string()));
  const pid_t node = node_pid("node1");
  EXPECT_NE(::getpgid(node), ::getpgid(playground)) << "^C would reach the node";
  ::kill(playground, SIGINT);
  EXPECT_EQ(wait_for(playground), 0) << err();
  EXPECT_FALSE(ready());
  EXPECT_EQ(::kill(node, 0), -1) << "the node still runs";
  EXPECT_EQ(err(), "");
}

TEST_F(PlaygroundTest, KeepsTheDataOfAnEarlierRun) {
  fs::create_directories(dir_ / "node1/export");
  std::ofstream(dir_ / "node1/export/file") << "kept";
  std::ofstream(dir_ / "ready") << "stale";
  const pid_t playground = start({"--nodes", "1"});
  ASSERT_TRUE(eventually([&] { return ready() && text_of(dir_ / "ready") != "stale"; })) << err();
  EXPECT_EQ(text_of(dir_ / "node1/export/file"), "kept");
  ::kill(playground, SIGTERM);
  EXPECT_EQ(wait_for(playground), 0);
  EXPECT_EQ(text_of(dir_ / "node1/export/file"), "kept");
}

TEST_F(PlaygroundTest, SecondInOneDirectoryIsRefusedAndTheFirstStays) {
  const pid_t first = start({"--nodes", "1"});
  ASSERT_TRUE(eventually([&] { return ready(); })) << err();
  const pid_t second = start({"--nodes", "1"});
  EXPECT_EQ(wait_for(second), 1);
  EXPECT_THAT(err(), HasSubstr("another playground runs in " + dir_.string()));
  EXPECT_TRUE(ready());
  EXPECT_GT(node_pid("node1"), 0);
  ::kill(first, SIGTERM);
  EXPECT_EQ(wait_for(first), 0);
}

TEST_F(PlaygroundTest, NodeThatDiesAtStartIsShownWithItsLog) {
  ::setenv("VREMOTE_FAKE_node2", "die", 1);
  const pid_t playground = start({"--nodes", "2"});
  EXPECT_EQ(wait_for(playground), 1);
  EXPECT_THAT(err(), HasSubstr("node2"));
  EXPECT_THAT(err(), HasSubstr("exited with status 3 by itself"));
  EXPECT_THAT(err(), HasSubstr("the disk caught fire"));
  EXPECT_FALSE(ready());
}

TEST_F(PlaygroundTest, NodeThatDiesLaterTakesThePlaygroundDown) {
  const pid_t playground = start({"--nodes", "2"});
  ASSERT_TRUE(eventually([&] { return ready(); })) << err();
  ::kill(node_pid("node1"), SIGKILL);
  EXPECT_EQ(wait_for(playground), 1);
  EXPECT_THAT(err(), HasSubstr("node1"));
  EXPECT_THAT(err(), HasSubstr("was killed by signal 9"));
  EXPECT_FALSE(ready());
}

TEST_F(PlaygroundTest, NodeThatEndsBadlyIsNotSilent) {
  ::setenv("VREMOTE_FAKE_node1", "bad_end", 1);
  const pid_t playground = start({"--nodes", "2"});
  ASSERT_TRUE(eventually([&] { return ready(); })) << err();
  ::kill(playground, SIGTERM);
  EXPECT_EQ(wait_for(playground), 1);
  EXPECT_THAT(err(), HasSubstr("node1 exited with status 4 at its end"));
}

TEST_F(PlaygroundTest, NotReadyInTimeSaysWhoLacksWhat) {
  ::setenv("VREMOTE_FAKE_node1", "never_ready", 1);
  ::setenv("VREMOTE_FAKE_node2", "disconnected", 1);
  const pid_t playground = start({"--nodes", "2", "--wait", "1"});
  EXPECT_EQ(wait_for(playground), 1);
  EXPECT_THAT(err(),
              HasSubstr("not ready in time: node1 not mounted; node2 not connected to node1"));
  EXPECT_FALSE(ready());
}

TEST_F(PlaygroundTest, InterruptWhileStartingEndsIt) {
  ::setenv("VREMOTE_FAKE_node1", "never_ready", 1);
  const pid_t playground = start({"--nodes", "1"});
  ASSERT_TRUE(eventually([&] { return fs::exists(dir_ / "node1/state/control.sock"); }));
  ::kill(playground, SIGTERM);
  EXPECT_EQ(wait_for(playground), 0) << err();
}

TEST_F(PlaygroundTest, KilledPlaygroundTakesItsNodesAlong) {
  const pid_t playground = start({"--nodes", "2"});
  ASSERT_TRUE(eventually([&] { return ready(); })) << err();
  const pid_t nodes[] = {node_pid("node1"), node_pid("node2")};
  ::kill(playground, SIGKILL);
  EXPECT_EQ(wait_for(playground), -SIGKILL);
  for (const pid_t node : nodes)
    EXPECT_TRUE(eventually([&] { return ::waitpid(node, nullptr, WNOHANG) == node; })) << node;
  const pid_t next = start({"--nodes", "2"});
  ASSERT_TRUE(eventually([&] {
    return ready() && nlohmann::json::parse(text_of(dir_ / "ready"))["pid"] == next;
  })) << err();
  ::kill(next, SIGTERM);
  EXPECT_EQ(wait_for(next), 0);
}

TEST_F(PlaygroundTest, BasePortIsUsedAndABusyOneNamed) {
  const pid_t first = start({"--nodes", "1"});
  ASSERT_TRUE(eventually([&] { return ready(); })) << err();
  const std::string address = nlohmann::json::parse(text_of(dir_ / "ready"))["nodes"][0]["address"];
  ::kill(first, SIGTERM);
  EXPECT_EQ(wait_for(first), 0);
  const std::string port = address.substr(address.rfind(':') + 1);
  const pid_t second = start({"--nodes", "1", "--base-port", port});
  ASSERT_TRUE(eventually([&] { return ready(); })) << err();
  EXPECT_EQ(nlohmann::json::parse(text_of(dir_ / "ready"))["nodes"][0]["address"], address);
  ::kill(second, SIGTERM);
  EXPECT_EQ(wait_for(second), 0);
}

TEST_F(PlaygroundTest, DeepDirectoryWorks) {
  if (::geteuid() != 0)
    GTEST_SKIP() << "needs root: short state directories are below /run/vremote";
  dir_ = root_ / std::string(90, 'd') / "play";
  const pid_t playground = start({"--nodes", "1"});
  ASSERT_TRUE(eventually([&] { return ready(); })) << err();
  const std::string control = nlohmann::json::parse(text_of(dir_ / "ready"))["nodes"][0]["control"];
  EXPECT_LE(control.size(), 107u);
  ::kill(playground, SIGTERM);
  EXPECT_EQ(wait_for(playground), 0) << err();
  EXPECT_FALSE(fs::exists(fs::path(control).parent_path().parent_path()));
}

class PlaygroundMountTest : public PlaygroundTest {
 protected:
  void SetUp() override {
    if (::geteuid() != 0 || ::access("/dev/fuse", R_OK | W_OK) != 0)
      GTEST_SKIP() << "needs root and /dev/fuse";
  }
};

TEST_F(PlaygroundMountTest, MountLeftBehindIsRemoved) {
  ::setenv("VREMOTE_FAKE_node1", "leave_mount", 1);
  const pid_t playground = start({"--nodes", "1"});
  ASSERT_TRUE(eventually([&] { return ready(); })) << err();
  EXPECT_TRUE(mounted("node1"));
  ::kill(playground, SIGTERM);
  EXPECT_EQ(wait_for(playground), 0);
  EXPECT_FALSE(mounted("node1"));
  EXPECT_THAT(err(), HasSubstr("node1 left its mount behind"));
}

TEST_F(PlaygroundMountTest, NodeThatDoesNotEndIsKilledAndItsWaitersFreed) {
  ::setenv("VREMOTE_FAKE_node1", "stubborn", 1);
  const pid_t playground = start({"--nodes", "2"});
  ASSERT_TRUE(eventually([&] { return ready(); })) << err();
  ASSERT_TRUE(mounted("node1"));
  const pid_t node = node_pid("node1");
  // A program that waits inside the mount for an answer that never comes: only the abort frees it.
  const pid_t waiter = ::fork();
  if (waiter == 0) {
    const int fd = ::open((dir_ / "node1/mnt/file").c_str(), O_RDONLY);
    ::_exit(fd < 0 ? 0 : 1);
  }
  ::kill(playground, SIGINT);
  EXPECT_EQ(wait_for(playground), 1);
  EXPECT_THAT(err(), HasSubstr("node1"));
  EXPECT_THAT(err(), HasSubstr("does not end: aborting its mount and killing it"));
  EXPECT_FALSE(mounted("node1"));
  EXPECT_EQ(::kill(node, 0), -1);
  EXPECT_EQ(wait_for(waiter), 0);
}

TEST_F(PlaygroundMountTest, MountOfAKilledPlaygroundIsRepairedAtTheNextStart) {
  ::setenv("VREMOTE_FAKE_node1", "leave_mount", 1);
  const pid_t first = start({"--nodes", "1"});
  ASSERT_TRUE(eventually([&] { return ready(); })) << err();
  const pid_t node = node_pid("node1");
  ::kill(first, SIGKILL);
  EXPECT_EQ(wait_for(first), -SIGKILL);
  ASSERT_TRUE(eventually([&] { return ::waitpid(node, nullptr, WNOHANG) == node; }));
  ASSERT_TRUE(mounted("node1"));
  ::unsetenv("VREMOTE_FAKE_node1");
  const pid_t second = start({"--nodes", "1"});
  ASSERT_TRUE(eventually([&] { return ready() && !mounted("node1"); })) << err();
  EXPECT_THAT(err(), HasSubstr("removed a mount left at"));
  ::kill(second, SIGTERM);
  EXPECT_EQ(wait_for(second), 0);
}

}  // namespace
}  // namespace vremote::cli

int main(int argc, char** argv) {
  if (argc > 1 && argv[1][0] != '-') {
    const vremote::cli::Runners runners{
        .run_node = [](const auto& config, int) { return vremote::cli::run_fake_node(config); }};
    return vremote::cli::run_cli(argc, argv, runners);
  }
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
