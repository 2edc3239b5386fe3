#include "coherence/grace.h"

#include <gtest/gtest.h>

namespace vremote::coherence {
namespace {

const Instant kNow{1000}, kEnd{2000};

TEST(GraceTest, WithNobodyToWaitForItIsOver) {
  EXPECT_TRUE(Grace().over(kNow));
  EXPECT_TRUE(Grace({}, kEnd).over(kNow));
}

TEST(GraceTest, ItEndsWhenEveryNodeIsDone) {
  Grace grace({{"a", 1}, {"b", 2}}, kEnd);
  EXPECT_FALSE(grace.over(kNow));
  grace.settled("a");
  grace.settled("stranger");
  EXPECT_FALSE(grace.over(kNow));
  grace.settled("b");
  EXPECT_TRUE(grace.over(kNow));
}

TEST(GraceTest, ItEndsWithItsTime) {
  const Grace grace({{"a", 1}}, kEnd);
  EXPECT_FALSE(grace.over({1999}));
  EXPECT_TRUE(grace.over(kEnd));
  EXPECT_FALSE(grace.may_reclaim({"a", 1}, kEnd));
}

TEST(GraceTest, OnlyWhoHadASessionMayReclaim) {
  Grace grace({{"a", 1}, {"b", 2}}, kEnd);
  EXPECT_TRUE(grace.may_reclaim({"a", 1}, kNow));
  EXPECT_FALSE(grace.may_reclaim({"a", 7}, kNow)) << "it was started anew";
  EXPECT_FALSE(grace.may_reclaim({"c", 1}, kNow));
  grace.settled("a");
  EXPECT_FALSE(grace.may_reclaim({"a", 1}, kNow)) << "once";
}

}  // namespace
}  // namespace vremote::coherence
