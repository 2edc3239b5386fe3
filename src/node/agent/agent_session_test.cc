// What a node sends to a home while one session follows the other.
#include <gtest/gtest.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <map>
#include <mutex>
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

}  // namespace
}  // namespace vremote::node
