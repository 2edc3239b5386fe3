// What a node sends to a home while one session follows the other.
#include <gtest/gtest.h>

#include <atomic>
#include <map>
#include <mutex>
#include <set>
#include <thread>

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

}  // namespace
}  // namespace vremote::node
