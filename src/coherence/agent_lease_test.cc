// Scenarios of time: leases that run out, come back, or were given to others meanwhile (T1 to T5).
#include <cerrno>

#include "coherence/agent.h"
#include "coherence/agent_test_world.h"

namespace vremote::coherence {
namespace {

using test::AgentWorld;
using test::pages;
using enum LeaseMode;

constexpr uint64_t kSize = 16 * kPageSize;
constexpr auto kFenced = Agent::Dirty::Fenced;

AgentOptions remote() {
  AgentOptions options;
  options.lease_at_start = false;
  return options;
}

TEST(AgentLeaseTest, NothingIsAskedBeforeTheFirstAnswerOfTheHome) {
  AgentWorld w(remote());
  w.fills(1, pages(0, 0)).expect_nothing();
  w.renews_for_ms(7000).expect("ask Shared attributes");
}

TEST(AgentLeaseTest, WhenTheTimeIsOverTheKernelsPagesGoAndNothingIsAnswered) {
  AgentWorld w(remote());
  w.renews_for_ms(7000).has_attributes(Exclusive, kSize).has(Exclusive, pages(0, 15));
  w.cached(pages(0, 1), 'A');
  w.later_ms(7000).expect("purge 0-1");
  w.returns(pages(0, 1)).expect_nothing();
  w.fills(1, pages(0, 0)).expect_nothing();
  w.reads(2, 0, 4096).expect_nothing();
  w.writes(3, 0, 4096, 'W').expect_nothing();
  w.stats(4).expect_nothing();
  w.opens(5, true).expect_nothing();
  EXPECT_EQ(w.agent.counts().suspended, 1u);
}

TEST(AgentLeaseTest, TheDriverIsAskedToLookAtTheClockInTime) {
  AgentWorld w(remote());
  w.renews_for_ms(7000).has_attributes(Exclusive, kSize);
  EXPECT_EQ(w.ms_to_deadline(), 7000);
}

TEST(AgentLeaseTest, AStoppedDaemonLooksAtTheClockBeforeItAnswers) {
  AgentWorld w(remote());
  w.renews_for_ms(7000).has_attributes(Exclusive, kSize).has(Exclusive, pages(0, 15));
  w.cached(pages(0, 1), 'A');
  w.sleeps_ms(60'000);
  w.writes(1, 5 * kPageSize, 4096, 'W').expect("purge 0-1");
  w.reads(2, 0, 4096).expect_nothing();
}

TEST(AgentLeaseTest, EachRenewalMovesTheEnd) {
  AgentWorld w(remote());
  w.renews_for_ms(7000).has_attributes(Exclusive, kSize).has(Exclusive, pages(0, 15));
  w.later_ms(4000).renews_for_ms(7000);
  w.later_ms(4000).writes(1, 0, 4096, 'W').expect("written 1 @0+4096");
}

TEST(AgentLeaseTest, WhatComesBackInTimeGoesOnWithItsLeases) {
  AgentWorld w(remote());
  w.renews_for_ms(7000).has_attributes(Exclusive, kSize).has(Exclusive, pages(0, 15));
  w.cached(pages(0, 1), 'A');
  w.later_ms(7000).expect("purge 0-1");
  w.writes(1, 0, 4096, 'W').expect_nothing();
  w.reads(2, 0, 4096).expect_nothing();
  w.returns(pages(0, 1)).expect_nothing();
  w.renews_for_ms(7000).expect("written 1 @0+4096", "data 2 4096*W");
  EXPECT_EQ(w.held(0), Exclusive);
}

TEST(AgentLeaseTest, ARecallIsAnsweredAlsoWhenTheTimeIsOver) {
  AgentWorld w(remote());
  w.renews_for_ms(7000).has_attributes(Exclusive, kSize).has(Exclusive, pages(0, 15));
  w.writes(1, 0, 4096, 'W').expect("written 1 @0+4096");
  w.later_ms(500).sleeps_ms(7000);
  w.recalls(pages(0, 15)).expect("flush @0+4096*W", "ack 0-15");
}

TEST(AgentLeaseTest, AttributesKeptByTheKernelGoWithTheTime) {
  AgentWorld w(remote());
  w.renews_for_ms(7000).has_attributes(Exclusive, kSize);
  w.stats(1).expect("attributes 1 size 65536");
  w.later_ms(7000).expect("drop attributes");
}

TEST(AgentLeaseTest, WhatTheKernelWritesBackWhenTheTimeIsOverIsKept) {
  AgentOptions options = remote();
  options.flush_after_ns = 3'600'000'000'000;
  AgentWorld w(options);
  w.renews_for_ms(7000).has_attributes(Exclusive, kSize).has(Exclusive, pages(0, 15));
  w.opens(1, true).expect("opened 1");
  w.cached(pages(0, 0), 'A');
  w.later_ms(7000).expect("purge 0-0");
  w.writes_back(0, 'M').expect_nothing();
  w.returns(pages(0, 0)).expect_nothing();
  w.renews_for_ms(7000).expect_nothing();
  w.reads(2, 0, 4096).expect("data 2 4096*M");
}

// ---- fenced

TEST(AgentLeaseTest, AFencedNodeSendsNoOldBytes) {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize).has(Exclusive, pages(0, 15)).cached(pages(5, 5), 'A');
  w.writes(1, 0, 4096, 'W').expect("written 1 @0+4096");
  w.resets(kFenced).expect("names lost", "rescue @0+4096*W", "purge 5-5");
  w.returns(pages(5, 5)).expect_nothing();
  w.reads(2, 0, 4096).expect("ask Shared attributes");
  w.grants_attributes(kSize).expect("ask Shared 0-0 with data");
  w.grants('B').expect("data 2 4096*B");
}

TEST(AgentLeaseTest, BytesThatWereGivenUpAndHadNotArrivedAreRescued) {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize).has(Exclusive, pages(0, 15));
  w.writes(1, 0, 4096, 'W').expect("written 1 @0+4096");
  w.recalls(pages(0, 15)).expect("flush @0+4096*W", "ack 0-15");
  w.resets(kFenced).expect("names lost", "rescue @0+4096*W");
}

TEST(AgentLeaseTest, WhatHadArrivedIsNotRescued) {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize).has(Exclusive, pages(0, 15));
  w.writes(1, 0, 4096, 'W').expect("written 1 @0+4096");
  w.recalls(pages(0, 15)).expect("flush @0+4096*W", "ack 0-15");
  w.acks_flush();
  w.resets(kFenced).expect("names lost");
}

