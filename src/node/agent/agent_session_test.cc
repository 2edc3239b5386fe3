// What a node sends to a home while one session follows the other.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "node/agent/agent_service.h"

namespace vremote::node {
namespace {

using namespace coherence;

// A home would carry out twice what comes twice in one session, and never what comes in none.
TEST(AgentSessionTest, ACallThatIsMadeWhileASessionBeginsIsSentInItOnce) {
  constexpr uint32_t kSessions = 200;
  std::mutex mutex;
  std::map<uint32_t, std::multiset<uint64_t>> sent;
  Metrics metrics;
  AgentService::Environment environment;
  environment.metrics = &metrics;
  AgentService agent(
      "home", {}, false,
      [&](FileId, ToHome&& message, uint32_t in_session) {
        std::lock_guard lock(mutex);
        if (const auto* call = std::get_if<Call>(&message)) sent[in_session].insert(call->call);
      },
      environment);
  agent.begin_session(1);

  // Twenty calls around each beginning.
  std::atomic<uint32_t> session{1}, made{0};
  std::set<uint64_t> ids;
  std::thread program([&] {
    for (; made < kSessions * 20; ++made) {
      while (made >= session * 20) std::this_thread::yield();
      const FileId file{.export_index = 0, .generation = 1, .inode = made % 16};
      ids.insert(agent.call({}, RemoveCall{file, "name", false}, [](Reply&&) {}));
    }
  });
  while (session < kSessions) {
    while (made < session * 20 - 15) std::this_thread::yield();
    ++session;
    agent.reset(Agent::Dirty::Kept, {.session = session});
  }
  program.join();

  for (const auto& [number, calls] : sent)
    for (uint64_t id : ids)
      ASSERT_LE(calls.count(id), 1u) << "call " << id << " in session " << number;
  for (uint64_t id : ids) ASSERT_EQ(sent[kSessions].count(id), 1u) << "call " << id;
}

// A soft mount whose home does not answer.
class LateLocks : public testing::Test {
 protected:
  static constexpr FileId kFile{.export_index = 0, .generation = 1, .inode = 7};

  LateLocks() { agent_.begin_session(1); }

