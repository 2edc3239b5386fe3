#include "net/key_ring.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <filesystem>

namespace vremote::net {
namespace {

using testing::HasSubstr;

KeyRing made(const char* cluster = "lab") { return KeyRing(*ClusterKey::generate(cluster)); }

TEST(KeyRingTest, ATextReadBackIsTheSameRing) {
  const KeyRing one = made();
  const KeyRing two = *one.renewed();
  for (const KeyRing& ring : {one, two, two.for_guest("n7")}) {
    auto again = KeyRing::parse("\n  " + ring.text() + "\n");
    ASSERT_TRUE(again) << again.error().what;
    EXPECT_EQ(again->text(), ring.text());
  }
  EXPECT_EQ(two.keys().size(), 2u);
  EXPECT_EQ(two.keys()[1].line(), one.newest().line());
  EXPECT_EQ(KeyRing::parse(one.text() + one.text())->keys().size(), 1u);
}

TEST(KeyRingTest, WhatIsNoRingIsRefused) {
  const KeyRing one = made();
  EXPECT_FALSE(KeyRing::parse(""));
  EXPECT_FALSE(KeyRing::parse(one.text() + "and more"));
  EXPECT_FALSE(KeyRing::parse(one.renewed()->text() + made().text()));  // three
  EXPECT_FALSE(KeyRing::parse(one.text() + made("shop").text()));
  EXPECT_FALSE(KeyRing::parse(one.text() + one.for_guest("n7").text()));
  EXPECT_FALSE(KeyRing::parse(one.for_guest("n8").text() + one.for_guest("n7").text()));
}

TEST(KeyRingTest, AThirdKeyWaitsUntilTheOldestIsGone) {
  const KeyRing two = *made().renewed();
  auto third = two.renewed();
  ASSERT_FALSE(third);
  EXPECT_THAT(third.error().what, HasSubstr("retire"));
  EXPECT_EQ(two.without_older().text(), two.newest().line());
  EXPECT_TRUE(two.without_older().renewed());
}

TEST(KeyRingTest, WhatWasMadeOfEitherKeyIsRecognizedByIt) {
  const KeyRing old = made();
  const KeyRing both = *old.renewed();
  const Dialled ends{"a", "b"}, by_guest{"g", "b"}, to_guest{"a", "g"};
  for (const ClusterKey& key : both.keys()) {
    const auto shown = key.dial(ends);
    const auto known = both.recognize(shown.identity, "b");
    ASSERT_TRUE(known);
    EXPECT_EQ(known->key->line(), key.line());
    EXPECT_EQ(known->by.secret, shown.secret);
    const auto shown_by_guest = key.for_guest("g").dial(by_guest);
    const auto known_guest = both.recognize(shown_by_guest.identity, "b");
    ASSERT_TRUE(known_guest);
    EXPECT_EQ(known_guest->by.secret, shown_by_guest.secret);
    const auto shown_to_guest = key.dial(to_guest);
    const auto known_to_guest = both.for_guest("g").recognize(shown_to_guest.identity, "g");
    ASSERT_TRUE(known_to_guest);
    EXPECT_EQ(known_to_guest->by.secret, shown_to_guest.secret);
  }
  EXPECT_FALSE(old.recognize(both.newest().dial(ends).identity, "b"));
  EXPECT_FALSE(both.without_older().recognize(old.newest().dial(ends).identity, "b"));
}

TEST(KeyRingTest, AStepOfAChangeSharesAKeyWithTheOneBefore) {
  const KeyRing old = made();
  const KeyRing both = *old.renewed();
  EXPECT_TRUE(old.shares_a_key_with(both));
  EXPECT_TRUE(both.shares_a_key_with(both.without_older()));
  EXPECT_FALSE(old.shares_a_key_with(both.without_older()));
  EXPECT_FALSE(old.shares_a_key_with(both.for_guest("g")));
}

TEST(KeyRingTest, AFileIsReplacedWholeAndStaysItsOwners) {
  char name[] = "/tmp/vremote-ring-XXXXXX";
  const std::string dir = ::mkdtemp(name), path = dir + "/cluster.key";
  const KeyRing old = made();
  const KeyRing both = *old.renewed();
  EXPECT_FALSE(replace_key_file(path, both));  // there is nothing to replace
  ASSERT_TRUE(write_key_file(path, old));
  ASSERT_TRUE(replace_key_file(path, both));
  EXPECT_EQ(read_key_file(path)->text(), both.text());
  struct stat info {};
  ASSERT_EQ(::stat(path.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0600u);
  std::error_code ignored;
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir, ignored), {}), 1);
  std::filesystem::remove_all(dir, ignored);
}

}  // namespace
}  // namespace vremote::net