TEST(AgentLeaseTest, BytesUnderWayAreRescuedBeforeLaterOnes) {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize).has(Exclusive, pages(0, 15));
  w.writes(1, 0, 4096, 'W').expect("written 1 @0+4096");
  w.syncs(2).expect("flush @0+4096*W", "flush time");
  w.writes(3, 0, 4096, 'X').expect("written 3 @0+4096");
  w.resets(kFenced).expect("names lost", "rescue @0+4096*W", "rescue @0+4096*X",
                           "flushed 2 error 5");
}

TEST(AgentLeaseTest, TheLossIsToldByTheNextFsync) {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize).has(Exclusive, pages(0, 15));
  w.opens(9, false).expect("opened 9");
  w.writes(1, 0, 4096, 'W').expect("written 1 @0+4096");
  w.resets(kFenced).expect("names lost", "rescue @0+4096*W", "ask Shared attributes");
  w.syncs(2).expect("flushed 2 error 5");
  w.syncs(3).expect("flushed 3");
}

TEST(AgentLeaseTest, WhatTheKernelWritesBackAfterTheFenceIsRescued) {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize).has(Exclusive, pages(0, 15));
  w.opens(1, true).expect("opened 1");
  w.cached(pages(0, 0), 'A');
  w.resets(kFenced).expect("names lost", "ask Shared attributes", "purge 0-0");
  w.writes_back(0, 'M').expect("rescue @0+4096*M");
  w.returns(pages(0, 0)).expect_nothing();
  w.reads(2, 0, 4096).expect("ask Shared attributes");
}

TEST(AgentLeaseTest, AfterAResetThatKeepsThemBytesGivenUpAreSentAgainToo) {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize).has(Exclusive, pages(0, 15));
  w.writes(1, 0, 4096, 'W').expect("written 1 @0+4096");
  w.recalls(pages(0, 15)).expect("flush @0+4096*W", "ack 0-15");
  w.syncs(2).expect("flush time");
  w.resets().expect("names lost", "flush @0+4096*W", "flush time");
  w.acks_flush().expect_nothing();
  w.acks_flush().expect("flushed 2");
}

// Found by the simulator: the home had died between hearing the ack and writing the size down, and
// the bytes that were flushed to the next one were cut there.
TEST(AgentLeaseTest, ASizeGivenUpIsBroughtBackUnlessTheHomeHasIt) {
  for (const bool confirmed : {false, true}) {
    AgentWorld w;
    w.has_attributes(Exclusive, kSize).has(Exclusive, pages(0, 16));
    w.writes(1, kSize, 4096, 'W').expect("written 1 @65536+4096");
    w.recalls_attributes().expect("flush size 69632 time", "ack 0-0");
    if (confirmed) w.acks_flush().expect_nothing();
    w.resets();
    if (confirmed) {
      w.expect("names lost", "flush @65536+4096*W");
    } else {
      w.expect("names lost", "flush size 69632 time", "flush @65536+4096*W");
    }
  }
}

