#include "coherence/home.h"

#include <chrono>

#include "coherence/home_test_world.h"

namespace vremote::coherence {
namespace {

using test::HomeWorld;
using test::pages;
using test::pages_from;
using enum LeaseMode;

// ---- I1, I2: who must give up, and when the other may begin

TEST(HomeTest, SharedLeasesOfSeveralNodesStandSideBySide) {
  HomeWorld w;
  w.has("n1", Shared, pages(0, 9)).has("n2", Shared, pages(4, 5));
  w.asks("n3", Shared, pages(5, 5)).expect("grant n3 Shared all");
  EXPECT_EQ(w.held("n1", 5), Shared);
  EXPECT_EQ(w.held("n2", 5), Shared);
}

TEST(HomeTest, RecallWaitsForEveryHolderBeforeGranting) {
  HomeWorld w;
  w.has("n1", Shared, pages(0, 9)).has("n2", Shared, pages(4, 5));
  w.asks("n3", Exclusive, pages(5, 5)).expect("recall n1 5-5", "recall n2 5-5");
  w.acks("n1").expect_nothing();
  w.acks("n2").expect("grant n3 Exclusive 5-5");
  EXPECT_EQ(w.held("n1", 4), Shared);
  EXPECT_EQ(w.held("n1", 5), None);
}

TEST(HomeTest, AReaderLeavesTheWriterItsShareOfThePage) {
  HomeWorld w;
  w.has("n1", Exclusive, pages(0, 9));
  w.asks("n2", Shared, pages(3, 4), true).expect("recall n1 3-4 to Shared");
  w.acks("n1").expect("grant n2 Shared 3-4 with data 3-4");
  EXPECT_EQ(w.held("n1", 3), Shared);
  EXPECT_EQ(w.held("n1", 5), Exclusive);
}

TEST(HomeTest, TheMistakeOfGrantingAfterTheFirstAckIsVisible) {
  Mistakes mistakes;
  mistakes.add(Mistake::GrantBeforeAcks);
  HomeWorld w(mistakes);
  w.has("n1", Shared, pages(0, 9)).has("n2", Shared, pages(0, 9));
  w.asks("n3", Exclusive, pages(5, 5)).expect("recall n1 5-5", "recall n2 5-5");
  w.acks("n1").expect("grant n3 Exclusive 5-5");
}

TEST(HomeTest, ARecallUnderWayIsNotSentTwice) {
  HomeWorld w;
  w.has("n1", Exclusive, pages(0, 9));
  w.asks("n2", Exclusive, pages(2, 5)).expect("recall n1 2-5");
  w.asks("n3", Exclusive, pages(3, 3)).expect_nothing();
  w.acks("n1").expect("grant n2 Exclusive 2-5", "recall n2 3-3");
  w.acks("n2").expect("grant n3 Exclusive 3-3");
}

TEST(HomeTest, ADowngradeUnderWayIsNotEnoughForAWriter) {
  HomeWorld w;
  w.has("n1", Exclusive, pages(0, 9));
  w.asks("n2", Shared, pages(3, 3)).expect("recall n1 3-3 to Shared");
  w.operation(1, Resource::Data, Exclusive, pages(3, 3)).expect_nothing();  // behind n2 (I3)
  w.acks("n1").expect("grant n2 Shared 3-3", "recall n1 3-3", "recall n2 3-3");
  w.acks("n2").expect_nothing();
  w.acks("n1").expect("ready 1");
  w.finishes(1);
}

// ---- wide grants

TEST(HomeTest, TheFirstUserGetsTheWholeFileExclusive) {
  HomeWorld w;
  w.asks("n1", Shared, pages(3, 3), true).expect("grant n1 Exclusive all with data 3-3");
  w.asks_attributes("n1", Shared).expect("grant n1 Shared attributes");
}

TEST(HomeTest, AGrantEndsWhereAnotherNodeHoldsWaitsOrIsRecalled) {
  HomeWorld w;
  w.has("n1", Exclusive, pages(0, 9));
  w.has("n2", Shared, pages(100, 109));
  w.asks("n3", Exclusive, pages(50, 50)).expect("grant n3 Exclusive 10-99");

  HomeWorld waiting;
  waiting.has("n1", Exclusive, pages(0, 9));
  waiting.asks("n2", Exclusive, pages(5, 20)).expect("recall n1 5-9");
  waiting.asks("n3", Exclusive, pages(50, 50)).expect("grant n3 Exclusive 21-end");
  waiting.acks("n1").expect("grant n2 Exclusive 5-20");
}

TEST(HomeTest, ASharedGrantReachesOverWhatOthersShare) {
  HomeWorld w;
  w.has("n1", Shared, pages(0, 9)).has("n2", Exclusive, pages(20, 29));
  w.asks("n3", Shared, pages(5, 5)).expect("grant n3 Shared 0-19");
}

TEST(HomeTest, AloneInItsRangeIsExclusiveEvenBesideOtherHolders) {
  HomeWorld w;
  w.has("n1", Exclusive, pages(0, 9));
  w.asks("n2", Shared, pages(10, 10)).expect("grant n2 Exclusive 10-end");
}

TEST(HomeTest, EntriesAreOnlyEverShared) {
  HomeWorld w;
  w.asks_entries("n1").expect("grant n1 Shared entries");
}

// ---- I3: order of arrival

TEST(HomeTest, AReaderDoesNotOvertakeAWaitingWriter) {
  HomeWorld w;
  w.has("n1", Shared, pages(0, 9)).has("n2", Shared, pages(0, 9));
  w.asks("n3", Exclusive, pages(5, 5)).expect("recall n1 5-5", "recall n2 5-5");
  w.asks("n4", Shared, pages(5, 5))
      .expect_nothing();  // compatible with the holders, but n3 came first
  w.acks("n1").expect_nothing();
  w.acks("n2").expect("grant n3 Exclusive 5-5", "recall n3 5-5 to Shared");
  w.acks("n3").expect("grant n4 Shared all");
}

TEST(HomeTest, DisjointRequestsDoNotWaitForEachOther) {
  HomeWorld w;
  w.has("n1", Exclusive, pages(0, 9));
  w.asks("n2", Exclusive, pages(5, 5)).expect("recall n1 5-5");
  w.asks("n3", Exclusive, pages(20, 20)).expect("grant n3 Exclusive 10-end");
  w.acks("n1").expect("grant n2 Exclusive 5-5");
}

TEST(HomeTest, WritersTakeTurnsInOrderOfArrival) {
  HomeWorld w;
  w.has("n1", Exclusive, pages(5, 5));
  w.asks("n2", Exclusive, pages(5, 5)).expect("recall n1 5-5");
  w.asks("n3", Exclusive, pages(5, 5)).expect_nothing();
  w.asks("n1", Exclusive, pages(5, 5)).expect_nothing();
  w.acks("n1").expect("grant n2 Exclusive all",
                      "recall n2 5-5");  // wide: the others wait for page 5 only
  w.acks("n2").expect("grant n3 Exclusive 5-5", "recall n3 5-5");
  w.acks("n3").expect("grant n1 Exclusive 5-5");
}

// ---- the same node, stronger

TEST(HomeTest, AnUpgradeRecallsTheOthersOnly) {
  HomeWorld w;
  w.has("n1", Shared, pages(0, 9)).has("n2", Shared, pages(0, 9));
  w.asks("n1", Exclusive, pages(5, 5)).expect("recall n2 5-5");
  w.acks("n2").expect("grant n1 Exclusive 5-5");
  EXPECT_EQ(w.held("n1", 4), Shared);
}

TEST(HomeTest, TwoUpgradersDoNotWaitForEachOther) {
  HomeWorld w;
  w.has("n1", Shared, pages(5, 5)).has("n2", Shared, pages(5, 5));
  w.asks("n1", Exclusive, pages(5, 5)).expect("recall n2 5-5");
  w.asks("n2", Exclusive, pages(5, 5)).expect_nothing();
  w.acks("n2").expect("grant n1 Exclusive all", "recall n1 5-5");
  w.acks("n1").expect("grant n2 Exclusive 5-5");
}

// Found by the simulator: the ack of the older recall took the new grant with it.
TEST(HomeTest, NoGrantToANodeWhileItsOlderLeaseIsRecalled) {
  HomeWorld w;
  w.has_attributes("n2", Shared);
  w.asks_attributes("n1", Update).expect("recall n2 attributes");
  w.asks_attributes("n2", Update)
      .expect_nothing();  // compatible with n1's request, and nobody else is in its way
  w.acks("n2").expect("grant n1 Update attributes", "grant n2 Update attributes");
  EXPECT_EQ(w.held("n1", 0, Resource::Attributes), Update);
  EXPECT_EQ(w.held("n2", 0, Resource::Attributes), Update);
}

// ---- Update

TEST(HomeTest, SeveralNodesUpdateTheTimeOfAFileAtOnce) {
  HomeWorld w;
  w.has_attributes("n1", Update);
  w.asks_attributes("n2", Update).expect("grant n2 Update attributes");
  w.asks_attributes("n3", Shared).expect("recall n1 attributes", "recall n2 attributes");
  w.acks("n1", {.attributes = {.has_mtime = true, .mtime = {5, 0}}}).expect("apply size 0");
  w.acks("n2").expect("grant n3 Shared attributes");
}

TEST(HomeTest, SharedAndUpdateOfOneNodeAreExclusiveTogether) {
  HomeWorld w;
  w.has_attributes("n1", Shared);
  w.operation(1, Resource::Attributes, None, test::pages(0, 0))
      .expect("ready 1");  // keeps the grant from becoming Exclusive of itself
  w.asks_attributes("n1", Update).expect("grant n1 Update attributes");
  EXPECT_EQ(w.held("n1", 0, Resource::Attributes), Exclusive);
  w.finishes(1);
  w.asks_attributes("n2", Update).expect("recall n1 attributes");
  w.acks("n1").expect("grant n2 Exclusive attributes");
}

// ---- I4: order of what leaves

TEST(HomeTest, ADirtySizeIsAppliedBeforeTheGrantThatShowsIt) {
  HomeWorld w;
  w.has_attributes("n1", Exclusive);
  w.asks_attributes("n2", Shared).expect("recall n1 attributes to Shared");
  w.acks("n1", {.attributes = {.has_size = true, .size = 8192}})
      .expect("apply size 8192", "grant n2 Shared attributes");
}

TEST(HomeTest, FlushesAndFetchesKeepTheirPlaceAmongGrantsAndRecalls) {
  HomeWorld w;
  w.has("n1", Exclusive, pages(0, 9));
  w.asks("n2", Exclusive, pages(0, 0)).expect("recall n1 0-0");
  w.receives("n1", Flush{.file = w.file, .flush = 8, .extents = {}, .attributes = {}})
      .expect("apply flush 8 of n1");
  w.acks("n1").expect("grant n2 Exclusive 0-0");
  w.receives("n2", Fetch{.file = w.file, .fetch = 1, .range = pages(0, 0)})
      .expect("serve fetch 0-0 of n2");
}

// ---- I5: what crosses a grant on its way

TEST(HomeTest, AWiderAckGivesMoreOnlyWhenItsSenderHasSeenEveryGrant) {
  HomeWorld w;
  w.has("n1", Exclusive, pages(0, 9));
  w.asks("n2", Exclusive, pages(3, 3)).expect("recall n1 3-3");
  w.acks("n1", {.given = pages(2, 9)}).expect("grant n2 Exclusive 2-end");
  EXPECT_EQ(w.held("n1", 9), None);
  EXPECT_EQ(w.held("n1", 1), Exclusive);

  HomeWorld late;
  late.has("n1", Exclusive, pages(0, 9));
  late.asks("n2", Exclusive, pages(3, 3)).expect("recall n1 3-3");
  late.asks("n1", Exclusive, pages(20, 20)).expect("grant n1 Exclusive 4-end");
  late.acks("n1", {.given = pages_from(2), .seen = late.last_grant("n1") - 1})
      .expect("grant n2 Exclusive 3-3");
  EXPECT_EQ(late.held("n1", 20), Exclusive)
      << "the grant under way is not given up by an ack sent before it arrived";
  EXPECT_EQ(late.held("n1", 9), Exclusive);
}

TEST(HomeTest, AReleaseThatCrossedAGrantDoesNothing) {
  HomeWorld w;
  w.has("n1", Exclusive, pages(0, 9));
  const uint64_t seen = w.last_grant("n1");
  w.asks("n1", Exclusive, pages(20, 20)).expect("grant n1 Exclusive all");
  w.releases("n1", true, seen).expect_nothing();
  EXPECT_EQ(w.held("n1", 20), Exclusive);
  w.releases("n1").expect("idle");
}

TEST(HomeTest, GrantNumbersGoOnAfterEveryLeaseIsGone) {
  HomeWorld w;  // the world itself checks that they have no gap
  w.asks("n1", Exclusive, pages(0, 0)).expect("grant n1 Exclusive all");
  w.asks("n2", Exclusive, pages(0, 0)).expect("recall n1 0-0");
  w.acks("n1", {.given = PageRange::all()}).expect("grant n2 Exclusive all");
  w.releases("n2").expect("idle");  // n1 holds nothing, and may still release by number
  w.asks("n1", Exclusive, pages(0, 0)).expect("grant n1 Exclusive all");
  EXPECT_EQ(w.last_grant("n1"), 2u);
}

}  // namespace
}  // namespace vremote::coherence
