#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>
#include <thread>

#include "net/net_world.h"
#include "wire/codec.h"

namespace vremote::net {
namespace {

using namespace coherence;  // NOLINT: the messages, and nothing else, are meant
using testing::ElementsAre;
using testing::HasSubstr;

TEST(SessionTest, MessagesArriveInOrderOnEachLaneInBothDirections) {
  TestHome home;
  home.on_message = [&](SessionId id, uint32_t lane, const ToHome& message) {
    ASSERT_TRUE(home.server->send(
        id, lane, numbered_to_agent(number_of(message), number_of(message) % 3 * 5000)));
  };
  TestAgent agent(home.address());
  constexpr uint64_t kCount = 3000;
  for (uint64_t n = 1; n <= kCount; ++n)
    for (uint32_t lane = 0; lane < 3; ++lane)
      ASSERT_TRUE(agent.session->send(lane, numbered_to_home(n, n % 5 == 0 ? 9000 : 0)));
  ASSERT_TRUE(agent.journal.until([&] { return agent.seen.count == 3 * kCount; }));
  ASSERT_TRUE(home.journal.until(
      [&] { return home.seen.count == 3 * kCount; }));  // it notes a message after its reply
  for (uint32_t lane = 0; lane < 3; ++lane) {
    EXPECT_EQ(wrong_order(home.journal.look([&] {
                return home.seen.messages[{1, lane}];
              }),
                          kCount),
              "");
    EXPECT_EQ(wrong_order(agent.seen.messages[lane], kCount), "");
  }
}

TEST(SessionTest, TheAgentLearnsWhoTheHomeIsAndWhatItExports) {
  TestHome home(77);
  TestAgent agent(home.address());
  ASSERT_TRUE(agent.journal.until([&] { return !agent.seen.infos.empty(); }));
  HomeInfo info = agent.journal.look([&] { return agent.seen.infos[0]; });
  EXPECT_EQ(info.node_name, "home");
  EXPECT_EQ(info.incarnation, 77u);
  EXPECT_EQ(info.session, 1u);
  EXPECT_TRUE(info.fresh);
  EXPECT_EQ(info.lease_term_ms, 10000u);
  ASSERT_EQ(info.exports.size(), 1u);
  EXPECT_EQ(info.exports[0].name, "data");
  auto sessions = home.server->sessions();
  ASSERT_EQ(sessions.size(), 1u);
  EXPECT_EQ(sessions[0].node_name, "n1");
  EXPECT_EQ(sessions[0].incarnation, 11u);
  EXPECT_EQ(sessions[0].lanes, 3u);
  EXPECT_EQ(info.features, wire::kFeatures);
  EXPECT_EQ(home.server->features(1), wire::kFeatures);
  EXPECT_EQ(home.server->features(2), 0u) << "nobody";
}

TEST(SessionTest, ASessionThatTakesLongToBeginKeepsNoOtherWaiting) {
  TestHome home;
  std::promise<void> begun, may_go_on;
  home.on_session = [&](const SessionInfo& info) {
    if (info.node_name != "n2") return;
    begun.set_value();
    may_go_on.get_future().wait();  // for a disk
  };
  TestAgent agent(home.address());
  const auto send_on_all_lanes = [&](uint64_t number) {
    for (uint32_t lane = 0; lane < 3; ++lane)
      ASSERT_TRUE(agent.session->send(lane, numbered_to_home(number)));
  };
  send_on_all_lanes(1);
  ASSERT_TRUE(home.journal.until([&] { return home.seen.count == 3; }));
  TestAgent other(home.address(), "n2", 12);
  begun.get_future().wait();
  send_on_all_lanes(2);
  EXPECT_TRUE(home.journal.until([&] { return home.seen.count == 6; }));
  EXPECT_FALSE(other.session->connected());
  may_go_on.set_value();
  EXPECT_TRUE(other.journal.until([&] { return !other.seen.infos.empty(); }));
}

// `vremote upgrade`: another process of the node goes on where one has stopped.
TEST(SessionTest, AnotherProcessGoesOnWithTheSessionAndNothingIsLostOrDoubled) {
  TestHome home;
  constexpr uint64_t kCount = 200;
  const auto send = [](TestAgent& agent, uint64_t from, uint64_t to) {
    for (uint64_t n = from; n <= to; ++n)
      for (uint32_t lane = 0; lane < 3; ++lane)
        ASSERT_TRUE(agent.session->send(lane, numbered_to_home(n, 2000)));
  };
  std::optional<KeptSession> kept;
  {
    TestAgent before(home.address());
    ASSERT_TRUE(before.journal.until([&] { return !before.seen.infos.empty(); }));
    ASSERT_TRUE(home.server->send(1, 0, numbered_to_agent(1)));
    ASSERT_TRUE(before.journal.until([&] { return before.seen.count == 1; }));
    send(before, 1, kCount / 2);
    kept = before.session->kept();  // whatever of it has been sent, or acknowledged
  }
  ASSERT_TRUE(kept);
  ASSERT_EQ(kept->lanes.size(), 3u);
  TestAgent after(home.address(), "n1", 11,
                  [&](AgentSessionOptions& options) { options.kept = kept; });
  send(after, kCount / 2 + 1, kCount);
  ASSERT_TRUE(home.server->send(1, 0, numbered_to_agent(2)));
  ASSERT_TRUE(home.journal.until([&] { return home.seen.count == 3 * kCount; }));
  for (uint32_t lane = 0; lane < 3; ++lane)
    EXPECT_EQ(wrong_order(home.journal.look([&] {
                return home.seen.messages[{1, lane}];
              }),
                          kCount),
              "");
  ASSERT_TRUE(after.journal.until([&] { return after.seen.count == 1; }));
  EXPECT_EQ(after.journal.look([&] { return number_of(after.seen.messages[0][0]); }), 2u);
  EXPECT_FALSE(after.journal.look([&] { return after.seen.infos.at(0).fresh; }));
  EXPECT_EQ(home.server->sessions().size(), 1u);
  EXPECT_EQ(home.journal.look([&] { return home.seen.events.size(); }), 1u);  // "session 1 n1"
}

TEST(SessionTest, TwoAgentsHaveSessionsOfTheirOwn) {
  TestHome home;
  TestAgent one(home.address(), "n1", 1);
  TestAgent two(home.address(), "n2", 2);
  ASSERT_TRUE(one.session->send(0, numbered_to_home(1)));
  ASSERT_TRUE(two.session->send(0, numbered_to_home(1)));
  ASSERT_TRUE(home.journal.until([&] { return home.seen.count == 2; }));
  auto sessions = home.server->sessions();
  ASSERT_EQ(sessions.size(), 2u);
  ASSERT_TRUE(home.server->send(sessions[0].id, 0, numbered_to_agent(1)));
  TestAgent& first = sessions[0].node_name == "n1" ? one : two;
  TestAgent& second = sessions[0].node_name == "n1" ? two : one;
  ASSERT_TRUE(first.journal.until([&] { return first.seen.count == 1; }));
  EXPECT_EQ(second.journal.look([&] { return second.seen.count; }), 0u);
}

TEST(SessionTest, TheLargestFlushArrivesWhole) {
  TestHome home;
  TestAgent agent(home.address());
  for (uint64_t n = 1; n <= 8; ++n)
    ASSERT_TRUE(agent.session->send(1, numbered_to_home(n, wire::kBulkMax)));
  ASSERT_TRUE(home.journal.until([&] { return home.seen.count == 8; }));
  EXPECT_EQ(wrong_order(home.seen.messages[std::pair(1u, 1u)], 8), "");
}

TEST(SessionTest, AcknowledgedMessagesAreForgottenWithoutTrafficInTheOtherDirection) {
  TestHome home;
  TestAgent agent(home.address());
  ASSERT_TRUE(agent.session->send(0, numbered_to_home(1, 4096)));
  ASSERT_TRUE(home.journal.until([&] { return home.seen.count == 1; }));
  EXPECT_TRUE(eventually([&] { return agent.session->stats()[0].unacknowledged == 0; }));
  EXPECT_EQ(agent.session->stats()[0].unacknowledged_bytes, 0u);
}

TEST(SessionTest, CountersTellWhatWentOverEachLane) {
  TestHome home;
  TestAgent agent(home.address());
  for (uint64_t n = 1; n <= 10; ++n) ASSERT_TRUE(agent.session->send(2, numbered_to_home(n)));
  ASSERT_TRUE(agent.session->send(2, numbered_to_home(11, 5000)));
  ASSERT_TRUE(home.journal.until([&] { return home.seen.count == 11; }));
  LaneStats sent = agent.session->stats()[2];
  LaneStats got = home.server->stats(1)[2];
  EXPECT_EQ(sent.messages_out[static_cast<size_t>(wire::FrameType::Fetch)], 10u);
  EXPECT_EQ(sent.messages_out[static_cast<size_t>(wire::FrameType::Flush)], 1u);
  EXPECT_EQ(got.messages_in, sent.messages_out);
  EXPECT_GT(got.bytes_in, 5000u);
  EXPECT_EQ(got.connections, 1u);
  EXPECT_TRUE(got.connected);
  EXPECT_EQ(agent.session->stats()[0].messages_out[static_cast<size_t>(wire::FrameType::Fetch)],
            0u);
}

TEST(SessionTest, ThePingsOfAllLanesRenewTheLease) {
  TestHome home;
  Instant before = EventLoop::now();
  TestAgent agent(home.address());
  ASSERT_TRUE(eventually([&] { return agent.session->renewed_at() > before; }));
  Instant once = agent.session->renewed_at();
  ASSERT_TRUE(eventually([&] { return agent.session->renewed_at() > once; }));
  auto heard = home.server->last_heard(1);
  ASSERT_TRUE(heard);
  EXPECT_GE(*heard, once) << "the home heard of us no earlier than we count from";
  EXPECT_FALSE(home.server->last_heard(2));
}

TEST(SessionTest, WhatIsSentBeforeTheHomeIsThereArrivesLater) {
  uint16_t port;
  {
    TestHome probe;  // a port that is free
    port = probe.server->port();
  }
  TestAgent agent("127.0.0.1:" + std::to_string(port));
  for (uint64_t n = 1; n <= 5; ++n) ASSERT_TRUE(agent.session->send(0, numbered_to_home(n)));
  ASSERT_TRUE(agent.journal.until([&] { return !agent.seen.events.empty(); }));
  EXPECT_THAT(agent.journal.look([&] { return agent.seen.events[0]; }),
              HasSubstr("cannot connect"));
  TestHome home(1, port);
  ASSERT_TRUE(home.journal.until([&] { return home.seen.count == 5; }));
  EXPECT_EQ(wrong_order(home.seen.messages[std::pair(1u, 0u)], 5), "");
}

TEST(SessionTest, AHomeThatRestartedResetsTheSessionAndNothingOldReachesIt) {
  auto first = std::make_unique<TestHome>(1);
  uint16_t port = first->server->port();
  TestAgent agent(first->address());
  ASSERT_TRUE(agent.session->send(0, numbered_to_home(1)));
  ASSERT_TRUE(first->journal.until([&] { return first->seen.count == 1; }));
  ASSERT_TRUE(agent.journal.until([&] { return !agent.seen.events.empty(); }));  // connected
  first.reset();
  // Messages of the old session, waiting for a home that will never be the same.
  ASSERT_TRUE(agent.journal.until([&] { return agent.seen.events.size() >= 2; }));  // disconnected
  for (uint32_t lane = 0; lane < 3; ++lane)
    for (int i = 0; i < 50; ++i) ASSERT_TRUE(agent.session->send(lane, numbered_to_home(1000)));

  TestHome second(2, port);
  // The agent may have met the first home once more while that was ending.
  ASSERT_TRUE(agent.journal.until(
      [&] { return !agent.seen.infos.empty() && agent.seen.infos.back().incarnation == 2; }));
  HomeInfo info = agent.journal.look([&] { return agent.seen.infos.back(); });
  EXPECT_TRUE(info.fresh);
  EXPECT_EQ(info.incarnation, 2u);
  auto events = agent.journal.look([&] { return agent.seen.events; });
  EXPECT_EQ(events.front(), "connected fresh");
  EXPECT_EQ(events.at(events.size() - 2), "reset");
  EXPECT_EQ(events.back(), "connected fresh");
  for (uint32_t lane = 0; lane < 3; ++lane) {
    ASSERT_TRUE(agent.session->send(lane, numbered_to_home(999), info.generation - 1))
        << "of the old session: dropped";
    ASSERT_TRUE(agent.session->send(lane, numbered_to_home(1), info.generation));
  }
  ASSERT_TRUE(second.journal.until([&] { return second.seen.count >= 3; }));
  for (auto& [key, messages] : second.journal.look([&] { return second.seen.messages; }))
    EXPECT_EQ(wrong_order(messages, 1), "");
}

TEST(SessionTest, ANodeThatRestartedGetsANewSessionAfterTheOldOneIsVoid) {
  TestHome home;
  auto old = std::make_unique<TestAgent>(home.address(), "n1", 11);
  ASSERT_TRUE(old->session->send(0, numbered_to_home(1)));
  ASSERT_TRUE(home.journal.until([&] { return home.seen.count == 1; }));
  old.reset();
  TestAgent again(home.address(), "n1", 12);
  ASSERT_TRUE(again.session->send(0, numbered_to_home(1)));
  ASSERT_TRUE(home.journal.until([&] { return home.seen.count == 2; }));
  EXPECT_THAT(home.journal.look([&] { return home.seen.events; }),
              ElementsAre("session 1 n1", "reset 1", "session 2 n1"));
  EXPECT_EQ(home.journal.look([&] { return home.seen.messages[{2, 0}].size(); }), 1u);
  ASSERT_TRUE(home.server->send(1, 0, numbered_to_agent(7))) << "to the old session: dropped";
  ASSERT_TRUE(home.server->send(2, 0, numbered_to_agent(1)));
  ASSERT_TRUE(again.journal.until([&] { return again.seen.count == 1; }));
  EXPECT_EQ(wrong_order(again.seen.messages[0], 1), "");
}

TEST(SessionTest, ASecondNodeOfALiveNodesNameIsRefusedAndTheFirstIsLeftAlone) {
  TestHome home;
  TestAgent first(home.address(), "n1", 11);
  ASSERT_TRUE(first.session->send(0, numbered_to_home(1)));
  ASSERT_TRUE(home.journal.until([&] { return home.seen.count == 1; }));
  ASSERT_TRUE(first.journal.until([&] { return !first.seen.events.empty(); }));
  TestAgent second(home.address(), "n1", 12);
  ASSERT_TRUE(second.journal.until([&] { return !second.seen.events.empty(); }));
  EXPECT_THAT(second.journal.look([&] { return second.seen.events[0]; }),
              HasSubstr("a node named n1 is already connected from 127.0.0.1:"));
  // It tries again and again, and harms nobody.
  ASSERT_TRUE(first.session->send(0, numbered_to_home(2)));
  ASSERT_TRUE(home.journal.until([&] { return home.seen.count == 2; }));
  EXPECT_THAT(home.journal.look([&] { return home.seen.events; }), ElementsAre("session 1 n1"));
  EXPECT_EQ(first.journal.look([&] { return first.seen.events; }),
            std::vector<std::string>{"connected fresh"});
  // Once the first is gone the second gets in.
  first.session->stop();
  ASSERT_TRUE(second.journal.until([&] { return second.seen.events.back() == "connected fresh"; }));
}

TEST(SessionTest, ANodeWhoseMachineFellSilentDoesNotKeepItsNameForLong) {
  TestHome home(1, 0, [](HomeServerOptions& o) { o.alive_ms = 100; });
  // It never pings, and its connections stand: a machine that lost its power.
  TestAgent silent(home.address(), "n1", 11, [](AgentSessionOptions& o) {
    o.ping_interval_ms = 0;
    o.silence_max_ms = 60000;
  });
  ASSERT_TRUE(silent.session->send(0, numbered_to_home(1)));
  ASSERT_TRUE(home.journal.until([&] { return home.seen.count == 1; }));
  TestAgent again(home.address(), "n1", 12);
  ASSERT_TRUE(again.journal.until(
      [&] { return !again.seen.events.empty() && again.seen.events.back() == "connected fresh"; }));
}

TEST(SessionTest, ASessionThatTheHomeEndsIsResetAtTheAgent) {
  TestHome home;
  TestAgent agent(home.address());
  ASSERT_TRUE(agent.session->send(0, numbered_to_home(1)));
  ASSERT_TRUE(home.journal.until([&] { return home.seen.count == 1; }));
  home.server->end_session(1, "ended by the test");
  // A lane whose handshake was under way may bring the old session back for a moment.
  ASSERT_TRUE(agent.journal.until(
      [&] { return !agent.seen.infos.empty() && agent.seen.infos.back().session > 1; }));
  auto events = agent.journal.look([&] { return agent.seen.events; });
  EXPECT_EQ(std::ranges::count(events, "reset"), 1);
  EXPECT_EQ(events.back(), "connected fresh");
  auto at_home = home.journal.look([&] { return home.seen.events; });
  EXPECT_EQ(at_home.at(1), "reset 1");
}

TEST(SessionTest, ASilencedSessionIsHeardNoMoreAndStaysUntilItIsEnded) {
  TestHome home;
  TestAgent agent(home.address());
  ASSERT_TRUE(agent.session->send(0, numbered_to_home(1)));
  ASSERT_TRUE(home.journal.until([&] { return home.seen.count == 1; }));
  home.server->silence(1);
  ASSERT_TRUE(agent.journal.until([&] {
    return std::ranges::any_of(agent.seen.events, [](const std::string& event) {
      return event.find("waited for no more") != std::string::npos;
    });
  }));
  // From here on nothing gets through: the lease runs out.
  const auto heard = home.server->last_heard(1);
  const Instant renewed = agent.session->renewed_at();
  ASSERT_TRUE(heard);
  ASSERT_TRUE(agent.session->send(0, numbered_to_home(2)));
  TestAgent other(home.address(), "n2");
  ASSERT_TRUE(other.session->send(0, numbered_to_home(1)));
  ASSERT_TRUE(home.journal.until([&] { return home.seen.count == 2; }));
  EXPECT_EQ(home.server->last_heard(1), heard);
  EXPECT_EQ(agent.session->renewed_at(), renewed);
  EXPECT_EQ(home.journal.look([&] { return home.seen.messages[{1, 0}].size(); }), 1u);
  home.server->end_session(1, "its leases are over");
  ASSERT_TRUE(agent.journal.until(
      [&] { return !agent.seen.infos.empty() && agent.seen.infos.back().session > 2; }));
}

TEST(SessionTest, ANodeOfAnotherClusterIsRefusedAndToldWhy) {
  TestHome home;
  TestAgent agent(home.address(), "n1", 11,
                  [](AgentSessionOptions& o) { o.cluster = "elsewhere"; });
  ASSERT_TRUE(agent.journal.until([&] { return !agent.seen.events.empty(); }));
  auto event = agent.journal.look([&] { return agent.seen.events[0]; });
  EXPECT_THAT(event, HasSubstr("another cluster"));
  EXPECT_THAT(event, HasSubstr("elsewhere"));
  EXPECT_FALSE(agent.session->connected());
  EXPECT_TRUE(home.server->sessions().empty());
}

TEST(SessionTest, ANodeThatLooksForAnotherHomeIsToldWhoAnswers) {
  TestHome home;
  TestAgent right(home.address(), "n1", 11, [](AgentSessionOptions& o) { o.home_name = "home"; });
  ASSERT_TRUE(right.journal.until([&] { return !right.seen.infos.empty(); }));
  // The same node, by a mistake in its configuration: its good session must not suffer.
  TestAgent wrong(home.address(), "n1", 11, [](AgentSessionOptions& o) { o.home_name = "n7"; });
  ASSERT_TRUE(wrong.journal.until([&] { return !wrong.seen.events.empty(); }));
  EXPECT_THAT(wrong.journal.look([&] { return wrong.seen.events[0]; }),
              HasSubstr("this is node home, not n7"));
  EXPECT_FALSE(wrong.session->connected());
  EXPECT_THAT(home.journal.look([&] { return home.seen.events; }), ElementsAre("session 1 n1"));
}

TEST(SessionTest, ABadOrTakenAddressIsAClearError) {
  TestHome home;
  auto start = [&](std::string address) {
    HomeServer server(
        *home.door.all()[0], home.loops.all(),
        {.address = std::move(address), .cluster = "lab", .node_name = "h2", .incarnation = 1}, {});
    auto status = server.start();
    return status ? Error{0, ""} : status.error();
  };
  Error taken = start(home.address());
  EXPECT_EQ(taken.code, EADDRINUSE);
  EXPECT_THAT(taken.what, HasSubstr(home.address()));
  EXPECT_EQ(start("127.0.0.1:x").code, EINVAL);
  EXPECT_EQ(start("192.0.2.1:0").code, EADDRNOTAVAIL);
  EXPECT_EQ(start("127.0.0.1:0").code, 0);

  AgentSession session(
      home.loops.all(),
      {.address = "nowhere:0", .cluster = "lab", .node_name = "n1", .incarnation = 1}, {});
  auto status = session.start();
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code, EINVAL);
}

TEST(SessionTest, AMessageThatTheWireRefusesIsNotSent) {
  TestHome home;
  TestAgent agent(home.address());
  Call call{.call = 1, .caller = {}, .operation = LookupCall{{}, std::string(256, 'x')}};
  auto status = agent.session->send(0, call);
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code, EMSGSIZE);
  ASSERT_TRUE(agent.session->send(0, numbered_to_home(1)));
  ASSERT_TRUE(home.journal.until([&] { return home.seen.count == 1; }));
  EXPECT_EQ(wrong_order(home.seen.messages[std::pair(1u, 0u)], 1), "");
}