TEST(AgentLeaseTest, ItHasBroughtBackAllWhenTheHomeHasItAndTheKernelShowsNothing) {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize).has(Exclusive, pages(0, 15)).cached(pages(5, 5), 'A');
  w.opens(1, false).expect("opened 1");
  w.writes(2, 0, 4096, 'W').expect("written 2 @0+4096");
  w.resets().expect("names lost", "flush @0+4096*W", "flush time", "ask Shared attributes",
                    "purge 5-5");
  EXPECT_THAT(w.agent.open_files(), testing::ElementsAre(w.file));
  EXPECT_FALSE(w.agent.brought_back());
  w.acks_flush().expect_nothing();
  w.acks_flush().expect_nothing();
  EXPECT_FALSE(w.agent.brought_back()) << "a page of before may be shown";
  w.returns(pages(5, 5)).expect_nothing();
  EXPECT_TRUE(w.agent.brought_back());
}

// ---- truncations that hold pages back (K8)

// Its page 5 is cached, and may be dirty. A truncation that began waits for the home.
void truncates_a_mapped_file(AgentWorld& w, uint64_t size) {
  w.renews_for_ms(7000).has_attributes(Exclusive, kSize).has(Exclusive, pages(0, 16));
  w.opens(1, true).expect("opened 1");
  w.cached(pages(5, 5), 'A').truncates(2, size).expect("truncate 2");
}

TEST(AgentLeaseTest, PagesBehindATruncationAreClaimedFromAHomeThatHasRestarted) {
  AgentWorld w(remote());
  truncates_a_mapped_file(w, 4096);
  w.session_is_over().expect("purge 5-5");
  w.resets().expect("names lost");
  w.renews_for_ms(7000).expect("ask Shared attributes");
  EXPECT_FALSE(w.agent.brought_back());
  w.looks_what_is_back().expect("claim 5-5");
  w.looks_what_is_back().expect_nothing();
  EXPECT_FALSE(w.agent.brought_back());
  w.claim_is_heard(true).expect_nothing();
  EXPECT_TRUE(w.agent.brought_back()) << "so that the home serves the truncation";
  w.later_ms(6990).expect_nothing();
}

TEST(AgentLeaseTest, AClaimThatIsRefusedIsMadeAgain) {
  AgentWorld w(remote());
  truncates_a_mapped_file(w, 4096);
  w.session_is_over().came();
  w.resets().came();
  w.looks_what_is_back().expect("claim 5-5");
  w.claim_is_heard(false).expect_nothing();
  EXPECT_FALSE(w.agent.brought_back());
  w.looks_what_is_back().expect("claim 5-5");
}

TEST(AgentLeaseTest, WhatIsCleanIsNotClaimed) {
  AgentWorld w(remote());
  w.renews_for_ms(7000).has_attributes(Exclusive, kSize).has(Exclusive, pages(0, 16));
  w.opens(1, false).expect("opened 1");
  w.cached(pages(5, 5), 'A').truncates(2, 10 * kPageSize).expect("truncate 2");
  w.session_is_over().came();
  w.resets().came();
  w.looks_what_is_back().expect_nothing();
}

TEST(AgentLeaseTest, ATruncationThatHoldsPagesBackFailsWhenTheLeasesAreOver) {
  AgentWorld w(remote());
  truncates_a_mapped_file(w, 4096);
  w.later_ms(7000).expect("purge 5-5");
  w.later_ms(10).expect("end the truncation");
  w.truncation_goes_on(4096).expect_nothing();
  w.returns(pages(5, 5)).expect_nothing();
  w.truncates(3, 0).expect_nothing();
  w.renews_for_ms(7000).expect_nothing();
  w.late_truncation(4096, true).expect("truncate 3");
}

TEST(AgentLeaseTest, OneThatHadNotBegunFailsAtOnce) {
  AgentWorld w(remote());
  truncates_a_mapped_file(w, 4096);
  w.later_ms(7000).expect("purge 5-5");
  w.truncates(3, 0).expect_nothing();
  w.later_ms(10).expect("error 3 5", "end the truncation");
}

