#include "wire/handshake.h"

#include <gtest/gtest.h>

#include "base/prng.h"
#include "wire/wire_samples.h"

namespace vremote::wire {
namespace {

Hello hello() {
  return {.version = 1,
          .features = 6,
          .cluster = "lab",
          .node_name = "n1",
          .incarnation = ~uint64_t{0},
          .session_epoch = 7,
          .resume = true,
          .lane = 1,
          .lanes = 2,
          .received = kSequenceMax,
          .home_name = "home"};
}
Welcome welcome() {
  return {
      .version = 1,
      .features = 2,
      .node_name = "home",
      .incarnation = 3,
      .session = 4,
      .resumed = true,
      .received = 5,
      .lease_term_ms = 10000,
      .exports =
          {{.name = "data",
            .export_index = 0,
            .root = {0, 1, 2},
            .read_only = false,
            .path = "/srv/data"},
           {.name = "big", .export_index = 1, .root = {1, 3, 4}, .read_only = true, .path = {}}},
      .may_reclaim = true,
      .disk_life = 78,
      .newer_key = true};
}

TEST(HandshakeTest, EveryFrameComesBackAsItWas) {
  auto h = encode(hello());
  ASSERT_TRUE(h);
  auto hello_back = decode_hello(as_received(*h).header);
  ASSERT_TRUE(hello_back);
  EXPECT_EQ(*hello_back, hello());

  auto w = encode(welcome());
  ASSERT_TRUE(w);
  auto welcome_back = decode_welcome(as_received(*w).header);
  ASSERT_TRUE(welcome_back);
  EXPECT_EQ(*welcome_back, welcome());

  Refuse refuse{.reason = RefuseReason::Cluster, .text = "this is cluster lab"};
  auto r = encode(refuse);
  ASSERT_TRUE(r);
  auto refuse_back = decode_refuse(as_received(*r).header);
  ASSERT_TRUE(refuse_back);
  EXPECT_EQ(*refuse_back, refuse);
}

TEST(HandshakeTest, TheLargestHelloFitsWhatAStrangerMayMakeUsKeep) {
  Hello h = hello();
  h.cluster = std::string(255, 'c');
  h.node_name = std::string(255, 'n');
  h.home_name = std::string(255, 'h');
  auto encoded = encode(h);
  ASSERT_TRUE(encoded);
  EXPECT_LE(encoded->header.size() - kPreambleSize, kHelloMax);
}

TEST(HandshakeTest, TheLargestWelcomeFits) {
  Welcome w = welcome();
  w.exports.assign(kExportsMax, {.name = std::string(255, 'e'),
                                 .export_index = 1,
                                 .root = {},
                                 .read_only = false,
                                 .path = "/srv/data"});
  EXPECT_TRUE(encode(w));
  w.exports.push_back(w.exports[0]);
  EXPECT_FALSE(encode(w));
}

TEST(HandshakeTest, ImpossibleLanesAndNamesAreRefused) {
  auto refused = [](auto change) {
    Hello h = hello();
    change(h);
    return !encode(h);
  };
  EXPECT_FALSE(refused([](Hello&) {}));
  EXPECT_TRUE(refused([](Hello& h) { h.lane = 2; }));
  EXPECT_TRUE(refused([](Hello& h) { h.lanes = 0; }));
  EXPECT_TRUE(refused([](Hello& h) { h.lanes = kLanesMax + 1; }));
  EXPECT_TRUE(refused([](Hello& h) { h.cluster = ""; }));
  EXPECT_TRUE(refused([](Hello& h) { h.node_name = "a\nb"; }));
  EXPECT_TRUE(refused([](Hello& h) { h.node_name = std::string(256, 'x'); }));
  EXPECT_TRUE(refused([](Hello& h) { h.home_name = "a/b"; }));
  EXPECT_FALSE(refused([](Hello& h) { h.home_name = ""; })) << "whoever answers";
}

TEST(HandshakeTest, DamageIsHarmlessAndWhatIsTakenIsWithinTheBounds) {
  Frame h = as_received(*encode(hello()));
  Frame w = as_received(*encode(welcome()));
  int refused = 0;
  for (uint64_t seed = 1; seed <= 20000; ++seed) {
    Prng random(seed);
    auto damage = [&](std::vector<std::byte> bytes) {
      for (uint64_t n = random.between(1, 4); n > 0; --n)
        bytes[random.below(bytes.size())] = static_cast<std::byte>(random.next());
      return bytes;
    };
    auto hello_back = decode_hello(damage(h.header));
    auto welcome_back = decode_welcome(damage(w.header));
    if (hello_back) {
      ASSERT_TRUE(encode(*hello_back)) << seed;
    }
    if (welcome_back) {
      ASSERT_TRUE(encode(*welcome_back)) << seed;
    }
    refused += !hello_back + !welcome_back;
  }
  EXPECT_GT(refused, 1000);
}

TEST(HandshakeTest, ARefusalCannotWriteControlCharactersIntoALog) {
  auto encoded = encode(Refuse{.reason = RefuseReason::Busy, .text = "a\n\x1b[31mb"});
  ASSERT_TRUE(encoded);
  auto back = decode_refuse(as_received(*encoded).header);
  ASSERT_TRUE(back);
  EXPECT_EQ(back->text, "a??[31mb");
}

}  // namespace
}  // namespace vremote::wire
