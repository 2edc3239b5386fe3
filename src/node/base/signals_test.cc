#include "node/base/signals.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

namespace vremote::node {
namespace {

uint64_t bit(int signal) { return signal == 0 ? 0 : uint64_t{1} << (signal - 1); }

struct Masks {
  uint64_t own = 0, shared = 0, blocked = 0, ignored = 0, caught = 0;
};

bool fatal(const Masks& m) {
  return has_fatal_signal(fmt::format(
      "Name:\tSigPnd:\nSigQ:\t0/9\nSigPnd:\t{:016x}\nShdPnd:\t{:016x}\nSigBlk:\t{:016x}\n"
      "SigIgn:\t{:016x}\nSigCgt:\t{:016x}\nCapInh:\tffffffffffffffff\n",
      m.own, m.shared, m.blocked, m.ignored, m.caught));
}

TEST(SignalsTest, WhatEndsTheProcessIsFatal) {
  EXPECT_TRUE(fatal({.own = bit(SIGKILL)}));
  EXPECT_TRUE(fatal({.shared = bit(SIGKILL)}));
  EXPECT_TRUE(fatal({.shared = bit(SIGQUIT)}));  // dumps core: the kernel does not make it SIGKILL
  EXPECT_TRUE(fatal({.own = bit(SIGUSR1)}));
  EXPECT_TRUE(fatal({.own = bit(SIGUSR1) | bit(SIGTERM), .caught = bit(SIGUSR1)}));
  EXPECT_TRUE(fatal({.own = bit(SIGKILL), .caught = ~uint64_t{0}}));
}

TEST(SignalsTest, WhatAHandlerTakesOrNobodyNoticesIsNot) {
  EXPECT_FALSE(fatal({}));
  EXPECT_FALSE(fatal({.own = bit(SIGUSR1), .caught = bit(SIGUSR1)}));
  EXPECT_FALSE(fatal({.shared = bit(SIGINT), .ignored = bit(SIGINT)}));
  EXPECT_FALSE(fatal({.shared = bit(SIGTERM), .blocked = bit(SIGTERM)}));
  for (int signal : {SIGCHLD, SIGURG, SIGWINCH, SIGCONT, SIGSTOP, SIGTSTP})
    EXPECT_FALSE(fatal({.shared = bit(signal)})) << signal;
}

TEST(SignalsTest, WhoHasTheCapabilityMayActAsTheOwner) {
  constexpr OwnersWork kGiveAway{.changes_owner = true}, kOther{.changes_other = true},
      kBoth{.changes_owner = true, .changes_other = true};
  const std::string of_fowner = "Name:\tx\nCapEff:\t0000000000000008\n";
  EXPECT_TRUE(may_act_as_owner(of_fowner, kOther));
  EXPECT_FALSE(may_act_as_owner(of_fowner, kGiveAway));
  EXPECT_FALSE(may_act_as_owner(of_fowner, kBoth));
  const std::string of_chown = "Name:\tx\nCapEff:\t0000000000000001\n";
  EXPECT_FALSE(may_act_as_owner(of_chown, kOther));
  EXPECT_TRUE(may_act_as_owner(of_chown, kGiveAway));
  EXPECT_TRUE(may_act_as_owner("Name:\tx\nCapEff:\t000001ffffffffff\n", kBoth));
  EXPECT_FALSE(
      may_act_as_owner("Name:\tx\nCapPrm:\t0000000000000008\nCapEff:\t0000000000000002\n", kOther));
  EXPECT_FALSE(may_act_as_owner("Name:\tx\n", kOther));
  EXPECT_FALSE(may_act_as_owner(uint32_t{0}, kOther)) << "nobody knows it";
  EXPECT_EQ(::geteuid() == 0, may_act_as_owner(static_cast<uint32_t>(::getpid()), kBoth));
  const pid_t child = ::fork();
  if (child == 0) {
    if (::unshare(CLONE_NEWUSER) != 0) ::_exit(2);
    ::pause();
  }
  ASSERT_GT(child, 0);
  int status = 0;
  // Until it has its own namespace, or may have none.
  for (int i = 0; i < 5000 && may_act_as_owner(static_cast<uint32_t>(child), kOther); ++i) {
    if (::waitpid(child, &status, WNOHANG) == child) return;
    ::usleep(1000);
  }
  EXPECT_FALSE(may_act_as_owner(static_cast<uint32_t>(child), kOther))
      << "all it may do is its own";
  ::kill(child, SIGKILL);
  ::waitpid(child, &status, 0);
}

TEST(SignalsTest, OfThreadsNobodyKnowsTheWorstIsTaken) {
  EXPECT_FALSE(is_being_killed(static_cast<uint32_t>(getpid())));
  EXPECT_TRUE(is_being_killed(0));
  EXPECT_TRUE(is_being_killed(~uint32_t{0}));
}

}  // namespace
}  // namespace vremote::node