TEST(AgentLeaseTest, OneWhosePagesAreGoneWaits) {
  AgentWorld w(remote());
  truncates_a_mapped_file(w, 4096);
  w.later_ms(7000).expect("purge 5-5");
  w.returns(pages(5, 5)).expect_nothing();
  w.later_ms(600'000).expect_nothing();
}

TEST(AgentLeaseTest, WhenASessionBreaksTheTimeOfItsLeasesStillCounts) {
  AgentWorld w(remote());
  truncates_a_mapped_file(w, 4096);
  w.session_is_over().expect("purge 5-5");
  w.later_ms(6900).expect_nothing();
  EXPECT_LE(w.ms_to_deadline(), 100);
  w.later_ms(100).later_ms(10).expect("end the truncation");
}

// The kernel was told that nothing has changed, and a mapping ends where the file did.
TEST(AgentLeaseTest, ATruncationThatFailedHereAndMakesTheFileLongerIsMadeKnown) {
  AgentWorld w(remote());
  truncates_a_mapped_file(w, 2 * kSize);
  w.later_ms(7000).came();
  w.later_ms(10).came();
  w.truncation_goes_on(2 * kSize).came();
  w.returns(pages(5, 5)).came();
  w.renews_for_ms(7000).came();
  EXPECT_THAT(w.late_truncation(2 * kSize, true).came(),
              testing::Contains(testing::HasSubstr(std::to_string(2 * kSize))));
}

// The kernel was told that nothing has changed: neither its size nor its pages are cut.
TEST(AgentLeaseTest, WhatATruncationThatFailedHereHasCutIsNotWrittenBack) {
  AgentWorld w(remote());
  truncates_a_mapped_file(w, 4096);
  w.later_ms(7000).came();
  w.later_ms(10).came();
  w.truncation_goes_on(4096).came();
  w.renews_for_ms(7000).came();
  w.late_truncation(4096, true).came();
  w.reads(3, 0, 4096).expect_nothing();
  w.writes_back(5, 'Z').came();
  w.returns(pages(5, 5)).expect("fetch 0-0");
  w.syncs(4).expect("flushed 4");
}

// ---- soft

TEST(AgentLeaseTest, ASoftMountFailsWhatHasWaitedTooLong) {
  AgentOptions options = remote();
  options.soft_ns = 3'000'000'000;
  AgentWorld w(options);
  w.renews_for_ms(7000).has_attributes(Exclusive, kSize).has(Exclusive, pages(0, 15));
  w.later_ms(7000).expect_nothing();
  w.fills(1, pages(0, 0)).writes(2, 0, 4096, 'W').expect_nothing();
  EXPECT_EQ(w.ms_to_deadline(), 3000);
  w.later_ms(3000).expect("error 1 5", "error 2 5");
  w.reads(3, 0, 4096).expect("error 3 5");
  w.renews_for_ms(7000).expect_nothing();
  w.writes(4, 0, 4096, 'X').expect("written 4 @0+4096");
}

TEST(AgentLeaseTest, ASoftMountThatHasNotHeardOfItsHomeYetFailsToo) {
  AgentOptions options = remote();
  options.soft_ns = 3'000'000'000;
  AgentWorld w(options);
  w.stats(1).expect_nothing();
  EXPECT_EQ(w.ms_to_deadline(), 3000);
  w.later_ms(3000).expect("error 1 5");
}

// Nothing of what waits for memory is done.
TEST(AgentLeaseTest, ASoftMountDoesNotWaitForRoomEither) {
  AgentOptions options = remote();
  options.soft_ns = 3'000'000'000;
  options.dirty_max_bytes = 4096;
  AgentWorld w(options);
  w.renews_for_ms(7000).has_attributes(Exclusive, kSize).has(Exclusive, pages(0, 15));
  w.writes(1, 0, 4096, 'A').expect("written 1 @0+4096");
  w.writes(2, 4096, 4096, 'B').expect("flush @0+4096*A", "flush time");
  w.later_ms(7000).expect_nothing();
  w.later_ms(3000).expect("error 2 5");
}

// No program waits to be told a failure there: other nodes would not learn that this one watches.
TEST(AgentLeaseTest, ASoftMountTellsTheNextHomeWhatItWatches) {
  AgentOptions options = remote();
  options.soft_ns = 3'000'000'000;
  AgentWorld w(options);
  w.renews_for_ms(7000).has_attributes(Exclusive, kSize).has(Exclusive, pages(0, 15));
  w.opens(1, false).came();
  w.later_ms(7000).came();
  w.later_ms(3000).came();
  w.resets().came();
  w.renews_for_ms(7000).expect("ask Shared attributes");
}

TEST(AgentLeaseTest, AHardMountWaits) {
  AgentWorld w(remote());
  w.renews_for_ms(7000).has_attributes(Exclusive, kSize).has(Exclusive, pages(0, 15));
  w.later_ms(7000).writes(1, 0, 4096, 'W').expect_nothing();
  w.later_ms(3600'000).expect_nothing();
  w.interrupts(1).expect("error 1 4");
}

}  // namespace
}  // namespace vremote::coherence
