// What a home hears from those who do not speak its protocol, or speak it badly; and what a node
// says to one.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <optional>

#include "base/prng.h"
#include "net/address.h"
#include "net/net_world.h"
#include "wire/codec.h"

namespace vremote::net {
namespace {

using testing::HasSubstr;

// A blocking-style client on a raw socket.
class Stranger {
 public:
  explicit Stranger(uint16_t port) {
    auto address = resolve({"127.0.0.1", port}, false, false);
    socket_ = std::move(*begin_connect(address->at(0)));
    wait(POLLOUT);
  }
  // Who has called.
  explicit Stranger(Fd socket) : socket_(std::move(socket)) {}
  void say(std::span<const std::byte> bytes) {
    // A home that has closed already is none of our business.
    (void)::send(socket_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
  }
  void say(const wire::Encoded& frame) {
    say(frame.header);
    for (const Bytes& b : frame.bulk) say(b.view());
  }
  // Everything until the home closes or `size` bytes are there.
  std::vector<std::byte> hear(size_t size = ~size_t{0}) {
    std::vector<std::byte> all;
    while (all.size() < size && wait(POLLIN)) {
      std::byte block[4096];
      ssize_t n =
          ::recv(socket_.get(), block, std::min(sizeof block, size - all.size()), MSG_DONTWAIT);
      if (n <= 0) {
        closed_ = true;
        break;
      }
      all.insert(all.end(), block, block + n);
    }
    return all;
  }
  // The next frame's type and header.
  std::pair<wire::FrameType, std::vector<std::byte>> hear_frame() {
    auto front = hear(wire::kPreambleSize);
    if (front.size() < wire::kPreambleSize) return {wire::FrameType::Ping, {}};
    auto preamble = wire::decode_preamble(
        std::span<const std::byte, wire::kPreambleSize>(front.data(), wire::kPreambleSize));
    EXPECT_TRUE(preamble);
    return {preamble->type, hear(preamble->header_length)};
  }
  bool closed() {
    hear();
    return closed_;
  }

 private:
  bool wait(short events) {
    pollfd p{.fd = socket_.get(), .events = events, .revents = 0};
    return ::poll(&p, 1, 20000) == 1;
  }
  Fd socket_;
  bool closed_ = false;
};

wire::Hello hello(std::string name = "stranger") {
  wire::Hello h;
  h.cluster = "lab";
  h.node_name = std::move(name);
  h.incarnation = 5;
  h.session_epoch = 6;
  return h;
}

TEST(StrangerTest, GarbageDoesNoHarm) {
  TestHome home;
  TestAgent agent(home.address());
  for (uint64_t seed = 1; seed <= 100; ++seed) {
    Prng random(seed);
    Stranger stranger(home.server->port());
    std::vector<std::byte> noise(random.between(16, 20000));
    for (std::byte& b : noise) b = static_cast<std::byte>(random.next());
    if (random.chance(50)) {  // a good preamble, then noise
      wire::encode_preamble(
          {.header_length = static_cast<uint32_t>(noise.size()),
           .bulk_length = 0,
           .type = wire::FrameType::Hello},
          std::span<std::byte, wire::kPreambleSize>(noise.data(), wire::kPreambleSize));
    }
    stranger.say(noise);
    // Short Hellos may leave the home waiting for the rest; the others are shown the door.
    if (noise.size() > wire::kHelloMax + wire::kPreambleSize) {
      EXPECT_TRUE(stranger.closed()) << seed;
    }
  }
  ASSERT_TRUE(agent.session->send(0, numbered_to_home(1)));
  ASSERT_TRUE(home.journal.until([&] { return home.seen.count == 1; }));
  EXPECT_EQ(home.server->sessions().size(), 1u);
}

TEST(StrangerTest, WhoSaysNothingIsShownTheDoor) {
  TestHome home(1, 0, [](HomeServerOptions& o) { o.handshake_timeout_ms = 30; });
  Stranger stranger(home.server->port());
  EXPECT_TRUE(stranger.closed());
}

TEST(StrangerTest, AnotherProtocolVersionIsRefusedWithOurs) {
  TestHome home;
  Stranger stranger(home.server->port());
  wire::Hello h = hello();
  h.version = 99;
  stranger.say(*wire::encode(h));
  auto [type, header] = stranger.hear_frame();
  ASSERT_EQ(type, wire::FrameType::Refuse);
  auto refuse = wire::decode_refuse(header);
  ASSERT_TRUE(refuse);
  EXPECT_EQ(refuse->reason, wire::RefuseReason::Version);
  EXPECT_THAT(refuse->text, HasSubstr("version 1"));
  EXPECT_TRUE(stranger.closed());
}

TEST(StrangerTest, AResumedSessionThatNobodyKnowsIsRefusedAndEndsNoOther) {
  TestHome home;
  TestAgent agent(home.address());
  ASSERT_TRUE(agent.session->send(0, numbered_to_home(1)));
  ASSERT_TRUE(home.journal.until([&] { return home.seen.count == 1; }));
  Stranger stranger(home.server->port());
  wire::Hello h = hello("n1");
  h.resume = true;
  stranger.say(*wire::encode(h));
  auto [type, header] = stranger.hear_frame();
  ASSERT_EQ(type, wire::FrameType::Refuse);
  EXPECT_EQ(wire::decode_refuse(header)->reason, wire::RefuseReason::SessionUnknown);
  EXPECT_EQ(home.journal.look([&] { return home.seen.events.size(); }), 1u);
}

// Says hello and then `frames`; true when the home closes the connection.
bool shown_the_door(TestHome& home, bool resume, uint64_t received,
                    const std::vector<std::vector<std::byte>>& frames) {
  Stranger stranger(home.server->port());
  wire::Hello h = hello();
  h.resume = resume;
  h.received = received;
  stranger.say(*wire::encode(h));
  if (stranger.hear_frame().first != wire::FrameType::Welcome) return true;
  for (const auto& f : frames) stranger.say(f);
  return stranger.closed();
}
std::vector<std::byte> bare(wire::FrameType type, uint64_t sequence) {
  auto frame = wire::bare_frame(type, sequence);
  return {frame.begin(), frame.end()};
}
std::vector<std::byte> message(uint64_t sequence) {
  auto encoded = *wire::encode(numbered_to_home(sequence));
  encoded.set_sequence(sequence);
  return encoded.header;
}

TEST(StrangerTest, EveryBrokenRuleClosesTheConnection) {
  struct Case {
    const char* what;
    std::vector<std::vector<std::byte>> frames;
  };
  auto wrong_direction = wire::encode(numbered_to_agent(1))->header;
  wrong_direction[10] = std::byte{1};
  auto damaged = message(1);
  damaged[wire::kPreambleSize] = std::byte{0xff};
  for (const Case& c :
       {Case{"an ack of what was never sent", {bare(wire::FrameType::Ack, 1)}},
        Case{"an answer to no ping", {bare(wire::FrameType::Pong, 0)}}, Case{"a gap", {message(2)}},
        Case{"a message twice", {message(1), message(1)}},
        Case{"a message for agents", {wrong_direction}},
        Case{"a second hello", {wire::encode(hello())->header}},
        Case{"a damaged header", {damaged}}}) {
    TestHome home;
    EXPECT_TRUE(shown_the_door(home, false, 0, c.frames)) << c.what;
    EXPECT_LE(home.journal.look([&] { return home.seen.count; }), 1u) << c.what;
    EXPECT_EQ(home.server->sessions().size(), 1u)
        << c.what << ": once is not enough to end a session";
  }
}

TEST(StrangerTest, ASessionWhoseNodeBreaksTheSameRuleAgainAndAgainEnds) {
  TestHome home;
  auto damaged = message(1);
  damaged[wire::kPreambleSize] = std::byte{0xff};
  EXPECT_TRUE(shown_the_door(home, false, 0, {damaged}));
  EXPECT_TRUE(shown_the_door(home, true, 0, {damaged}));
  EXPECT_EQ(home.server->sessions().size(), 1u);
  EXPECT_TRUE(shown_the_door(home, true, 0, {damaged}));
  ASSERT_TRUE(home.journal.until([&] { return home.seen.events.size() == 2; }));
  EXPECT_EQ(home.seen.events[1], "reset 1");
}

TEST(StrangerTest, ANodeThatClaimsToHaveReceivedTheFutureLosesItsSession) {
  TestHome home;
  EXPECT_TRUE(shown_the_door(home, false, 5, {}));
  ASSERT_TRUE(home.journal.until([&] { return home.seen.events.size() == 2; }));
  EXPECT_EQ(home.seen.events[1], "reset 1");
}

// A Welcome of a home that is no more may be heard late. Had another lane meanwhile begun a session
// of the same epoch with the next home, that had noted a session which the node has not heard of as
// the one that it has.
TEST(StrangerTest, ANodeBeginsASessionOverOneLaneAndTheOthersJoinIt) {
  Fd home(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{
      .sin_family = AF_INET, .sin_port = 0, .sin_addr = {htonl(INADDR_LOOPBACK)}, .sin_zero = {}};
  socklen_t length = sizeof address;
  ASSERT_EQ(::bind(home.get(), reinterpret_cast<sockaddr*>(&address), length), 0);
  ASSERT_EQ(::listen(home.get(), 16), 0);
  ASSERT_EQ(::getsockname(home.get(), reinterpret_cast<sockaddr*>(&address), &length), 0);
  TestAgent agent("127.0.0.1:" + std::to_string(ntohs(address.sin_port)), "n1", 11,
                  [](AgentSessionOptions& options) {
                    options.tls = nullptr;
                    options.home_name.clear();
                  });
  const auto guest = [&](int patience_ms) -> std::optional<std::pair<Stranger, wire::Hello>> {
    pollfd p{.fd = home.get(), .events = POLLIN, .revents = 0};
    if (::poll(&p, 1, patience_ms) != 1) return std::nullopt;
    Stranger caller(Fd(::accept4(home.get(), nullptr, nullptr, SOCK_CLOEXEC)));
    auto [type, header] = caller.hear_frame();
    EXPECT_EQ(type, wire::FrameType::Hello);
    auto said = wire::decode_hello(header);
    EXPECT_TRUE(said);
    return std::pair(std::move(caller), *said);
  };
  auto first = guest(20000);
  ASSERT_TRUE(first);
  EXPECT_EQ(first->second.lane, 0u);
  EXPECT_FALSE(first->second.resume);
  ASSERT_FALSE(guest(100)) << "before the first has been welcomed";
  wire::Welcome welcome{.node_name = "home", .incarnation = 5, .session = 1, .exports = {}};
  first->first.say(*wire::encode(welcome));
  for (int i = 1; i < 3; ++i) {
    auto other = guest(20000);
    ASSERT_TRUE(other);
    EXPECT_NE(other->second.lane, 0u);
    EXPECT_TRUE(other->second.resume);
    EXPECT_EQ(other->second.session_epoch, first->second.session_epoch);
  }
}

}  // namespace
}  // namespace vremote::net
