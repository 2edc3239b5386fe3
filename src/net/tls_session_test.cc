// Nodes with and without the key, and with and without TLS, before one another's doors.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <algorithm>
#include <atomic>

#include "net/address.h"
#include "net/chaos_proxy.h"
#include "net/net_world.h"

namespace vremote::net {
namespace {

using testing::AllOf;
using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;

std::function<void(HomeServerOptions&)> home_with(std::shared_ptr<const Tls> tls) {
  return [tls](HomeServerOptions& o) { o.tls = tls; };
}
std::function<void(AgentSessionOptions&)> agent_with(std::shared_ptr<const Tls> tls) {
  return [tls](AgentSessionOptions& o) {
    o.tls = tls;
    o.home_name = "home";
  };
}
std::string first_event(TestAgent& agent) {
  EXPECT_TRUE(agent.journal.until([&] { return !agent.seen.events.empty(); }));
  return agent.journal.look([&] { return agent.seen.events.at(0); });
}

TEST(TlsSessionTest, MembersSpeakEncryptedAndSayIt) {
  TestHome home(1, 0, home_with(test_tls("home")));
  TestAgent agent(home.address(), "n1", 11, agent_with(test_tls("n1")));
  EXPECT_EQ(first_event(agent), "connected fresh");
  ASSERT_TRUE(agent.session->send(0, numbered_to_home(1, 300000)));
  ASSERT_TRUE(home.journal.until([&] { return home.seen.count == 1; }));
  EXPECT_EQ(number_of(home.journal.look([&] { return home.seen.messages.begin()->second.at(0); })),
            1u);
  EXPECT_TRUE(agent.session->stats()[0].encrypted);
  EXPECT_TRUE(home.server->stats(1)[0].encrypted);
}

TEST(TlsSessionTest, AStrangersKeyOpensNothing) {
  auto other = Tls::make(*ClusterKey::generate("lab"), "n1");
  TestHome home(1, 0, home_with(test_tls("home")));
  TestAgent agent(home.address(), "n1", 11, agent_with(*other));
  EXPECT_THAT(first_event(agent), HasSubstr("does not take our key"));
  EXPECT_TRUE(home.server->sessions().empty());
  EXPECT_TRUE(home.journal.look([&] { return home.seen.events.empty(); }));
}

TEST(TlsSessionTest, APlainNodeAndATlsHomeTellOneAnother) {
  TestHome home(1, 0, home_with(test_tls("home")));
  TestAgent agent(home.address(), "n1", 11, agent_with(nullptr));
  EXPECT_THAT(first_event(agent), AllOf(HasSubstr("not encrypted"), HasSubstr("speaks only TLS")));
  EXPECT_TRUE(home.server->sessions().empty());
}

TEST(TlsSessionTest, ATlsNodeAndAPlainHomeTellOneAnother) {
  TestHome home(1, 0, home_with(nullptr));
  TestAgent agent(home.address(), "n1", 11, agent_with(test_tls("n1")));
  EXPECT_THAT(first_event(agent), HasSubstr("its configuration says tls = \"off\""));
  EXPECT_TRUE(home.server->sessions().empty());
}

TEST(TlsSessionTest, ANodeMayNotSayAnotherNameThanItsKeys) {
  TestHome home(1, 0, home_with(test_tls("home")));
  TestAgent agent(home.address(), "n1", 11, agent_with(test_tls("n2")));
  EXPECT_THAT(first_event(agent), HasSubstr("has the key of n2 and says to be n1"));
  EXPECT_TRUE(home.server->sessions().empty());
}

TEST(TlsSessionTest, AGuestSpeaksInItsOwnNameOnly) {
  TestHome home(1, 0, home_with(test_tls("home")));
  auto guest = *Tls::make(test_key().for_guest("g"), "g");
  auto posing = *Tls::make(test_key().for_guest("g"), "n1");
  TestAgent good(home.address(), "g", 11, agent_with(guest));
  EXPECT_EQ(first_event(good), "connected fresh");
  TestAgent bad(home.address(), "n1", 12, agent_with(posing));
  EXPECT_THAT(first_event(bad), HasSubstr("does not take our key"));
  EXPECT_EQ(home.server->sessions().size(), 1u);
}

TEST(TlsSessionTest, ADialToAnotherNodeIsNotBelieved) {
  TestHome home(1, 0, home_with(test_tls("home")));
  // All that a guest named "other" can make of its key for other names.
  TestAgent agent(home.address(), "n1", 11, [](AgentSessionOptions& o) {
    o.tls = test_tls("n1");
    o.home_name = "other";
  });
  EXPECT_THAT(first_event(agent), HasSubstr("this is node home, not other"));
  EXPECT_TRUE(home.server->sessions().empty());
}

TEST(TlsSessionTest, AHomeWithoutTheKeyIsNotBelieved) {
  auto other = *Tls::make(*ClusterKey::generate("lab"), "home");
  auto guest = *Tls::make(test_key().for_guest("g"), "home");
  for (const auto& false_tls : {other, guest}) {
    TestHome home(1, 0, home_with(false_tls));
    TestAgent agent(home.address(), "n1", 11, agent_with(test_tls("n1")));
    EXPECT_THAT(first_event(agent), HasSubstr("does not take our key"));
    EXPECT_TRUE(home.server->sessions().empty());
  }
}

// No message is lost while the key of the cluster changes under a session, whoever changes first;
// who has only the old key is out at the end.
TEST(TlsSessionTest, AKeyIsChangedUnderASession) {
  const KeyRing old(test_key()), both = *old.renewed(), only_new = both.without_older();
  for (const bool home_first : {true, false}) {
    const auto home_keys = *Tls::make(old, "home"), agent_keys = *Tls::make(old, "n1");
    TestHome home(1, 0, [&](HomeServerOptions& o) {
      o.tls = home_keys;
      o.silence_max_ms = 1000;
    });
    TestAgent agent(home.address(), "n1", 11, [&](AgentSessionOptions& o) {
      o.tls = agent_keys;
      o.home_name = "home";
      o.ping_interval_ms = 50;
    });
    uint64_t sent = 0;
    auto speaks = [&] {
      for (int i = 0; i < 20; ++i)
        ASSERT_TRUE(agent.session->send(0, numbered_to_home(++sent, 1000)));
      ASSERT_TRUE(home.journal.until([&] { return home.seen.count == sent; }));
    };
    auto of_older_key = [&] {
      bool any = false;
      for (const LaneStats& lane : agent.session->stats())
        any = any || lane.older_key || !lane.connected;
      for (const LaneStats& lane : home.server->stats(1))
        any = any || lane.older_key || !lane.connected;
      return any;
    };
    speaks();
    (home_first ? home_keys : agent_keys)->set_keys(both);
    // One end has the new key only beside the other: the old one serves.
    ASSERT_TRUE(eventually([&] { return agent.session->stats()[0].connections >= 2; }));
    ASSERT_TRUE(eventually([&] { return agent.session->connected(); }));
    speaks();
    ASSERT_TRUE(of_older_key());
    (home_first ? agent_keys : home_keys)->set_keys(both);
    ASSERT_TRUE(eventually([&] { return !of_older_key(); })) << "both have it, nobody uses it";
    speaks();
    (home_first ? home_keys : agent_keys)->set_keys(only_new);
    speaks();
    (home_first ? agent_keys : home_keys)->set_keys(only_new);
    speaks();
    EXPECT_THAT(home.journal.look([&] { return home.seen.events; }), ElementsAre("session 1 n1"));
    TestAgent late(home.address(), "n2", 12, agent_with(*Tls::make(old, "n2")));
    EXPECT_THAT(first_event(late), HasSubstr("does not take our key"));
  }
}

// The home gets the new key between its refusal of that and its taking of the older one.
TEST(TlsSessionTest, AChangeOfKeysInTheMiddleOfAHandshakeIsNotMissed) {
  const KeyRing old(test_key()), both = *old.renewed();
  const auto home_keys = *Tls::make(old, "home"), agent_keys = *Tls::make(both, "n1");
  TestHome home(1, 0, home_with(home_keys));
  std::atomic<uint64_t> connections = 0;
  ChaosProxy proxy({.target = home.server->port(), .on_connection = [&](uint64_t n) {
                      connections = n;
                      if (n == 2) home_keys->set_keys(both);
                    }});
  proxy.calm();
  TestAgent agent("127.0.0.1:" + std::to_string(proxy.port()), "n1", 11,
                  [&](AgentSessionOptions& o) {
                    agent_with(agent_keys)(o);
                    o.lanes = 1;
                  });
  ASSERT_TRUE(eventually([&] {
    const LaneStats lane = agent.session->stats()[0];
    return lane.connected && !lane.older_key;
  }));
  EXPECT_EQ(connections, 3u) << "the newest, the older, the newest";
  EXPECT_FALSE(home.server->stats(1)[0].older_key);
  ASSERT_TRUE(agent.session->send(0, numbered_to_home(1, 1000)));
  EXPECT_TRUE(home.journal.until([&] { return home.seen.count == 1; }));
}

TEST(TlsSessionTest, TwoNodesWithDifferentNewKeysSpeakByTheOld) {
  const KeyRing old(test_key());
  TestHome home(1, 0, home_with(*Tls::make(*old.renewed(), "home")));
  TestAgent agent(home.address(), "n1", 11, agent_with(*Tls::make(*old.renewed(), "n1")));
  ASSERT_TRUE(eventually(
      [&] { return std::ranges::all_of(agent.session->stats(), &LaneStats::connected); }));
  for (const LaneStats& lane : agent.session->stats()) EXPECT_TRUE(lane.older_key);
}

// The steps of a change of keys come in any order, on several nodes.
TEST(TlsSessionTest, ANodeThatGetsTheRightKeyDoesNotWaitOutTheLastRefusal) {
  const KeyRing right(test_key());
  const auto keys = *Tls::make(*ClusterKey::generate("lab"), "n1");
  TestHome home(1, 0, home_with(test_tls("home")));
  TestAgent agent(home.address(), "n1", 11, [&](AgentSessionOptions& o) {
    agent_with(keys)(o);
    o.backoff_min_ms = o.backoff_max_ms = o.refused_backoff_ms = 3'600'000;
  });
  EXPECT_THAT(first_event(agent), HasSubstr("does not take our key"));
  keys->set_keys(right);
  // A lane may be in the middle of its first refusal: it is told again then.
  EXPECT_TRUE(eventually([&] {
    agent.session->hurry();
    return agent.session->connected();
  }));
}

TEST(TlsSessionTest, WhoIsRefusedTriesAgainSoonAtFirst) {
  const auto keys = *Tls::make(*ClusterKey::generate("lab"), "home");
  TestHome home(1, 0, home_with(keys));
  TestAgent agent(home.address(), "n1", 11, [&](AgentSessionOptions& o) {
    agent_with(test_tls("n1"))(o);
    o.backoff_min_ms = 1;
    o.refused_backoff_ms = 3'600'000;
  });
  EXPECT_THAT(first_event(agent), HasSubstr("does not take our key"));
  keys->set_keys(KeyRing(test_key()));
  EXPECT_TRUE(eventually([&] { return agent.session->connected(); }));
}

// Flipped bits end connections, and nothing else: not the session, not one message.
TEST(TlsSessionTest, FlippedBitsAreFoundAndMended) {
  // A flipped bit in a record's length may leave the receiver waiting for the rest.
  TestHome home(1, 0, [](HomeServerOptions& o) {
    o.tls = test_tls("home");
    o.silence_max_ms = 1000;
  });
  ChaosProxy proxy({.target = home.server->port(), .seed = 7, .corrupt = true});
  TestAgent agent("127.0.0.1:" + std::to_string(proxy.port()), "n1", 11,
                  [](AgentSessionOptions& o) {
                    agent_with(test_tls("n1"))(o);
                    o.silence_max_ms = 1000;
                  });
  constexpr uint64_t kCount = 200;
  for (uint64_t i = 1; i <= kCount; ++i)
    ASSERT_TRUE(agent.session->send(1, numbered_to_home(i, i % 3 == 0 ? 9000 : 0)));
  ASSERT_TRUE(eventually([&] { return agent.session->stats()[1].connections >= 5; }));
  proxy.calm();
  ASSERT_TRUE(home.journal.until([&] { return home.seen.count == kCount; }));
  EXPECT_THAT(home.journal.look([&] { return home.seen.events; }), ElementsAre("session 1 n1"));
  EXPECT_EQ(wrong_order(home.seen.messages[std::pair(SessionId{1}, 1u)], kCount), "");
}

TEST(TlsSessionTest, ManyWhoStopInTheHandshakeKeepNobodyOut) {
  TestHome home(1, 0, home_with(test_tls("home")));
  std::vector<Fd> strangers;
  auto address = resolve({"127.0.0.1", home.server->port()}, false, false);
  for (size_t i = 0; i < 400; ++i) {
    auto socket = begin_connect(address->at(0));
    ASSERT_TRUE(socket);
    if (i % 2 == 0) (void)::send(socket->get(), "\x16\x03\x01\x02", 4, MSG_NOSIGNAL);
    strangers.push_back(std::move(*socket));
  }
  TestAgent agent(home.address(), "n1", 11, agent_with(test_tls("n1")));
  EXPECT_EQ(first_event(agent), "connected fresh");
}

}  // namespace
}  // namespace vremote::net
