// Scenarios of one home (home_test.cc): operations, what they make of sessions, and what it
// refuses.
#include <chrono>

#include "coherence/home.h"
#include "coherence/home_test_world.h"

namespace vremote::coherence {
namespace {

using test::HomeWorld;
using test::pages;
using test::pages_from;
using enum LeaseMode;

// ---- operations at the home

TEST(HomeTest, AnOperationHoldsWhatItGotUntilItIsFinished) {
  HomeWorld w;
  w.has_attributes("n1", Exclusive);
  w.operation(1, Resource::Attributes, Exclusive, kUnit).expect("recall n1 attributes");
  w.acks("n1").expect("ready 1");
  w.asks_attributes("n1", Shared).expect_nothing();
  w.operation(2, Resource::Attributes, Exclusive, kUnit).expect_nothing();
  w.finishes(1).expect("grant n1 Shared attributes", "recall n1 attributes");
  w.acks("n1").expect("ready 2");
  w.finishes(2).expect("idle");
}

TEST(HomeTest, ReadingOperationsRunSideBySide) {
  HomeWorld w;
  w.has("n1", Exclusive, pages(0, 9));
  w.operation(1, Resource::Data, Shared, PageRange::all()).expect("recall n1 0-9 to Shared");
  w.operation(2, Resource::Data, Shared, PageRange::all()).expect_nothing();
  w.acks("n1").expect("ready 1", "ready 2");
  w.asks("n2", Shared, pages(0, 0)).expect("grant n2 Shared all");
  w.finishes(1).finishes(2).expect_nothing();
}

TEST(HomeTest, TheNodeThatAskedForATruncationIsNotRecalled) {
  HomeWorld w;
  w.has("n1", Shared, pages(0, 9)).has("n2", Shared, pages(0, 9));
  w.operation(1, Resource::Data, Exclusive, pages_from(4), "n1").expect("recall n2 4-9");
  w.acks("n2").expect("ready 1");
  EXPECT_EQ(w.held("n1", 5), Shared);
  w.finishes(1).expect_nothing();
}

TEST(HomeTest, AnOperationThatGivesUpLetsTheNextOnePass) {
  HomeWorld w;
  w.has("n1", Exclusive, pages(0, 9));
  w.operation(1, Resource::Data, Exclusive, pages(0, 9)).expect("recall n1 0-9");
  w.asks("n2", Shared, pages(0, 0)).expect_nothing();
  w.finishes(1).expect_nothing();  // the recall under way serves n2 as well
  w.acks("n1").expect("grant n2 Exclusive all");
}

// ---- a node whose truncation stands in the way of its own acks: K8

TEST(HomeTest, ABusyNodesTruncationGoesBeforeThoseWhoOnlyWait) {  // B1
  HomeWorld w;
  w.has("n1", Exclusive, pages(0, 9)).has_attributes("n1", Exclusive);
  w.asks_attributes("n2", Shared).expect("recall n1 attributes to Shared");
  w.operation(1, Resource::Attributes, Exclusive, kUnit).expect_nothing();
  w.truncation(2, "n1").expect_nothing();
  w.is_busy("n1").expect("recall n1 attributes");  // its truncation stands first in line now, and
                                                   // takes all of the lease
  w.acks("n1").expect_nothing();
  w.acks("n1").expect("ready 2");
  w.finishes(2).expect("grant n1 Exclusive attributes", "recall n1 attributes to Shared");
  w.acks("n1").expect("grant n2 Shared attributes", "recall n1 attributes", "recall n2 attributes");
  w.acks("n1").expect_nothing();
  w.acks("n2").expect("ready 1");
  w.finishes(1).expect_nothing();
}

// R6: as if it had been granted them by this home.
TEST(HomeTest, PagesThatANodeHadBeforeARestartAreItsAgain) {
  HomeWorld w;
  EXPECT_TRUE(w.reclaims("n1", {pages(2, 3), pages(7, 7)}));
  w.asks("n2", Exclusive, pages(5, 5)).expect("grant n2 Exclusive 4-6");
  w.asks("n2", Shared, pages(3, 3)).expect("recall n1 3-3 to Shared");
  w.is_busy("n1").expect_nothing();
  w.truncation(1, "n1").expect("ready 1");
  w.finishes(1).expect("grant n1 Exclusive attributes");
  w.acks("n1").expect("grant n2 Shared 3-6");
  w.goes("n1").expect_nothing();
  w.asks("n2", Exclusive, pages(7, 7)).expect("grant n2 Exclusive all");
}

TEST(HomeTest, WhatAnotherHasIsNobodyElses) {
  HomeWorld w;
  EXPECT_TRUE(w.reclaims("n1", {pages(2, 3)}));
  EXPECT_TRUE(w.reclaims("n1", {pages(2, 4)}));
  EXPECT_FALSE(w.reclaims("n2", {pages(8, 8), pages(4, 4)}));
  w.asks("n1", Exclusive, pages(8, 8)).expect("grant n1 Exclusive all");
}

TEST(HomeTest, WhoKeepsTheAttributesFromABusyNodesTruncationIsBounced) {  // B2
  HomeWorld w;
  w.has("n1", Exclusive, pages(0, 9)).has_attributes("n2", Update);
  w.asks("n2", Exclusive, pages(0, 0))
      .expect("recall n1 0-0");  // n2 keeps its Attributes lease until it gets page 0
  w.truncation(1, "n1").expect("recall n2 attributes");
  w.is_busy("n1").expect("refuse n2 0-0 error 11");
  w.acks("n2").expect("ready 1");
  w.finishes(1).expect("grant n1 Exclusive attributes");
  w.acks("n1").expect_nothing();
}

TEST(HomeTest, AnOperationYieldsTheAttributesToABusyNodesTruncation) {  // B3
  HomeWorld w;
  w.has("n1", Exclusive, pages(0, 9)).has_attributes("n1", Exclusive);
  w.truncation(1, "n2").expect("recall n1 attributes");
  w.acks("n1").expect("ready 1");
  w.truncation_goes_on(1, "n2", 5).expect("recall n1 5-9");
  w.truncation(2, "n1").expect_nothing();
  w.is_busy("n1").expect("ready 2");
  w.truncation_goes_on(2, "n1", 3).expect("ready 2");
  w.finishes(2).expect("grant n1 Exclusive attributes", "recall n1 attributes");
  w.acks("n1").expect_nothing();  // of page 5 on
  w.acks("n1").expect("ready 1");
  w.finishes(1).expect_nothing();  // n2 holds nothing: it has nothing to show
}

TEST(HomeTest, OfTwoTruncationsThatHoldWhatTheOtherNeedsOneFails) {  // B3
  HomeWorld w;
  w.has("n1", Exclusive, pages(0, 9))
      .has("n2", Exclusive, pages(10, 19))
      .has_attributes("n1", Exclusive);
  w.truncation(1, "n2").expect("recall n1 attributes");
  w.acks("n1").expect("ready 1");
  w.truncation_goes_on(1, "n2", 5).expect("recall n1 5-9");
  w.truncation(2, "n1").expect_nothing();
  w.is_busy("n1").expect("ready 2");
  w.truncation_goes_on(2, "n1", 3).expect("recall n2 10-19");
  w.is_busy("n2").expect("fail 1");  // and its node, once answered EINTR, can ack
  w.finishes(1).expect_nothing();
  w.acks("n2").expect("ready 2");
  w.finishes(2).expect("grant n1 Exclusive attributes");
  w.acks("n1").expect_nothing();
}

// Seed 5866 of the simulator: the operation waits behind others, and they for the busy node.
TEST(HomeTest, AnOperationYieldsAlsoWhenOthersBeforeItWaitForTheBusyNode) {  // B3
  HomeWorld w;
  w.has("n1", Exclusive, pages(0, 0)).has_attributes("n1", Exclusive);
  w.truncation(1, "n4").expect("recall n1 attributes");
  w.acks("n1").expect("ready 1");
  w.asks("n2", Shared, pages(0, 0)).expect("recall n1 0-0 to Shared");
  w.asks("n4", Exclusive, pages(0, 1)).expect_nothing();
  w.truncation_goes_on(1, "n4", 1).expect_nothing();
  w.truncation(2, "n1").expect_nothing();
  w.is_busy("n1").expect("ready 2");
  w.truncation_goes_on(2, "n1", 1).expect("ready 2");
  w.finishes(2).expect("grant n1 Exclusive attributes", "recall n1 attributes");
  w.acks("n1").expect("grant n2 Shared 0-0", "recall n1 0-0", "recall n2 0-0");
  w.acks("n1").expect_nothing();  // its Attributes
  w.acks("n1").expect_nothing();
  w.acks("n2").expect("grant n4 Exclusive all", "ready 1");
  w.finishes(1).expect("grant n4 Exclusive attributes");
}

// Seed 222279 of the simulator: the node that truncates shows what it cut until its kernel has the
// answer, and another had seen the new size before.
TEST(HomeTest, WithoutB4ATruncatedSizeIsSeenElsewhereFirst) {
  Mistakes mistakes;
  mistakes.add(Mistake::TruncationSeenElsewhereFirst);
  HomeWorld w(mistakes);
  w.has("n1", Exclusive, pages(0, 9));
  w.truncation(1, "n1").expect("ready 1");
  w.asks_attributes("n2", Shared).expect_nothing();
  w.finishes(1).expect("grant n2 Shared attributes");
}

TEST(HomeTest, NobodyLearnsATruncatedSizeBeforeTheNodeThatTruncated) {  // B4
  HomeWorld w;
  w.has("n1", Exclusive, pages(0, 9));
  w.truncation(1, "n1").expect("ready 1");
  w.asks_attributes("n2", Shared).expect_nothing();
  w.truncation_goes_on(1, "n1", 5).expect("ready 1");
  w.finishes(1).expect("grant n1 Exclusive attributes", "recall n1 attributes to Shared");
  w.acks("n1").expect("grant n2 Shared attributes");
}

// ---- offers

TEST(HomeTest, AnOfferNeverMakesAnybodyWait) {
  HomeWorld w;
  w.offers("n1", Resource::Attributes, Exclusive).expect("grant n1 Exclusive attributes");
  w.offers("n1", Resource::Attributes, Shared).expect_nothing();  // it has that already
  w.offers("n2", Resource::Attributes, Shared).expect_nothing();  // n1 would have to be recalled
  w.asks_attributes("n2", Shared).expect("recall n1 attributes to Shared");
  w.offers("n3", Resource::Attributes, Shared).expect_nothing();  // a recall is under way
  w.acks("n1").expect("grant n2 Shared attributes");
  w.offers("n3", Resource::Attributes, Shared).expect("grant n3 Shared attributes");
}

TEST(HomeTest, AnOfferThatIsRefusedLeavesNothingBehind) {
  HomeWorld w;
  w.operation(1, Resource::Attributes, Exclusive, kUnit).expect("ready 1");
  w.offers("n1", Resource::Attributes, Shared).expect_nothing();
  w.finishes(1).expect("idle");
  EXPECT_EQ(w.home.counts().files, 0u);
}

// ---- nodes that go, files in use, files nobody knows

TEST(HomeTest, WhatAGoneNodeHeldAskedForAndOwedIsFree) {
  HomeWorld w;
  w.has("n1", Exclusive, pages(0, 9));
  w.asks("n2", Exclusive, pages(5, 5)).expect("recall n1 5-5");
  w.asks("n3", Exclusive, pages(5, 5)).expect_nothing();
  w.goes("n2").expect_nothing();
  w.goes("n1").expect("grant n3 Exclusive all");
  w.goes("n3").expect("idle");
}

TEST(HomeTest, TheGrantsOfANewSessionAreNumberedFromOne) {
  HomeWorld w;
  HomeActions actions;
  w.asks("n1", Exclusive, pages(0, 0)).expect("grant n1 Exclusive all");
  w.goes("n1").expect("idle");
  w.home.receive(NodeId{1},
                 LeaseRequest{.file = w.file, .request = 9, .mode = Shared, .range = pages(0, 0)},
                 actions);
  ASSERT_EQ(actions.size(), 1u);
  EXPECT_EQ(std::get<SendGrant>(actions[0]).grant.sequence, 1u);
}

TEST(HomeTest, AFileIsPinnedWhileAnyNodeSaysItIsInUse) {
  HomeWorld w;
  w.has_attributes("n1", Shared).has_attributes("n2", Shared);
  w.operation(1, Resource::Attributes, Exclusive, kUnit)
      .expect("recall n1 attributes", "recall n2 attributes");
  w.acks("n1", {.in_use = true}).expect("pin");
  w.acks("n2", {.in_use = true}).expect("ready 1");
  w.finishes(1).expect_nothing();
  w.releases("n1", false).expect_nothing();
  w.releases("n2", false).expect("unpin", "idle");
}

TEST(HomeTest, AGoneNodeNoLongerPinsAFile) {
  HomeWorld w;
  w.has_attributes("n1", Shared);
  w.operation(1, Resource::Attributes, Exclusive, kUnit).expect("recall n1 attributes");
  w.acks("n1", {.in_use = true}).expect("pin", "ready 1");
  w.finishes(1).expect_nothing();
  w.goes("n1").expect("unpin", "idle");
}

TEST(HomeTest, AFileIsIdleWhenTheLastAgentHasReleasedIt) {
  HomeWorld w;
  w.has("n1", Shared, pages(0, 9)).has("n2", Shared, pages(0, 9));
  w.releases("n1").expect_nothing();
  w.releases("n2").expect("idle");
  EXPECT_EQ(w.home.counts().files, 0u);
}

// ---- changes from outside

TEST(HomeTest, AChangeFromOutsideEmptiesAllCachesBeforeAnybodyIsServedAgain) {
  HomeWorld w;
  w.has("n0", Shared, pages(0, 3))
      .has("n1", Shared, pages(0, 9))
      .has("n2", Exclusive, pages(20, 29));
  w.operation(1, Resource::Data, Exclusive, PageRange::all())
      .expect("recall n0 0-3", "recall n1 0-9", "recall n2 20-29");
  w.asks("n1", Shared, pages(0, 0)).expect_nothing();
  w.acks("n0").expect_nothing();
  w.acks("n1").expect_nothing();
  w.acks("n2").expect("ready 1");
  w.finishes(1).expect("grant n1 Exclusive all");
}

TEST(HomeTest, AChangeFromOutsideMattersOnlyForFilesThatNodesKnow) {
  HomeWorld w;
  EXPECT_FALSE(w.home.knows(w.file));
  w.has("n1", Shared, pages(0, 9));
  EXPECT_TRUE(w.home.knows(w.file));
  EXPECT_EQ(w.home.known_files(), std::vector<FileId>{w.file});
  w.operation(1, Resource::Data, Exclusive, PageRange::all()).expect("recall n1 0-9");
  w.acks("n1").expect("ready 1");
  w.finishes(1).expect("idle");
  EXPECT_FALSE(w.home.knows(w.file));
  w.has_attributes("n1", Shared);
  w.operation(2, Resource::Attributes, Exclusive, kUnit).expect("recall n1 attributes");
  w.acks("n1", {.in_use = true}).expect("pin", "ready 2");
  w.finishes(2).expect_nothing();
  EXPECT_TRUE(w.home.knows(w.file)) << "n1 has it open";
}

TEST(HomeTest, AChangeFromOutsideYieldsToATruncationThatItsHolderWaitsFor) {
  HomeWorld w;
  w.has("n1", Exclusive, pages(0, 9));
  w.operation(1, Resource::Attributes, Exclusive, kUnit).expect("ready 1");
  w.operation(1, Resource::Data, Exclusive, PageRange::all()).expect("recall n1 0-9");
  w.truncation(2, "n1").expect_nothing();
  w.is_busy("n1").expect("ready 2");
  w.truncation_goes_on(2, "n1", 0).expect("ready 2");
  w.finishes(2).expect("grant n1 Exclusive attributes", "recall n1 attributes");  // B4
  w.acks("n1").expect_nothing();                                                  // of its pages
  w.acks("n1").expect("ready 1");
  w.finishes(1).expect("idle");
}

TEST(HomeTest, ANodeThatAsksForTooMuchAtOnceIsRefusedAndOthersAreNot) {
  HomeWorld w({}, {.requests_of_node = 2});
  w.has("n1", Exclusive, pages(0, 9));
  w.asks("n2", Shared, pages(0, 0)).expect("recall n1 0-0 to Shared");
  w.asks("n2", Shared, pages(1, 1)).expect("recall n1 1-1 to Shared");
  w.asks("n2", Shared, pages(2, 2)).expect("refuse n2 2-2 error 105");
  w.asks("n3", Shared, pages(2, 2)).expect("recall n1 2-2 to Shared");
  w.acks("n1").expect("grant n2 Shared 0-0");
  w.asks("n2", Shared, pages(2, 2)).expect_nothing();
  w.goes("n2").expect_nothing();
  w.goes("n1").expect("grant n3 Exclusive all");
}

// ---- what breaks the protocol ends the session

TEST(HomeTest, RequestsWithoutSenseEndTheSession) {
  HomeWorld w;
  auto request = [&](Resource resource, LeaseMode mode, PageRange range) {
    return LeaseRequest{
        .file = w.file, .request = 1, .resource = resource, .mode = mode, .range = range};
  };
  w.receives("n1", request(Resource::Data, None, pages(0, 0))).expect("close n1");
  w.receives("n1", request(Resource::Data, Shared, {3, 3})).expect("close n1");
  w.receives("n1", request(Resource::Data, Shared, {3, kPageEnd + 1})).expect("close n1");
  w.receives("n1", request(Resource::Data, Update, pages(0, 0))).expect("close n1");
  w.receives("n1", request(Resource::Attributes, Shared, pages(0, 1))).expect("close n1");
  w.receives("n1", Fetch{.file = w.file, .fetch = 1, .range = {4, 4}}).expect("close n1");
  EXPECT_EQ(w.home.counts().files, 0u) << "nothing is remembered of what was refused";
}

TEST(HomeTest, AcksThatFitNoRecallEndTheSession) {
  HomeWorld w;
  const RecallAck stranger{.file = w.file, .recall = 77, .given = pages(0, 0)};
  w.receives("n1", stranger).expect("close n1");
  w.has("n1", Exclusive, pages(0, 9));
  w.receives("n1", stranger).expect("close n1");
  w.asks("n2", Exclusive, pages(3, 5)).expect("recall n1 3-5");
  uint64_t id = 0;
  for (uint64_t guess = 1; guess < 10;
       ++guess) {  // whatever its number: n2 may not ack what n1 was asked for
    HomeActions actions;
    w.home.receive(NodeId{2}, RecallAck{.file = w.file, .recall = guess, .given = pages(3, 5)},
                   actions);
    ASSERT_EQ(actions.size(), 1u);
    const auto& close = std::get<CloseSession>(actions[0]);
    if (close.reason == "an ack that does not fit its recall") id = guess;
  }
  ASSERT_NE(id, 0u);
  EXPECT_EQ(w.held("n1", 3), Exclusive);
  w.receives("n1", RecallAck{.file = w.file, .recall = id, .given = pages(3, 4)})
      .expect("close n1");  // less than recalled
  EXPECT_EQ(w.held("n1", 3), Exclusive);
  w.acks("n1").expect("grant n2 Exclusive 3-5");
}

TEST(HomeTest, PendingRecallsAreToldForStatus) {
  HomeWorld w;
  w.has("n1", Exclusive, pages(0, 9));
  w.asks("n2", Exclusive, pages(3, 5)).expect("recall n1 3-5");
  auto recalls = w.home.pending_recalls(10);
  ASSERT_EQ(recalls.size(), 1u);
  EXPECT_EQ(recalls[0].node, NodeId{1});
  EXPECT_EQ(recalls[0].range, pages(3, 5));
  EXPECT_EQ(w.home.counts().waiting, 1u);
  EXPECT_TRUE(w.home.pending_recalls(0).empty());
  w.acks("n1").expect("grant n2 Exclusive 3-5");
}

// ---- many at once

// A database that recovers on another node reads thousands of pages ahead, each of which the first
// node must give up. Looking at every waiting request for every ack takes minutes.
TEST(HomeTest, AnAckCostsLittleHoweverManyRequestsWait) {
  constexpr uint64_t kRequests = 4000;
  const FileId file{.export_index = 0, .generation = 1, .inode = 7};
  const NodeId holder{1}, reader{2};
  Home home;
  HomeActions actions;
  home.receive(holder,
               LeaseRequest{.file = file,
                            .request = 1,
                            .resource = Resource::Data,
                            .mode = Exclusive,
                            .range = PageRange::all()},
               actions);
  const auto seen = std::get<SendGrant>(actions.at(0)).grant.sequence;
  const auto started = std::chrono::steady_clock::now();
  std::vector<Recall> recalls;
  for (uint64_t i = 0; i < kRequests; ++i) {
    actions.clear();
    home.receive(reader,
                 LeaseRequest{.file = file,
                              .request = i + 1,
                              .resource = Resource::Data,
                              .mode = Shared,
                              .range = pages(10 * i, 10 * i)},
                 actions);
    ASSERT_EQ(actions.size(), 1u);
    recalls.push_back(std::get<SendRecall>(actions.at(0)).recall);
  }
  for (const Recall& recall : recalls) {
    actions.clear();
    home.receive(
        holder,
        RecallAck{.file = file, .recall = recall.recall, .given = recall.range, .seen = seen},
        actions);
    ASSERT_EQ(actions.size(), 1u);
    EXPECT_EQ(std::get<SendGrant>(actions.at(0)).node, reader);
  }
  // Well below a second; minutes when each ack looks at all.
  EXPECT_LT(std::chrono::steady_clock::now() - started, std::chrono::seconds(20));
}

}  // namespace
}  // namespace vremote::coherence
