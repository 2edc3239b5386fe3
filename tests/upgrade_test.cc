// `vremote upgrade`: daemons are replaced under programs that use their mounts, and nobody notices.
#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <sstream>

#include "faults_support.h"
#include "node/handover/handover_version.h"
#include "support/program.h"
#include "upgrade_work.h"

namespace vremote::live {
namespace {

Ended run(std::vector<std::string> arguments) {
  return run_program(VREMOTE_PROGRAM, std::move(arguments));
}

class UpgradeTest : public FaultsTest {
 protected:
  void upgrade(size_t node) {
    const Ended ended = run({"vremote", "upgrade", "--config", nodes().at(node).config});
    EXPECT_EQ(0, ended.status) << ended.text << nodes().log(node);
    EXPECT_NE(ended.text.find("programs waited for"), std::string::npos) << ended.text;
  }
  std::string refused(size_t node, const std::string& binary) {
    const Ended ended =
        run({"vremote", "upgrade", "--config", nodes().at(node).config, "--binary", binary});
    EXPECT_EQ(1, std::count(ended.text.begin(), ended.text.end(), '\n')) << ended.text;
    EXPECT_NE(0, ended.status);
    return ended.text;
  }
};

TEST_F(UpgradeTest, ProgramsGoOnThroughUpgradesOfBothNodes) {
  nodes().start_all();
  for (const char* counter : {"posix", "ofd", "flock"})
    ASSERT_EQ(0, put(nodes().path(0, 0, counter), std::string(8, '\0')));
  ASSERT_EQ(0, put(nodes().path(0, 0, "mapped"), std::string(2 * 4096, '\0')));
  ASSERT_EQ(0, ::mkdir(nodes().path(0, 0, "list").c_str(), 0755));
  ASSERT_EQ(0, ::mkdir(nodes().path(0, 0, "made").c_str(), 0755));
  constexpr unsigned kFiles = 1500;  // more than one answer holds
  for (unsigned i = 0; i < kFiles; ++i)
    ASSERT_EQ(0, put(nodes().path(0, 0, fmt::format("list/a-file-of-many-{}", i)), ""));
  Work work;
  for (unsigned n : {0u, 1u}) {
    const auto path = [&](const std::string& name) { return nodes().path(n, 0, name); };
    const std::string on = fmt::format("-on-{}", n);
    work.add("writes" + on, [&] { return writes_and_reads(path("written"), n); });
    work.add("appends" + on, [&] { return appends(path("log"), "node" + std::to_string(n)); });
    work.add("stores" + on, [&] { return stores(path("mapped"), n, 2); });
    work.add("posix" + on, [&] { return counts_under_a_lock(path("posix"), LockBy::Posix); });
    work.add("ofd" + on, [&] { return counts_under_a_lock(path("ofd"), LockBy::Ofd); });
    work.add("flock" + on, [&] { return counts_under_a_lock(path("flock"), LockBy::Flock); });
    work.add("lists" + on, [&] { return lists(path("list"), kFiles); });
    work.add("nameless" + on, [&] { return uses_a_nameless_file(path("nameless" + on)); });
    work.add("makes" + on, [&] { return makes_and_removes(path("made"), "by" + on); });
  }
  EXPECT_EQ("", work.who_stands_still(2));
  for (int round = 0; round < 3 && !HasFailure(); ++round)
    for (size_t node : {1u, 0u}) {
      upgrade(node);
      EXPECT_EQ("", work.who_stands_still(2))
          << "after upgrade " << round << " of node " << node << "\n"
          << nodes().log(0) << nodes().log(1);
    }
  EXPECT_EQ("", work.stop()) << nodes().log(0) << nodes().log(1);
  EXPECT_EQ(
      "", check_log(read_all(nodes().path(0, 0, "log")), {{"node0", work.rounds("appends-on-0")},
                                                          {"node1", work.rounds("appends-on-1")}}));
  EXPECT_EQ(read_all(nodes().path(0, 0, "log")), read_all(nodes().path(1, 0, "log")));
  EXPECT_EQ(read_all(nodes().path(0, 0, "written")), read_all(nodes().path(1, 0, "written")));
  for (const char* counter : {"posix", "ofd", "flock"}) {
    uint64_t count = 0;
    std::memcpy(&count, read_all(nodes().path(1, 0, counter)).data(), sizeof count);
    EXPECT_EQ(count, work.rounds(std::string(counter) + "-on-0") +
                         work.rounds(std::string(counter) + "-on-1"))
        << counter;
  }
  for (size_t node : {0u, 1u}) {
    EXPECT_EQ(nodes().log(node).find(" E node"), std::string::npos) << nodes().log(node);
    EXPECT_EQ(nodes().log(node).find("lost its lock"), std::string::npos) << nodes().log(node);
    EXPECT_NE(nodes().ask(node, "status").find("\"write_backs_without_exclusive\":0"),
              std::string::npos);
  }
}

// Nobody has to do anything, and the logs say so: but for the connections that are lost, and these
// come back.
TEST_F(UpgradeTest, TheLogsDoNotLookAsIfSomethingHadFailed) {
  nodes().start_all();
  const Fd fd(::open(nodes().path(1, 0, "f").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
  ASSERT_EQ(1, ::pwrite(fd.get(), "x", 1, 0));
  size_t before[] = {nodes().log(0).size(), nodes().log(1).size()};
  upgrade(0);
  EXPECT_TRUE(eventually([&] {
    return nodes().log(1).find("node1 has been restarted or upgraded: it is brought back") !=
           std::string::npos;
  })) << nodes().log(1);
  upgrade(1);
  EXPECT_EQ(0, ::fsync(fd.get()));
  for (size_t node : {0u, 1u}) {
    std::istringstream log(nodes().log(node).substr(before[node]));
    for (std::string line; std::getline(log, line);) {
      if (line.find(" W node") == std::string::npos && line.find(" E node") == std::string::npos)
        continue;
      // What the machine lacks is told by each daemon.
      EXPECT_TRUE(line.find("onnect") != std::string::npos ||
                  line.find("PR_SET_IO_FLUSHER") != std::string::npos ||
                  line.find("not noticed") != std::string::npos ||
                  line.find("this kernel") != std::string::npos)
          << line;
    }
  }
}

// What a power failure of the origin took is told to each open file, also by the next daemon.
TEST_F(UpgradeTest, WhoHasNotHeardOfALossHearsOfItAfterAnUpgrade) {
  nodes().start_all();
  const std::string path = nodes().path(1, 0, "flushed");
  const Fd one(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
  const Fd other(::open(path.c_str(), O_RDWR | O_CLOEXEC));
  ASSERT_TRUE(one.valid() && other.valid());
  ASSERT_EQ(1, ::pwrite(one.get(), "x", 1, 0));
  ASSERT_TRUE(eventually([&] { return read_all(nodes().at(0).export_dir + "/flushed") == "x"; }));
  nodes().signal(0, SIGKILL);
  nodes().wait_for_end(0);
  // The machine was started anew.
  const std::string life = nodes().at(0).state_dir + "/home/disk";
  std::string text = read_all(life);
  const size_t line = text.find('\n');
  ASSERT_NE(line, std::string::npos) << text;
  std::ofstream(life) << text.insert(line + 1, "another-");
  nodes().start(0);
  ASSERT_TRUE(eventually([&] { return nodes().connected(0) && nodes().connected(1); }));
  EXPECT_EQ(EIO, ::fsync(one.get()) == 0 ? 0 : errno) << nodes().log(0) << nodes().log(1);
  upgrade(1);
  EXPECT_EQ(0, ::fsync(one.get()) == 0 ? 0 : errno) << "told";
  EXPECT_EQ(EIO, ::fsync(other.get()) == 0 ? 0 : errno);
  EXPECT_EQ(0, ::fsync(other.get()) == 0 ? 0 : errno) << "told";
}

// Held and waited for through upgrades of the node that holds, that waits, and that keeps them.
TEST_F(UpgradeTest, LocksAreHeldAndWaitedForThroughUpgrades) {
  nodes().start_all();
  for (const char* name : {"posix", "ofd", "flock"})
    ASSERT_EQ(0, put(nodes().path(0, 0, name), ""));
  struct flock lock {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  for (size_t holder : {0u, 1u}) {
    const size_t other = 1 - holder;
    Fd posix(::open(nodes().path(holder, 0, "posix").c_str(), O_RDWR | O_CLOEXEC));
    Fd ofd(::open(nodes().path(holder, 0, "ofd").c_str(), O_RDWR | O_CLOEXEC));
    Fd flocked(::open(nodes().path(holder, 0, "flock").c_str(), O_RDWR | O_CLOEXEC));
    ASSERT_EQ(0, ::fcntl(posix.get(), F_SETLK, &lock));
    ASSERT_EQ(0, ::fcntl(ofd.get(), F_OFD_SETLK, &lock));
    ASSERT_EQ(0, ::flock(flocked.get(), LOCK_EX));
    // In a child, which has not the descriptors that hold them: they would be held by it, too.
    const auto in_other = [&](const char* name, const std::function<int(int)>& body) {
      for (Fd* inherited : {&posix, &ofd, &flocked}) inherited->reset();
      const Fd fd(::open(nodes().path(other, 0, name).c_str(), O_RDWR | O_CLOEXEC));
      return body(fd.get());
    };
    std::vector<pid_t> waiters;
    waiters.push_back(in_child(
        [&] { return in_other("posix", [&](int fd) { return ::fcntl(fd, F_SETLKW, &lock); }); }));
    waiters.push_back(in_child(
        [&] { return in_other("ofd", [&](int fd) { return ::fcntl(fd, F_OFD_SETLKW, &lock); }); }));
    waiters.push_back(
        in_child([&] { return in_other("flock", [](int fd) { return ::flock(fd, LOCK_EX); }); }));
    EXPECT_TRUE(eventually([&] {
      const std::string blocked = nodes().ask(other, "blocked");
      return std::count(blocked.begin(), blocked.end(), '{') >= 3;
    })) << nodes().ask(other, "blocked");
    for (size_t node : {other, other, 0ul, holder}) {
      upgrade(node);
      for (pid_t pid : waiters) EXPECT_EQ(0, ::waitpid(pid, nullptr, WNOHANG)) << "not waiting";
      const pid_t trier = in_child([&] {
        return in_other("posix", [&](int fd) { return ::fcntl(fd, F_SETLK, &lock) == 0; }) +
               in_other("ofd", [&](int fd) { return ::fcntl(fd, F_OFD_SETLK, &lock) == 0; }) +
               in_other("flock", [](int fd) { return ::flock(fd, LOCK_EX | LOCK_NB) == 0; });
      });
      int status = 0;
      ::waitpid(trier, &status, 0);
      EXPECT_EQ(0, status) << "granted twice, after an upgrade of node " << node << nodes().log(0);
    }
    posix.reset();
    ofd.reset();
    flocked.reset();
    for (pid_t pid : waiters) {
      int status = -1;
      EXPECT_TRUE(eventually([&] { return ::waitpid(pid, &status, WNOHANG) == pid; }))
          << nodes().log(other);
      EXPECT_EQ(0, status);
    }
  }
}

// A waiting process can be killed, also when its request was delivered to a second daemon.
TEST_F(UpgradeTest, WhoWaitsCanBeKilledAfterAnUpgrade) {
  nodes().start_all();
  ASSERT_EQ(0, put(nodes().path(0, 0, "f"), ""));
  const Fd held(::open(nodes().path(0, 0, "f").c_str(), O_RDWR | O_CLOEXEC));
  ASSERT_EQ(0, ::flock(held.get(), LOCK_EX));
  const pid_t waiter = in_child([&] {
    const Fd fd(::open(nodes().path(1, 0, "f").c_str(), O_RDWR | O_CLOEXEC));
    return ::flock(fd.get(), LOCK_EX);
  });
  EXPECT_TRUE(
      eventually([&] { return nodes().ask(1, "blocked").find("\"what\"") != std::string::npos; }));
  upgrade(1);
  upgrade(1);
  EXPECT_EQ(0, ::waitpid(waiter, nullptr, WNOHANG));
  ::kill(waiter, SIGKILL);
  EXPECT_TRUE(eventually([&] { return ::waitpid(waiter, nullptr, WNOHANG) == waiter; }));
  ASSERT_EQ(0, ::flock(held.get(), LOCK_UN));
  // The lock is not with the dead.
  const pid_t next = in_child([&] {
    const Fd fd(::open(nodes().path(1, 0, "f").c_str(), O_RDWR | O_CLOEXEC));
    return ::flock(fd.get(), LOCK_EX);
  });
  int status = -1;
  EXPECT_TRUE(eventually([&] { return ::waitpid(next, &status, WNOHANG) == next; }));
  EXPECT_EQ(0, status);
}

// Calls that wait for a node that does not answer wait on, and are answered once.
TEST_F(UpgradeTest, CallsThatWaitForASilentNodeSurvive) {
  nodes(3, "[lease]\nterm_ms = 50000\n").start_all();
  ASSERT_EQ(0, put(nodes().path(0, 0, "f"), std::string(8192, 'a')));
  ASSERT_EQ(0, ::mkdir(nodes().path(0, 0, "d").c_str(), 0755));
  // node3 has what others want.
  {
    const Fd fd(::open(nodes().path(2, 0, "f").c_str(), O_RDWR | O_CLOEXEC));
    ASSERT_EQ(1, ::pwrite(fd.get(), "b", 1, 0));
    ASSERT_TRUE(exists(nodes().path(2, 0, "d")));
    ASSERT_FALSE(exists(nodes().path(2, 0, "d/made")));
  }
  nodes().signal(2, SIGSTOP);
  const pid_t reader =
      in_child([&] { return read_all(nodes().path(1, 0, "f"))[0] == 'b' ? 0 : 1; });
  const pid_t maker = in_child([&] { return ::mkdir(nodes().path(1, 0, "d/made").c_str(), 0755); });
  const auto waiting = [&] {
    const std::string blocked = nodes().ask(1, "blocked");
    return std::count(blocked.begin(), blocked.end(), '{') >= 2;
  };
  EXPECT_TRUE(eventually(waiting)) << nodes().ask(1, "blocked");
  upgrade(1);
  EXPECT_TRUE(eventually(waiting)) << nodes().ask(1, "blocked") << nodes().log(1);
  upgrade(1);
  EXPECT_EQ(0, ::waitpid(reader, nullptr, WNOHANG));
  EXPECT_EQ(0, ::waitpid(maker, nullptr, WNOHANG));
  nodes().signal(2, SIGCONT);
  for (pid_t pid : {reader, maker}) {
    int status = -1;
    EXPECT_TRUE(eventually([&] { return ::waitpid(pid, &status, WNOHANG) == pid; }))
        << nodes().log(1) << nodes().ask(1, "blocked");
    EXPECT_EQ(0, status);
  }
}

TEST_F(UpgradeTest, WhatCannotTakeOverIsRefusedInOneLine) {
  nodes().start_all();
  ASSERT_EQ(0, put(nodes().path(1, 0, "f"), "kept"));
  const pid_t before = nodes().at(1).pid;
  EXPECT_NE(refused(1, "/no/such/program").find("No such file"), std::string::npos);
  EXPECT_NE(refused(1, nodes().at(1).config).find("no program"), std::string::npos);
  EXPECT_NE(refused(1, "/bin/true").find("no vremote"), std::string::npos);
  // Another version, as it will say so.
  const std::string other = nodes().at(1).directory + "/other";
  {
    std::ofstream script(other);
    script << "#!/bin/sh\necho vremote-handover 99\n";
  }
  ::chmod(other.c_str(), 0755);
  EXPECT_NE(refused(1, other).find("format 99"), std::string::npos);
  // Whom would it ask for itself?
  const std::string on_mount = nodes().path(1, 0, "other");
  ASSERT_EQ(0, put(on_mount, read_all(other)));
  ASSERT_EQ(0, ::chmod(on_mount.c_str(), 0755));
  EXPECT_NE(refused(1, on_mount).find("own mount"), std::string::npos);
  // A second one during the first.
  {
    std::ofstream script(other);
    script << "#!/bin/sh\nread line < " << other << ".fifo\necho vremote-handover 99\n";
  }
  ASSERT_EQ(0, ::mkfifo((other + ".fifo").c_str(), 0600));
  const pid_t first = in_child([&] {
    ::execl(VREMOTE_PROGRAM, "vremote", "upgrade", "--config", nodes().at(1).config.c_str(),
            "--binary", other.c_str(), nullptr);
    return 127;
  });
  EXPECT_TRUE(eventually([&] {
    return nodes().ask(1, "upgrade_state").find("\"running\":true") != std::string::npos;
  }));
  EXPECT_NE(refused(1, VREMOTE_PROGRAM).find("under way already"), std::string::npos);
  { std::ofstream(other + ".fifo") << "go\n"; }
  int status = 0;
  ::waitpid(first, &status, 0);
  EXPECT_EQ(1, WEXITSTATUS(status));
  // What may not change in the configuration.
  const std::string config = nodes().at(1).config;
  const std::string was = read_all(config);
  ASSERT_EQ(0, put(config, "loops = 3\n" + was));
  EXPECT_NE(refused(1, VREMOTE_PROGRAM).find("key 'loops'"), std::string::npos);
  // ... and what a start would refuse.
  const size_t listen = was.find("listen = ");
  ASSERT_NE(listen, std::string::npos);
  std::string elsewhere = was;
  elsewhere.replace(listen, was.find('\n', listen) - listen, "listen = \"192.0.2.7:1104\"");
  ASSERT_EQ(0, put(config, elsewhere));
  EXPECT_NE(refused(1, VREMOTE_PROGRAM).find("key 'listen'"), std::string::npos);
  ASSERT_EQ(0, put(config, was));
  EXPECT_EQ("kept", read_all(nodes().path(1, 0, "f")));
  EXPECT_EQ(0, ::kill(before, 0));
  upgrade(1);
  // No daemon.
  nodes().signal(1, SIGTERM);
  nodes().wait_for_end(1);
  EXPECT_NE(refused(1, VREMOTE_PROGRAM).find("no node answers"), std::string::npos);
}

// A program that is asked whether it can take over, and says so.
std::string pretender(const Nodes::Node& node, const std::string& when_asked,
                      const std::string& then) {
  const std::string path = node.directory + "/pretender";
  {
    std::ofstream script(path);
    script << "#!/bin/sh\ncase \"$*\" in\n*--handover-check*) " << when_asked
           << " echo vremote-handover " << node::kHandoverVersion << ";;\n*) " << then
           << ";;\nesac\n";
  }
  ::chmod(path.c_str(), 0755);
  return path;
}

TEST_F(UpgradeTest, ANodeThatCannotBeLeftJustNowGoesOn) {
  nodes(2, "[lease]\nterm_ms = 30000\n").start_all();
  const Fd fd(::open(nodes().path(1, 0, "f").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
  ASSERT_EQ(5, ::write(fd.get(), "first", 5));
  nodes().signal(0, SIGSTOP);
  ASSERT_EQ(5, ::pwrite(fd.get(), "later", 5, 0));  // cannot get to its origin
  EXPECT_NE(refused(1, VREMOTE_PROGRAM).find("do not get to node1"), std::string::npos);
  ASSERT_EQ(5, ::pwrite(fd.get(), "after", 5, 5));
  nodes().signal(0, SIGCONT);
  ASSERT_EQ(0, ::fsync(fd.get()));
  EXPECT_EQ("laterafter", read_all(nodes().path(0, 0, "f")));
  upgrade(1);
  // The program is gone when it is to be executed: everything had stopped, and goes on.
  const std::string gone = pretender(nodes().at(1), "rm -- \"$0\";", "exit 1");
  EXPECT_NE(refused(1, gone).find("cannot be executed"), std::string::npos);
  ASSERT_EQ(5, ::pwrite(fd.get(), "still", 5, 0));
  EXPECT_EQ("stillafter", read_all(nodes().path(0, 0, "f")));
  upgrade(1);
}

// Whoever has asked for the upgrade hears of it, in one line, as soon as it has happened.
TEST_F(UpgradeTest, AProgramThatDoesNotComeUpIsADaemonThatDied) {
  nodes(2, "[lease]\nterm_ms = 2000\n").start_all();
  const Fd fd(::open(nodes().path(1, 0, "f").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
  ASSERT_EQ(5, ::write(fd.get(), "bytes", 5));
  const std::string bad = pretender(nodes().at(1), "", "exit 3");
  // Its process becomes one that ends: nobody reaps it before the one who waits is done.
  const Ended ended =
      run({"vremote", "upgrade", "--config", nodes().at(1).config, "--binary", bad});
  EXPECT_EQ(1, ended.status) << ended.text;
  EXPECT_NE(ended.text.find("has died"), std::string::npos) << ended.text;
  const int status = nodes().wait_for_end(1);
  EXPECT_EQ(3, WEXITSTATUS(status));
  EXPECT_TRUE(
      eventually([&] { return nodes().log(1).find("the daemon is dead") != std::string::npos; }));
  nodes().start(1);
  EXPECT_TRUE(eventually([&] { return nodes().connected(1); })) << nodes().log(1);
  // All that was written had been flushed before.
  EXPECT_EQ("bytes", read_all(nodes().path(0, 0, "f")));
  EXPECT_EQ("bytes", read_all(nodes().path(1, 0, "f")));
}

// It holds none of what keeps another from starting but the mount: other nodes must not reach that
// one before it finds out.
TEST_F(UpgradeTest, BesideAProgramThatHangsNoOtherDaemonListens) {
  nodes().start_all();
  const std::string hangs = pretender(nodes().at(1), "", "exec sleep 1000");
  const pid_t upgrader = in_child([&] {
    ::execl(VREMOTE_PROGRAM, "vremote", "upgrade", "--config", nodes().at(1).config.c_str(),
            "--binary", hangs.c_str(), nullptr);
    return 127;
  });
  EXPECT_TRUE(eventually(
      [&] { return read_all(fmt::format("/proc/{}/comm", nodes().at(1).pid)) == "sleep\n"; }));
  const Ended second = run({"vremote", "node", "--config", nodes().at(1).config});
  EXPECT_EQ(2, second.status);
  EXPECT_NE(second.text.find("key 'state_dir': another node runs with"), std::string::npos)
      << second.text;
  ::kill(upgrader, SIGKILL);
  ::waitpid(upgrader, nullptr, 0);
  nodes().signal(1, SIGKILL);
  nodes().wait_for_end(1);
  nodes().start(1);
  EXPECT_TRUE(eventually([&] { return nodes().connected(1); })) << nodes().log(1);
}

// What the guardian and the mount go on with.
TEST_F(UpgradeTest, AKeyThatWaitsForARestartIsNamed) {
  nodes().start_all();
  const std::string was = read_all(nodes().at(1).config);
  upgrade(1);
  EXPECT_EQ(nodes().log(1).find("has to wait for a restart"), std::string::npos) << nodes().log(1);
  ASSERT_EQ(0, put(nodes().at(1).config,
                   was + "[guardian]\nrestart_wait_s = 7\n[cache]\nreadahead_kib = 64\n"));
  upgrade(1);
  EXPECT_NE(
      nodes().log(1).find("guardian.restart_wait_s, cache.readahead_kib has to wait for a restart"),
      std::string::npos)
      << nodes().log(1);
}

TEST_F(UpgradeTest, WhoWaitsForAnUpgradeCanBeInterrupted) {
  nodes().start_all();
  // One that thinks for ever before it says whether it can take over.
  const std::string fifo = nodes().at(1).directory + "/fifo";
  ASSERT_EQ(0, ::mkfifo(fifo.c_str(), 0600));
  const Fd gate(::open(fifo.c_str(), O_RDWR | O_CLOEXEC));
  const std::string slow = nodes().at(1).directory + "/slow";
  {
    std::ofstream script(slow);
    script << "#!/bin/sh\nread line < " << fifo << "\necho vremote-handover 99\n";
  }
  ::chmod(slow.c_str(), 0755);
  const pid_t upgrader = in_child([&] {
    ::signal(SIGINT, SIG_DFL);
    ::execl(VREMOTE_PROGRAM, "vremote", "upgrade", "--config", nodes().at(1).config.c_str(),
            "--binary", slow.c_str(), nullptr);
    return 127;
  });
  EXPECT_TRUE(eventually([&] {
    return nodes().ask(1, "upgrade_state").find("\"running\":true") != std::string::npos;
  }));
  ::kill(upgrader, SIGINT);
  int status = 0;
  EXPECT_TRUE(eventually([&] { return ::waitpid(upgrader, &status, WNOHANG) == upgrader; }));
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGINT) << status;
  ASSERT_EQ(3, ::write(gate.get(), "go\n", 3));
  EXPECT_TRUE(eventually([&] {
    return nodes().ask(1, "upgrade_state").find("\"running\":false") != std::string::npos;
  }));
}

// Killed in the middle: as at any other time.
TEST_F(UpgradeTest, KilledMeanwhileItLosesNothingSynced) {
  nodes(2, "[lease]\nterm_ms = 2000\n").start_all();
  for (int round = 0; round < 6; ++round) {
    const std::string name = fmt::format("f{}", round);
    {
      const Fd fd(::open(nodes().path(1, 0, name).c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
      ASSERT_EQ(6, ::write(fd.get(), "synced", 6));
      ASSERT_EQ(0, ::fsync(fd.get()));
    }
    const pid_t upgrader = in_child([&] {
      ::execl(VREMOTE_PROGRAM, "vremote", "upgrade", "--config", nodes().at(1).config.c_str(),
              nullptr);
      return 127;
    });
    // At some point of it: which one does not matter.
    EXPECT_TRUE(eventually([&] {
      return nodes().ask(1, "upgrade_state").find("\"running\":true") != std::string::npos ||
             ::waitpid(upgrader, nullptr, WNOHANG) != 0;
    }));
    ::usleep(static_cast<useconds_t>(round) * 4'000);
    nodes().signal(1, SIGKILL);
    nodes().wait_for_end(1);
    EXPECT_EQ("synced", read_all(nodes().path(0, 0, name)));
    ::kill(upgrader, SIGKILL);
    ::waitpid(upgrader, nullptr, 0);
    nodes().start(1);
    EXPECT_TRUE(eventually([&] { return nodes().connected(1); })) << nodes().log(1);
    EXPECT_EQ("synced", read_all(nodes().path(1, 0, name)));
  }
}

TEST_F(UpgradeTest, ADaemonDiesAfterUpgradesAsItWouldHaveBefore) {
  nodes().start_all();
  upgrade(1);
  EXPECT_NE(nodes().ask(1, "status").find("\"guarded\":1"), std::string::npos);
  ASSERT_EQ(0, put(nodes().path(0, 0, "f"), "before"));
  const Fd fd(::open(nodes().path(1, 0, "f").c_str(), O_RDWR | O_CLOEXEC));
  auto* mapped =
      static_cast<char*>(::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0));
  ASSERT_NE(mapped, MAP_FAILED);
  std::memcpy(mapped, "stored", 6);
  upgrade(1);
  EXPECT_EQ("stored", read_all(nodes().path(0, 0, "f")));
  std::memcpy(mapped, "purged", 6);
  nodes().signal(1, SIGKILL);
  nodes().wait_for_end(1);
  EXPECT_TRUE(eventually([&] {
    return nodes().log(1).find("inodes purged") != std::string::npos &&
           nodes().log(1).find("is kept in") != std::string::npos;
  })) << nodes().log(1);
  ::munmap(mapped, 4096);
  nodes().start(1);
  EXPECT_TRUE(eventually([&] { return nodes().connected(1); })) << nodes().log(1);
  EXPECT_EQ("stored", read_all(nodes().path(1, 0, "f")));
  nodes().signal(1, SIGTERM);
  const int status = nodes().wait_for_end(1);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << nodes().log(1);
}

// Who has started the daemons goes on having them.
TEST_F(UpgradeTest, APlaygroundGoesOnThroughUpgradesOfItsNodes) {
  const std::string dir = base + "/playground";
  const pid_t playground = in_child([&] {
    const Fd null(::open("/dev/null", O_WRONLY | O_CLOEXEC));
    ::dup2(null.get(), STDOUT_FILENO);
    ::execl(VREMOTE_PROGRAM, "vremote", "playground", "--nodes", "2", "--dir", dir.c_str(),
            nullptr);
    return 127;
  });
  ASSERT_TRUE(eventually([&] { return exists(dir + "/ready"); }));
  const std::string file = dir + "/node2/mnt/node1/f";
  Fd fd(::open(file.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644));
  for (const char* node : {"node1", "node2", "node1"}) {
    ASSERT_EQ(1, ::write(fd.get(), "x", 1)) << std::strerror(errno);
    const Ended ended = run({"vremote", "upgrade", "--config", dir + "/" + node + "/node.toml"});
    EXPECT_EQ(0, ended.status) << ended.text << read_all(dir + "/" + node + "/log");
  }
  EXPECT_EQ("xxx", read_all(dir + "/node1/mnt/node1/f"));
  fd.reset();
  EXPECT_EQ(0, ::waitpid(playground, nullptr, WNOHANG));
  ::kill(playground, SIGTERM);
  int status = -1;
  EXPECT_TRUE(eventually([&] { return ::waitpid(playground, &status, WNOHANG) == playground; }));
  EXPECT_EQ(0, status);
}

}  // namespace
}  // namespace vremote::live