TEST(SessionTest, TheNameLocalhostCanBeDialled) {
  TestHome home(1, 0, [](HomeServerOptions& o) { o.address = ":0"; });
  TestAgent agent("localhost:" + std::to_string(home.server->port()));
  ASSERT_TRUE(agent.journal.until([&] { return !agent.seen.infos.empty(); }));
}

TEST(SessionTest, APausedNodesMessagesWaitInItsOwnMemoryAndNothingIsLost) {
  // Silence is noticed after 50 ms, and a pause is none.
  TestHome home(1, 0, [](HomeServerOptions& o) { o.silence_max_ms = 50; });
  TestAgent agent(home.address(), "n1", 11,
                  [](AgentSessionOptions& o) { o.silence_max_ms = 60000; });
  ASSERT_TRUE(agent.session->send(0, numbered_to_home(1)));
  ASSERT_TRUE(home.journal.until([&] { return home.seen.count == 1; }));
  home.server->pause(1);
  constexpr uint64_t kCount = 40;  // of 1 MiB: more than sockets hold
  for (uint64_t n = 2; n <= kCount; ++n)
    ASSERT_TRUE(agent.session->send(0, numbered_to_home(n, 1 << 20)));
  // The other direction goes on.
  ASSERT_TRUE(home.server->send(1, 0, numbered_to_agent(1)));
  ASSERT_TRUE(agent.journal.until([&] { return agent.seen.count == 1; }));
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  EXPECT_LE(home.journal.look([&] { return home.seen.count; }), 3u)
      << "what was being read when the pause came, at most";
  EXPECT_GE(agent.session->queued_messages(), kCount - 3);
  home.server->resume(1);
  ASSERT_TRUE(home.journal.until([&] { return home.seen.count == kCount; }));
  EXPECT_EQ(wrong_order(home.seen.messages[std::pair(1u, 0u)], kCount), "");
  EXPECT_TRUE(eventually([&] { return agent.session->queued_messages() == 0; }));
}

