// Who waits is told, can be killed, and nobody who unmounts waits for a dead peer.
#include <fcntl.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include "control/blocked.h"
#include "faults_support.h"

namespace vremote::live {
namespace {

// The entries that the node tells of.
std::vector<control::BlockedEntry> blocked(const Nodes& nodes, size_t i) {
  auto told = control::blocked_from_json(nodes.ask(i, "blocked"));
  return told ? told->entries : std::vector<control::BlockedEntry>{};
}

TEST_F(FaultsTest, WhoWaitsForALockIsToldOnBothSides) {
  nodes().start_all();
  ASSERT_EQ(0, put(nodes().path(0, 0, "f"), "hello"));
  const pid_t holder = in_child([&] {
    const Fd fd(::open(nodes().path(0, 0, "f").c_str(), O_RDWR));
    struct flock lock {};
    lock.l_type = F_WRLCK;
    lock.l_start = 10;
    lock.l_len = 90;
    if (::fcntl(fd.get(), F_SETLK, &lock) != 0) return 1;
    ::pause();
    return 0;
  });
  ASSERT_TRUE(eventually([&] {  // the holder has it
    const Fd fd(::open(nodes().path(1, 0, "f").c_str(), O_RDWR));
    struct flock lock {};
    lock.l_type = F_WRLCK;
    return ::fcntl(fd.get(), F_OFD_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
  }));
  const pid_t waiter = in_child([&] {
    const Fd fd(::open(nodes().path(1, 0, "f").c_str(), O_RDWR));
    struct flock lock {};
    lock.l_type = F_WRLCK;
    lock.l_start = 50;
    lock.l_len = 10;
    return ::fcntl(fd.get(), F_SETLKW, &lock) == 0 ? 0 : 1;
  });
  control::BlockedEntry here, there;
  EXPECT_TRUE(eventually([&] {
    for (const auto& entry : blocked(nodes(), 1))
      if (entry.what == "lock") here = entry;
    return here.who.pid == static_cast<uint32_t>(waiter);
  })) << nodes().ask(1, "blocked");
  EXPECT_TRUE(eventually([&] {
    for (const auto& entry : blocked(nodes(), 0))
      if (entry.side == "home" && entry.what == "lock") there = entry;
    return !there.waits_for.empty();
  })) << nodes().ask(0, "blocked");
  EXPECT_EQ(here.path, nodes().path(1, 0, "f"));
  EXPECT_EQ(here.export_name, "node1");
  EXPECT_EQ(here.range, (control::BlockedEntry::Range{50, 59}));
  EXPECT_EQ(here.waits_for.at(0).node, "node1");
  EXPECT_EQ(there.path, nodes().at(0).export_dir + "/f");
  EXPECT_EQ(there.range, (control::BlockedEntry::Range{50, 59}));
  EXPECT_EQ(there.who.node, "node2");
  EXPECT_EQ(there.who.pid, static_cast<uint32_t>(waiter));
  EXPECT_EQ(there.waits_for.at(0).node, "node1");
  EXPECT_EQ(there.waits_for.at(0).pid, static_cast<uint32_t>(holder));
  ::kill(holder, SIGKILL);
  ::waitpid(holder, nullptr, 0);
  int status = 0;
  ::waitpid(waiter, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

// A node that is stopped holds a lease that another needs: its origin names it.
TEST_F(FaultsTest, TheOriginNamesTheNodeThatDoesNotGiveUpItsLease) {
  nodes().start_all();
  ASSERT_EQ(0, put(nodes().path(1, 0, "f"), "written by node2"));
  nodes().signal(1, SIGSTOP);
  const pid_t reader =
      in_child([&] { return read_all(nodes().path(0, 0, "f")).size() > 0 ? 0 : 1; });
  bool told = false;
  EXPECT_TRUE(eventually([&] {
    for (const auto& entry : blocked(nodes(), 0))
      if (entry.side == "home" && !entry.waits_for.empty() && entry.waits_for[0].node == "node2" &&
          entry.path == nodes().at(0).export_dir + "/f" && entry.for_ms > 0)
        told = true;
    return told;
  })) << nodes().ask(0, "blocked");
  nodes().signal(1, SIGCONT);
  int status = 0;
  ::waitpid(reader, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

TEST_F(FaultsTest, UnmountingDoesNotWaitForAStoppedOrigin) {
  nodes().start_all();
  ASSERT_EQ(0, put(nodes().path(1, 0, "f"), "dirty at node2"));
  nodes().signal(0, SIGSTOP);
  const pid_t stuck = in_child([&] { return exists(nodes().path(1, 0, "never seen")) ? 0 : 1; });
  EXPECT_TRUE(eventually([&] { return !blocked(nodes(), 1).empty(); }));
  // In use: umount says so at once; umount -l detaches at once.
  const pid_t plain = in_child([&] {
    return ::umount2(nodes().at(1).mount.c_str(), UMOUNT_NOFOLLOW) != 0 && errno == EBUSY ? 0 : 1;
  });
  int status = 0;
  ::waitpid(plain, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  const pid_t lazy = in_child([&] {
    return ::umount2(nodes().at(1).mount.c_str(), MNT_DETACH | UMOUNT_NOFOLLOW) == 0 ? 0 : 1;
  });
  ::waitpid(lazy, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  // SIGTERM ends the daemon within its patience, and with it whoever waits.
  nodes().signal(1, SIGTERM);
  const int ended = nodes().wait_for_end(1);
  EXPECT_TRUE(WIFEXITED(ended));
  ::waitpid(stuck, &status, 0);
  EXPECT_TRUE(WIFEXITED(status));
  nodes().signal(0, SIGCONT);
}

}  // namespace
}  // namespace vremote::live