  static LockCall lock(LockAction action, LockType type = LockType::Write, uint64_t owner = 5) {
    return {.file = kFile, .action = action, .type = type, .owner = owner, .start = 10, .end = 19};
  }
  // Returns its number; how it ends goes to `ended_`.
  uint64_t ask(const LockCall& call) {
    return agent_.call({}, call, [this](Reply&& reply) { ended_.push_back(reply.error); });
  }
  void answer(uint64_t call, int32_t error = 0) {
    agent_.receive(Reply{.call = call, .error = error, .outcome = {}});
  }
  void answer_all() {
    for (const Call& call : std::exchange(sent_, {})) answer(call.call);
  }
  void lose_patience() {
    agent_.renew(AgentService::lease_clock());
    for (int i = 0; i < 3; ++i) {
      agent_.fail_late_calls();
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }
  // What is sent since the last time, and what the node claims from a home that restarts.
  std::string sent() {
    std::string out;
    for (const Call& call : std::exchange(sent_, {})) {
      const auto& l = std::get<LockCall>(call.operation);
      constexpr const char* kActions[] = {"try",     "wait",    "test",  "cancel",
                                          "release", "reclaim", "refuse"};
      if (!out.empty()) out += ", ";
      out += l.type == LockType::Unlock && l.action == LockAction::Try
                 ? "unlock"
                 : kActions[static_cast<size_t>(l.action)];
      if (l.waiting_call != 0) out += " " + std::to_string(l.waiting_call);
    }
    return out;
  }
  std::string sent_in_the_next_session() {
    sent_.clear();
    agent_.reset(Agent::Dirty::Kept, {.session = 2});
    return sent();
  }

  std::vector<Call> sent_;
  std::vector<int32_t> ended_;
  Metrics metrics_;
  net::EventLoop loop_{"test"};
  AgentService agent_{"home",
                      {.soft_ns = 1},
                      false,
                      [this](FileId, ToHome&& message, uint32_t) {
                        if (auto* call = std::get_if<Call>(&message)) sent_.push_back(*call);
                      },
                      {.metrics = &metrics_, .loops = {&loop_}}};
};

TEST_F(LateLocks, OnesThatAreGivenUpAreNotClaimedAgain) {
  ask(lock(LockAction::Try));
  answer_all();
  const uint64_t given_up = ask(lock(LockAction::Release, LockType::Unlock));
  lose_patience();
  agent_.let_closers_go();
  EXPECT_EQ(ended_, (std::vector<int32_t>{0, 0}));
  EXPECT_EQ(sent_in_the_next_session(), "release");
  answer(given_up);
  EXPECT_EQ(sent_in_the_next_session(), "");
}

TEST_F(LateLocks, OnesThatMayComeYetAreGivenBack) {
  ask(lock(LockAction::Try));
  const uint64_t waits = ask(lock(LockAction::Wait, LockType::Read, 6));
  sent_.clear();
  lose_patience();
  EXPECT_EQ(ended_, (std::vector<int32_t>{EIO, EIO}));
  const std::string cancel = "cancel " + std::to_string(waits) + ", unlock";
  const std::string all = sent();
  EXPECT_TRUE(all == "unlock, " + cancel || all == cancel + ", unlock") << all;
}

TEST_F(LateLocks, OneThatIsAskedForAgainStays) {
  const uint64_t first = ask(lock(LockAction::Try));
  lose_patience();
  const uint64_t again = ask(lock(LockAction::Try));
  ASSERT_EQ(sent(), "try, unlock, try");
  answer(first);
  answer(first + 1);
  answer(again);
  EXPECT_EQ(ended_, (std::vector<int32_t>{EIO, 0}));
  EXPECT_EQ(sent_in_the_next_session(), "reclaim");
}

TEST_F(LateLocks, WhatWasHeldBeforeStays) {
  ask(lock(LockAction::Try, LockType::Read));
  answer_all();
  ask(lock(LockAction::Try));
  lose_patience();
  EXPECT_EQ(sent(), "try");
}

TEST_F(LateLocks, AnUnlockIsHeardOfHoweverLate) {
  ask(lock(LockAction::Try));
  answer_all();
  ask(lock(LockAction::Try, LockType::Unlock));
  lose_patience();
  answer_all();
  EXPECT_EQ(ended_, (std::vector<int32_t>{0, EIO}));
  EXPECT_EQ(sent_in_the_next_session(), "");
}

// What an agent says it has heard: a home forgets what it did of those calls.
class HeardTest : public testing::Test {
 protected:
  HeardTest() {
    environment_.metrics = &metrics_;
    environment_.backlogged = [this] { return backlogged_.load(); };
    agent_.emplace(
        "home", AgentOptions{}, false,
        [this](FileId, ToHome&& message, uint32_t) {
          const auto* call = std::get_if<Call>(&message);
          if (call == nullptr) return;
          std::lock_guard lock(mutex_);
          // This one was not answered when those before it were sent.
          EXPECT_LE(most_heard_, call->call);
          EXPECT_LE(call->heard_below, call->call);
          most_heard_ = std::max(most_heard_, call->heard_below);
          sent_.push_back({call->call, call->heard_below});
        },
        environment_);
    agent_->begin_session(1);
  }
  static Operation removal() { return RemoveCall{kFile, "name", false}; }
  uint64_t removes(Waiting waiting = {}) {
    return agent_->call(
        {}, removal(), [](Reply&&) {}, waiting);
  }
  void answers(uint64_t call) {
    agent_->receive(Reply{.call = call, .error = ENOENT, .outcome = {}});
  }
  // With the call that was sent last.
  uint64_t heard_below() const { return sent_.back().second; }