TEST(SessionTest, APauseHoldsForANewConnectionToo) {
  TestHome home;
  TestAgent agent(home.address());
  ASSERT_TRUE(agent.session->send(0, numbered_to_home(1)));
  ASSERT_TRUE(home.journal.until([&] { return home.seen.count == 1; }));
  home.server->pause(1);
  agent.session->break_connection(0);
  ASSERT_TRUE(agent.session->send(0, numbered_to_home(2)));
  ASSERT_TRUE(eventually([&] { return home.server->stats(1)[0].connections >= 2; }));
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_EQ(home.journal.look([&] { return home.seen.count; }), 1u);
  home.server->resume(1);
  ASSERT_TRUE(home.journal.until([&] { return home.seen.count == 2; }));
}

TEST(SessionTest, ANodeThatDoesNotTakeWhatItAsksForLosesItsSession) {
  TestHome home(1, 0, [](HomeServerOptions& o) { o.queued_max_bytes = 1 << 20; });
  TestAgent agent(home.address());
  ASSERT_TRUE(agent.session->send(0, numbered_to_home(1)));
  ASSERT_TRUE(home.journal.until([&] { return home.seen.count == 1; }));
  agent.session->stop();
  for (uint64_t n = 1; n <= 20; ++n)
    ASSERT_TRUE(home.server->send(1, 0, numbered_to_agent(n, 100'000)));
  ASSERT_TRUE(home.journal.until([&] { return home.seen.events.back() == "reset 1"; }));
  EXPECT_TRUE(home.server->sessions().empty());
}

TEST(SessionTest, StoppingWhileMessagesFlyHangsNobody) {
  for (int i = 0; i < 20; ++i) {
    auto home = std::make_unique<TestHome>();
    home->on_message = [&](SessionId id, uint32_t lane, const ToHome& m) {
      (void)home->server->send(id, lane, numbered_to_agent(number_of(m), 3000));
    };
    auto agent = std::make_unique<TestAgent>(home->address());
    for (uint64_t n = 1; n <= 100; ++n)
      ASSERT_TRUE(agent->session->send(n % 3, numbered_to_home(n, 5000)));
    // Somewhere in the middle; one side first, then the other.
    ASSERT_TRUE(agent->journal.until([&] { return agent->seen.count >= static_cast<size_t>(i); }));
    if (i % 2 == 0) agent.reset();
    home->server->stop();
    if (agent) agent.reset();
  }
}

}  // namespace
}  // namespace vremote::net
