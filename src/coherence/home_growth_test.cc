// Scenarios of files that grow while others may have them mapped (K16).
#include "coherence/home.h"
#include "coherence/home_test_world.h"

namespace vremote::coherence {
namespace {

using test::HomeWorld;
using enum LeaseMode;

// n1 has the file open for reading, n2 its Attributes Exclusive.
void n1_watches_and_n2_writes(HomeWorld& w) {
  w.has_attributes("n1", Shared);
  w.asks_attributes("n2", Exclusive).expect("recall n1 attributes");
  w.acks("n1", {.watches = true}).expect("pin", "grant n2 Exclusive attributes watched");
}

TEST(HomeGrowthTest, WhatIsAnnouncedIsShownToAllOthersThatRead) {
  HomeWorld w;
  w.has_attributes("n1", Shared).has_attributes("n3", Shared).has_attributes("n4", Shared);
  w.asks_attributes("n2", Exclusive)
      .expect("recall n1 attributes", "recall n3 attributes", "recall n4 attributes");
  w.acks("n1", {.watches = true}).expect("pin");
  w.acks("n3", {.watches = true}).expect_nothing();
  w.acks("n4", {.in_use = true}).expect("grant n2 Exclusive attributes watched");
  w.announces("n2", 10'000).expect("show n1 size 10000", "show n3 size 10000");
  w.has_shown("n3").expect_nothing();
  w.has_shown("n1").expect("announced n2 watched");
}

TEST(HomeGrowthTest, WhoReadsAloneIsNotToldOfItself) {
  HomeWorld w;
  n1_watches_and_n2_writes(w);
  w.asks_attributes("n1", Exclusive).expect("recall n2 attributes");
  w.acks("n2").expect("grant n1 Exclusive attributes");
  w.announces("n1", 10'000).expect("announced n1");
}

TEST(HomeGrowthTest, WhoClosesOrGoesNeedNotBeTold) {
  HomeWorld w;
  n1_watches_and_n2_writes(w);
  w.announces("n2", 10'000).expect("show n1 size 10000");
  w.goes("n1").expect("announced n2", "unpin");
  w.has_shown("n1").expect_nothing();  // late
  HomeWorld v;
  n1_watches_and_n2_writes(v);
  v.releases("n1", false).expect("unpin");
  v.announces("n2", 10'000).expect("announced n2");
}

TEST(HomeGrowthTest, AnOperationIsHeldUntilAllButItsCallerKnow) {
  HomeWorld w;
  w.has_attributes("n1", Shared).has_attributes("n2", Shared);
  w.operation(1, Resource::Attributes, Exclusive, kUnit)
      .expect("recall n1 attributes", "recall n2 attributes");
  w.acks("n1", {.watches = true}).expect("pin");
  w.acks("n2", {.watches = true}).expect("ready 1");
  EXPECT_TRUE(w.operation_announces(1, 10'000, "n2"));
  w.expect("show n1 size 10000");
  w.has_shown("n1").expect("all know 1");
  w.finishes(1).expect_nothing();
}

TEST(HomeGrowthTest, AnOperationOnAFileThatOnlyItsCallerReadsNeedNotWait) {
  HomeWorld w;
  w.has_attributes("n2", Shared);
  w.operation(1, Resource::Attributes, Exclusive, kUnit).expect("recall n2 attributes");
  w.acks("n2", {.watches = true}).expect("pin", "ready 1");
  EXPECT_FALSE(w.operation_announces(1, 10'000, "n2"));
  w.expect_nothing();
}

TEST(HomeGrowthTest, OnlyWhoMayChangeTheSizeAnnouncesIt) {
  HomeWorld w;
  n1_watches_and_n2_writes(w);
  w.announces("n1", 10'000).expect("close n1");
  w.announces("n2", 10'000).expect("show n1 size 10000");
  w.announces("n2", 20'000).expect("close n2");
}

TEST(HomeGrowthTest, WhoHadTheFileOpenBeforeARestartWatchesIt) {
  HomeWorld w;
  HomeActions actions;
  w.home.opened(HomeWorld::node_id("n1"), w.file, actions);
  EXPECT_TRUE(w.home.watched(w.file, HomeWorld::node_id("n2")));
  w.asks_attributes("n2", Exclusive).expect("grant n2 Exclusive attributes watched");
}

TEST(HomeGrowthTest, WhoIsWaitedForIsTold) {
  HomeWorld w;
  n1_watches_and_n2_writes(w);
  w.announces("n2", 10'000).expect("show n1 size 10000");
  ASSERT_EQ(w.home.pending_recalls(10).size(), 1u);
  EXPECT_EQ(w.home.pending_recalls(10)[0].node, HomeWorld::node_id("n1"));
  const auto blocked = w.home.blocked_requests(10);
  ASSERT_EQ(blocked.size(), 1u);
  EXPECT_EQ(blocked[0].node, HomeWorld::node_id("n2"));
  w.has_shown("n1").expect("announced n2 watched");
  EXPECT_TRUE(w.home.pending_recalls(10).empty());
}

// The writer cannot give up the Attributes before its announcement is answered.
TEST(HomeGrowthTest, WhoAnnouncesIsBehindWhoIsShown) {
  HomeWorld w;
  n1_watches_and_n2_writes(w);
  w.announces("n2", 10'000).expect("show n1 size 10000");
  w.asks_attributes("n3", Shared).expect("recall n2 attributes to Shared");
  const auto recalls = w.home.pending_recalls(10);
  ASSERT_EQ(recalls.size(), 2u);
  EXPECT_EQ(recalls[0].node, HomeWorld::node_id("n1"));
  EXPECT_TRUE(recalls[0].behind.empty());
  EXPECT_EQ(recalls[1].node, HomeWorld::node_id("n2"));
  EXPECT_EQ(recalls[1].behind, std::vector{recalls[0].id});
  w.has_shown("n1").expect("announced n2 watched");
  EXPECT_TRUE(w.home.pending_recalls(10).at(0).behind.empty());
}

// As one that appends: it keeps the Attributes until it has the pages.
TEST(HomeGrowthTest, WhoWaitsForPagesIsBehindWhoHasThem) {
  using test::pages;
  HomeWorld w;
  n1_watches_and_n2_writes(w);
  w.has("n1", Exclusive, pages(0, 9));
  w.asks("n2", Exclusive, pages(3, 5)).expect("recall n1 3-5");
  w.asks_attributes("n3", Shared).expect("recall n2 attributes to Shared");
  const auto recalls = w.home.pending_recalls(10);
  ASSERT_EQ(recalls.size(), 2u);
  EXPECT_TRUE(recalls[0].behind.empty());
  EXPECT_EQ(recalls[1].behind, std::vector{recalls[0].id});
  // Two that wait for each other are behind nobody.
  w.asks("n1", Exclusive, pages(20, 21)).expect("grant n1 Exclusive 6-end");
  w.asks("n1", Exclusive, pages(4, 5));
  EXPECT_TRUE(w.home.pending_recalls(10).at(1).behind.empty());
}

}  // namespace
}  // namespace vremote::coherence
