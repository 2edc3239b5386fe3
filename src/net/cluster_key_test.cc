#include "net/cluster_key.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>

#include "net/key_ring.h"

namespace vremote::net {
namespace {

using testing::HasSubstr;

const Dialled kAB{"a", "b"};

TEST(ClusterKeyTest, ALineReadBackIsTheSameKey) {
  const ClusterKey key = *ClusterKey::generate("lab");
  auto again = ClusterKey::parse("  " + key.line() + "\n");
  ASSERT_TRUE(again) << again.error().what;
  EXPECT_EQ(again->line(), key.line());
  EXPECT_EQ(again->check(), key.check());
  const ClusterKey guest = key.for_guest("n7");
  auto guest_again = ClusterKey::parse(guest.line());
  ASSERT_TRUE(guest_again);
  EXPECT_EQ(guest_again->guest(), "n7");
  EXPECT_EQ(guest_again->line(), guest.line());
  EXPECT_NE(ClusterKey::generate("lab")->line(), key.line());
}

TEST(ClusterKeyTest, EveryChangedLetterIsNoticed) {
  for (const std::string& good :
       {ClusterKey::generate("lab")->line(), ClusterKey::generate("lab")->for_guest("n7").line()}) {
    for (size_t i = 0; i + 1 < good.size(); ++i) {
      std::string bad = good;
      bad[i] = bad[i] == 'x' ? 'y' : 'x';
      EXPECT_FALSE(ClusterKey::parse(bad)) << bad;
      EXPECT_FALSE(ClusterKey::parse(good.substr(0, i))) << i;
    }
  }
  EXPECT_FALSE(ClusterKey::parse(""));
  EXPECT_FALSE(ClusterKey::parse(std::string(5000, 'a')));
}

TEST(ClusterKeyTest, AnErrorShowsNothingOfTheKey) {
  const ClusterKey key = *ClusterKey::generate("lab");
  std::string bad = key.line();
  bad[bad.size() - 2] = 'x';
  auto parsed = ClusterKey::parse(bad);
  ASSERT_FALSE(parsed);
  const std::string secret = bad.substr(bad.find("lab ") + 4);
  for (size_t i = 0; i + 4 < secret.size(); ++i)
    EXPECT_EQ(parsed.error().what.find(secret.substr(i, 4)), std::string::npos);
}

TEST(ClusterKeyTest, MembersMakeTheSameSecretAtBothEnds) {
  const ClusterKey key = *ClusterKey::generate("lab");
  const auto shown = key.dial(kAB);
  auto known = key.recognize(shown.identity, "b");
  ASSERT_TRUE(known);
  EXPECT_EQ(known->ends, kAB);
  EXPECT_EQ(known->secret, shown.secret);
  EXPECT_NE(key.dial({"b", "a"}).secret, shown.secret);
  EXPECT_NE(key.dial({"c", "b"}).secret, shown.secret);
}

TEST(ClusterKeyTest, AGuestAndAMemberMeetEitherWay) {
  const ClusterKey key = *ClusterKey::generate("lab");
  const ClusterKey guest = key.for_guest("g");
  const auto out = guest.dial({"g", "b"});
  auto seen = key.recognize(out.identity, "b");
  ASSERT_TRUE(seen);
  EXPECT_EQ(seen->ends, (Dialled{"g", "b"}));
  EXPECT_EQ(seen->secret, out.secret);
  const auto in = key.dial({"a", "g"});
  auto seen_by_guest = guest.recognize(in.identity, "g");
  ASSERT_TRUE(seen_by_guest);
  EXPECT_EQ(seen_by_guest->secret, in.secret);
}

TEST(ClusterKeyTest, AGuestCanPoseAsNobodyElse) {
  const ClusterKey key = *ClusterKey::generate("lab");
  const ClusterKey guest = key.for_guest("g");
  // Whatever it shows for another name is not of that name's key.
  EXPECT_FALSE(key.recognize(guest.dial({"a", "b"}).identity, "b"));
  // Nor as the home b to which a dials: it cannot know that secret.
  EXPECT_FALSE(guest.recognize(key.dial(kAB).identity, "b"));
  EXPECT_FALSE(guest.recognize(key.dial(kAB).identity, "g"));
  // What a guest can make in another's name is a dial to itself, and that name is in it.
  EXPECT_EQ(key.recognize(key.dial({"a", "g"}).identity, "b")->ends.to, "g");
  // Two guests have nothing in common.
  EXPECT_FALSE(key.for_guest("h").recognize(guest.dial({"g", "h"}).identity, "h"));
}

TEST(ClusterKeyTest, OtherClustersAndNonsenseAreUnknown) {
  const ClusterKey key = *ClusterKey::generate("lab");
  const ClusterKey other = *ClusterKey::generate("other");
  EXPECT_FALSE(key.recognize(other.dial(kAB).identity, "b"));
  for (const char* nonsense :
       {"", "vremote", "vremote 2 member lab a", "vremote 1 member lab a b",
        "vremote 2 owner lab a b 0123456789abcdef", "vremote 2 member lab a ../b 0123456789abcdef",
        "vremote 2 member lab a b 0123456789abcdef"})
    EXPECT_FALSE(key.recognize(nonsense, "b")) << nonsense;
  EXPECT_FALSE(key.recognize(std::string(70000, 'v'), "b"));
}

class KeyFileTest : public testing::Test {
 protected:
  KeyFileTest() {
    char name[] = "/tmp/vremote-key-XXXXXX";
    dir_ = ::mkdtemp(name);
    path_ = dir_ + "/cluster.key";
  }
  ~KeyFileTest() override {
    (void)::unlink(path_.c_str());
    (void)::rmdir(dir_.c_str());
  }
  std::string refusal() {
    auto key = read_key_file(path_);
    return key ? "accepted" : key.error().what;
  }
  std::string dir_, path_;
};

TEST_F(KeyFileTest, IsForItsOwnerAlone) {
  const ClusterKey key = *ClusterKey::generate("lab");
  ASSERT_TRUE(write_key_file(path_, key));
  struct stat info {};
  ASSERT_EQ(::stat(path_.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0600u);
  EXPECT_EQ(read_key_file(path_)->text(), key.line());
  for (mode_t mode : {0640, 0604, 0620, 0602, 0610}) {
    ASSERT_EQ(::chmod(path_.c_str(), mode), 0);
    EXPECT_THAT(refusal(), HasSubstr("chmod 600 " + path_));
  }
  if (::geteuid() == 0) {
    ASSERT_EQ(::chmod(path_.c_str(), 0600), 0);
    ASSERT_EQ(::chown(path_.c_str(), 12345, 0), 0);
    EXPECT_THAT(refusal(), HasSubstr("belongs to user 12345"));
  }
}

TEST_F(KeyFileTest, AKeyIsNeverReplaced) {
  const ClusterKey key = *ClusterKey::generate("lab");
  ASSERT_TRUE(write_key_file(path_, key));
  auto again = write_key_file(path_, *ClusterKey::generate("lab"));
  ASSERT_FALSE(again);
  EXPECT_EQ(again.error().code, EEXIST);
  EXPECT_EQ(read_key_file(path_)->text(), key.line());
}

TEST_F(KeyFileTest, WhatIsNoKeyIsRefusedInOneLine) {
  EXPECT_THAT(refusal(), HasSubstr("does not exist"));
  for (const std::string& text : {std::string(), std::string("hello\n"), std::string(9000, 'x'),
                                  ClusterKey::generate("lab")->line() + "and more"}) {
    std::ofstream(path_, std::ios::binary) << text;
    ASSERT_EQ(::chmod(path_.c_str(), 0600), 0);
    EXPECT_THAT(refusal(), HasSubstr(path_));
    EXPECT_EQ(refusal().find('\n'), std::string::npos);
  }
  (void)::unlink(path_.c_str());
  ASSERT_EQ(::mkfifo(path_.c_str(), 0600), 0);
  EXPECT_THAT(refusal(), HasSubstr("not a regular file"));
}

}  // namespace
}  // namespace vremote::net