  static constexpr FileId kFile{.export_index = 0, .generation = 1, .inode = 2};
  Metrics metrics_;
  std::atomic<bool> backlogged_{false};
  AgentService::Environment environment_;
  std::mutex mutex_;
  uint64_t most_heard_ = 0;
  std::vector<std::pair<uint64_t, uint64_t>> sent_;  // calls, and what was heard
  std::optional<AgentService> agent_;
};

TEST_F(HeardTest, ACallThatIsNotAnsweredIsNotPassed) {
  const uint64_t first = removes(), second = removes();
  EXPECT_EQ(heard_below(), first);
  answers(second);
  removes();
  EXPECT_EQ(heard_below(), first);
  answers(first);
  const uint64_t last = removes();
  EXPECT_EQ(heard_below(), last - 1);
}

TEST_F(HeardTest, ANumberThatIsTakenAndNotUsedYetIsNotPassed) {
  const uint64_t reserved = agent_->reserve_call(0, removal());
  answers(removes());
  removes();
  EXPECT_EQ(heard_below(), reserved);
  agent_->call_as(reserved, {}, removal(), [](Reply&&) {});
  EXPECT_EQ(sent_.back(), std::pair(reserved, reserved));
}

TEST_F(HeardTest, ACallThatIsRefusedHereIsNotWaitedFor) {
  backlogged_ = true;
  removes();
  backlogged_ = false;
  const uint64_t next = removes();
  EXPECT_EQ(heard_below(), next);
}

TEST_F(HeardTest, AnInterruptedCallIsNotMadeAgain) {
  removes({.unique = 8});
  agent_->interrupt(8);
  const uint64_t next = removes();
  EXPECT_EQ(heard_below(), next);
}

// It may wait for days, and homes keep no note of it.
TEST_F(HeardTest, AWaitForALockHoldsNothingUp) {
  agent_->call({}, LockCall{.file = kFile, .action = LockAction::Wait}, [](Reply&&) {});
  const uint64_t next = removes();
  EXPECT_EQ(heard_below(), next);
}

TEST_F(HeardTest, InTheNextSessionTheSameIsSaid) {
  const uint64_t first = removes(), second = removes(), third = removes();
  answers(first);
  agent_->reset(Agent::Dirty::Kept, {.session = 2});
  ASSERT_EQ(sent_.size(), 5u);
  EXPECT_EQ(sent_[3], std::pair(second, second));
  EXPECT_EQ(sent_[4], std::pair(third, second));
}

TEST_F(HeardTest, CallsOfTheDaemonBeforeAreNotPassed) {
  KeptHome kept;
  kept.next_call = 100;
  for (uint64_t id : {5, 9})
    kept.calls.push_back(
        {.call = {.call = id, .caller = {}, .operation = removal()}, .request = id});
  agent_->take_over(kept);
  EXPECT_EQ(agent_->reserve_call(9, removal()), 9u);
  answers(9);
  removes();
  EXPECT_EQ(heard_below(), 5u);
  answers(5);
  removes();
  EXPECT_EQ(heard_below(), 100u);
}

TEST_F(HeardTest, SoItIsWhateverHappensAtOnce) {
  constexpr uint64_t kThreads = 3, kCalls = 3000;
  std::vector<std::thread> programs;
  for (uint64_t thread = 0; thread < kThreads; ++thread)
    programs.emplace_back([&] {
      for (uint64_t i = 0; i < kCalls; ++i) removes();
    });
  for (uint64_t answered = 0; answered < kThreads * kCalls;) {
    std::vector<std::pair<uint64_t, uint64_t>> sent;
    {
      std::lock_guard lock(mutex_);
      sent.assign(sent_.begin() + static_cast<ptrdiff_t>(answered), sent_.end());
    }
    answered += sent.size();
    for (const auto& [call, heard] : sent) answers(call);
    if (sent.empty()) std::this_thread::yield();
  }
  for (std::thread& program : programs) program.join();
  const uint64_t last = removes();
  EXPECT_EQ(heard_below(), last);
}

}  // namespace
}  // namespace vremote::node
