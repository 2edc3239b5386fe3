// Scenarios of files that grow while other kernels, or this one, may have them mapped (K16).
#include <fmt/format.h>

#include "coherence/agent.h"
#include "coherence/agent_test_world.h"

namespace vremote::coherence {
namespace {

using test::AgentWorld;
using test::pages;
using enum LeaseMode;

constexpr uint64_t kSize = kPageSize + 100;
constexpr uint64_t kMoment = 1;  // ms; AgentOptions::moment_ns

TEST(AgentGrowthTest, AWriteIntoANewPageIsAnsweredWhenAllKnow) {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize, true).has(Exclusive, PageRange::all());
  w.writes(1, 2 * kPageSize, 1, 'W').expect("announce 8193");
  w.reads(2, 2 * kPageSize, 10).expect("data 2 1*W");  // it is there, though
  w.recalls_attributes().expect_nothing();
  w.all_know().expect("written 1 @8192+1", "flush size 8193 time", "ack 0-0");
}

// No page more for a mapping, but sendfile(2) ends where the kernel thinks that the file does.
TEST(AgentGrowthTest, GrowthWithinTheLastPageIsAnnouncedToo) {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize, true).has(Exclusive, PageRange::all());
  w.writes(1, kSize, 1, 'W').expect("announce 4197");
  w.all_know().expect("written 1 @4196+1");
  w.writes(2, kSize, 1, 'W').expect("written 2 @4196+1");  // nothing more
}

TEST(AgentGrowthTest, AFileThatNobodyElseReadsGrowsWithoutAMessage) {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize).has(Exclusive, PageRange::all());
  w.writes(1, 2 * kPageSize, 1, 'W').expect("written 1 @8192+1");
  for (uint64_t i = 1; i <= 100; ++i)
    w.appends(i + 1, 2 * kPageSize + i, 1, 'W')
        .expect(fmt::format("written {} @{}+1", i + 1, 2 * kPageSize + i));
  EXPECT_EQ(w.agent.statistics().announcements, 0u);
}

TEST(AgentGrowthTest, WhenTheLastReaderIsGoneNoMoreIsAnnounced) {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize, true).has(Exclusive, PageRange::all());
  w.writes(1, 2 * kPageSize, 1, 'W').expect("announce 8193");
  w.all_know(false).expect("written 1 @8192+1");
  w.writes(2, 4 * kPageSize, 1, 'W').expect("written 2 @16384+1");
}

TEST(AgentGrowthTest, ARecallOfTheNewPageNeedNotWait) {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize, true).has(Exclusive, PageRange::all());
  w.writes(1, 2 * kPageSize, 1, 'W').expect("announce 8193");
  w.recalls(pages(2, 2)).expect("flush @8192+1*W size 8193", "ack 0-2");
  w.all_know().expect("written 1 @8192+1");
}

// Its own kernel learns the size from the answer, and not before. Found by the simulator (power,
// 4024764).
TEST(AgentGrowthTest, WhoOpensBeforeAWriteIsAnsweredIsShownItsSize) {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize, true).has(Exclusive, PageRange::all());
  w.writes(1, 2 * kPageSize, 1, 'W').expect("announce 8193");
  w.later_ms(2 * kMoment).expect_nothing();
  w.opens_slowly(2, false).expect("push size 8193");
  w.size_is_pushed().expect("opened 2");
  w.all_know().expect("written 1 @8192+1");
}

// A kernel that may keep the size shows its guess, which it takes for the size with the answer and
// for old a moment after. Found by the simulator (power, 4133517).
TEST(AgentGrowthTest, WhatTheKernelAskedForMeanwhileIsOldWhenAnAppendIsAnswered) {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize, true).has(Exclusive, PageRange::all());
  w.appends(1, 2 * kPageSize, 1, 'W').expect("announce 4197");
  w.stats(2).expect("attributes 2 size 4197");
  w.all_know().expect("drop attributes", "written 1 @4196+1");
}

// Otherwise it would be bounced as often as messages can be sent. Found by the simulator (power,
// 2096429).
TEST(AgentGrowthTest, WhatIsBouncedMeanwhileIsAskedForWhenAllKnow) {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize, true).has(Exclusive, pages(1, 2));
  w.writes(1, 2 * kPageSize, 1, 'W').expect("announce 8193");
  w.reads(2, 0, 10).expect("ask Shared 0-0 with data");
  w.recalls_attributes().expect_nothing();
  w.grants('-', {.error = EAGAIN}).expect_nothing();
  w.all_know().expect("written 1 @8192+1", "ask Shared 0-0 with data", "flush size 8193 time",
                      "ack 0-0");
}

TEST(AgentGrowthTest, AWriterThatIsKilledNeedNotWait) {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize, true).has(Exclusive, PageRange::all());
  w.writes(1, 2 * kPageSize, 1, 'W').expect("announce 8193");
  w.interrupts(1).expect("written 1 @8192+1");
  // One announcement at a time.
  w.writes(2, 4 * kPageSize, 1, 'W').expect_nothing();
  w.all_know().expect("announce 16385");
  w.all_know().expect("written 2 @16384+1");
}

void is_reset_while_it_announces(AgentWorld& w) {
  w.has_attributes(Exclusive, kSize, true).has(Exclusive, PageRange::all());
  w.writes(1, 2 * kPageSize, 1, 'W').expect("announce 8193");
  w.resets().expect("names lost", "flush @8192+1*W size 8193", "flush size 8193 time",
                    "ask Exclusive attributes");
}

// Those who were being told may not have heard of the reset yet, and go on with the old size: the
// home answers behind its grace, when they have. Found by the simulator (power, 2019474).
TEST(AgentGrowthTest, InAnotherSessionItIsAnnouncedAgain) {
  AgentWorld w;
  is_reset_while_it_announces(w);
  w.grants_attributes(2 * kPageSize + 1, Exclusive, true).expect("announce 8193");
  w.all_know().expect("written 1 @8192+1");
}

// What others announced in between was not announced here, and who opens it to write need not know.
// Found by the simulator (power, 4149460).
TEST(AgentGrowthTest, InAnotherSessionWhoReadsIsShownTheSizeAlthoughAWriterIsOpening) {
  AgentWorld w;
  w.has_attributes(Shared, kSize).opens(1, false).expect("opened 1");
  w.recalls_attributes().came();
  w.opens_for_writing(2).expect("ask Shared attributes");
  w.resets().expect("names lost", "ask Shared attributes", "ask Shared attributes");
  w.grants_attributes(2 * kPageSize, Shared).expect("opened 2", "push size 8192");
}

TEST(AgentGrowthTest, InAnotherSessionNobodyMayBeLeftToTell) {
  AgentWorld w;
  is_reset_while_it_announces(w);
  w.grants_attributes(2 * kPageSize + 1, Exclusive, false).expect("written 1 @8192+1");
}

TEST(AgentGrowthTest, OfAFileThatIsGoneInAnotherSessionNobodyIsTold) {
  AgentWorld w;
  is_reset_while_it_announces(w);
  w.grants_attributes(0, {}, false, ESTALE).expect("written 1 @8192+1");
}

TEST(AgentGrowthTest, OfAFileThatIsShorterInAnotherSessionNoMoreThanThatIsTold) {
  for (const uint64_t size : {uint64_t{0}, kPageSize}) {
    AgentWorld w;
    is_reset_while_it_announces(w);
    w.grants_attributes(size, Exclusive, true);
    if (size > 0) w.expect("announce 4096").all_know();
    w.expect("written 1 @8192+1");
  }
}

TEST(AgentGrowthTest, WhatWasAnnouncedBeforeAnotherSessionIsAnswered) {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize, true).has(Exclusive, PageRange::all());
  w.writes(1, 2 * kPageSize, 1, 'W').expect("announce 8193");
  w.interrupts(1).expect("written 1 @8192+1");
  w.resets().expect("names lost", "flush @8192+1*W size 8193", "flush size 8193 time");
}

TEST(AgentGrowthTest, TheOwnKernelIsToldWhereAnAppendReallyEnds) {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize).has(Exclusive, PageRange::all());
  w.opens(1, true).expect("opened 1");
  w.appends(2, kSize, kPageSize, 'W').expect("written 2 @4196+4096");
  w.appends(3, 10, kPageSize, 'W').expect("push size 12388");  // it guesses the end at 10
  w.size_is_pushed().expect("written 3 @8292+4096");
}

TEST(AgentGrowthTest, OnlyWhoReadsIsSaidToWatch) {
  AgentWorld w;
  w.has_attributes(Shared, kSize);
  w.opens_for_writing(1).expect("opened 1");
  w.recalls_attributes().expect("ack 0-0 in use");
}

TEST(AgentGrowthTest, ASizeIsShownByPushingIt) {
  AgentWorld w;
  w.has_attributes(Shared, kSize).opens(1, false).expect("opened 1");
  w.recalls_attributes().expect("ack 0-0 watches");
  w.shows(7, 3 * kPageSize).expect("push size 12288");
  w.size_is_pushed().expect("shown 7");
  w.shows(8, 2 * kPageSize).expect("shown 8");  // known already
}

TEST(AgentGrowthTest, WithoutAReaderASizeNeedNotBeShown) {
  AgentWorld w;
  w.shows(7, 3 * kPageSize).expect("shown 7");
  w.has_attributes(Shared, kSize).opens_for_writing(1).expect("opened 1");
  w.shows(8, 4 * kPageSize).expect("shown 8");
}

// The push raises the size, and then waits for the page of the new end.
TEST(AgentGrowthTest, APushThatIsHeldUpCountsWhenTheSizeIsSeen) {
  AgentWorld w;
  w.has_attributes(Shared, kSize).opens(1, false).expect("opened 1");
  w.recalls_attributes().expect("ack 0-0 watches");
  w.shows(7, 3 * kPageSize).expect("push size 12288");
  w.fills(2, pages(2, 2)).expect("ask Shared attributes");  // may wait for who announces
  w.later_ms(kMoment).expect("look for size 12288");
  w.size_is_pushed().expect("shown 7");
  w.grants_attributes(3 * kPageSize).expect("ask Shared 2-2 with data");
  w.grants('A').expect("data 2 4096*A");
}

TEST(AgentGrowthTest, APushThatIsNeitherDoneNorSeenIsNotWaitedForForEver) {
  AgentWorld w;
  w.has_attributes(Shared, kSize).opens(1, false).expect("opened 1");
  w.shows(7, 3 * kPageSize).expect("push size 12288");
  w.later_ms(kMoment).expect("look for size 12288");
  w.later_ms(500).expect_nothing();
  w.later_ms(500).expect("shown 7");
}

TEST(AgentGrowthTest, WhatWasWrittenHereIsKnownAMomentLater) {
  AgentWorld w;
  w.has_attributes(Exclusive, 0).has(Exclusive, PageRange::all());
  w.writes(1, 0, 4096, 'W').expect("written 1 @0+4096");
  w.opens_slowly(2, false).expect("push size 4096");
  w.later_ms(kMoment).expect("look for size 4096");
  w.size_is_pushed().expect("opened 2");
  w.writes(3, 4096, 4096, 'W').expect("written 3 @4096+4096");
  w.later_ms(kMoment).expect_nothing();
  w.opens_slowly(4, false).expect("opened 4");
}

// Another node has cut the file since. Found by the simulator (power, 2105023).
TEST(AgentGrowthTest, WhatWasWrittenHereIsNotKnownBehindASmallerAnswer) {
  AgentWorld w;
  w.has_attributes(Exclusive, 0).has(Exclusive, PageRange::all());
  w.writes(1, 0, 3 * kPageSize, 'W').expect("written 1 @0+12288");
  w.later_ms(2).recalls_attributes().expect("flush size 12288 time", "ack 0-0");
  w.stats(2).expect("ask Shared attributes");
  w.grants_attributes(0).expect("attributes 2 size 0");
  w.opens(3, false).expect("opened 3");
  w.recalls_attributes().expect("drop attributes", "ack 0-0 watches");
  w.shows(7, kPageSize).expect("push size 4096");
}

TEST(AgentGrowthTest, AKernelThatHasForgottenTheFileKnowsNoSize) {
  AgentWorld w;
  w.has_attributes(Shared, 3 * kPageSize);
  w.stats(1).expect("attributes 1 size 12288").later_ms(2);
  w.opens_slowly(2, false).expect("opened 2");
  w.forgets().expect_nothing();  // the close is on its way
  w.opens_slowly(3, false).expect("push size 12288");
}

TEST(AgentGrowthTest, AnOpenWaitsUntilTheKernelKnowsTheSize) {
  AgentWorld w;
  w.has_attributes(Shared, kSize);
  w.stats(1).expect("attributes 1 size 4196").later_ms(2);
  w.opens_slowly(2, false).expect("opened 2");
  w.closes(false).expect_nothing();
  w.recalls_attributes().expect("drop attributes", "ack 0-0");
  w.opens_slowly(3, false).expect("ask Shared attributes");
  w.grants_attributes(3 * kPageSize).expect("push size 12288");
  w.size_is_pushed().expect("opened 3");
}

// The answer is void when the inode changes before its asker has taken it in.
TEST(AgentGrowthTest, WhatWasJustAnsweredIsNotTakenForKnownWhenTheInodeChanges) {
  AgentWorld w;
  w.has_attributes(Shared, kSize);
  w.stats(1).expect("attributes 1 size 4196");
  w.recalls_attributes().expect("drop attributes", "ack 0-0");
  w.opens_slowly(2, false).expect("ask Shared attributes");
  w.grants_attributes(kSize).expect("push size 4196");
  w.size_is_pushed(false).expect("opened 2");
}

TEST(AgentGrowthTest, BehindTheAnswerToASetattrASizeIsPushedAMomentLater) {
  AgentWorld w;
  w.has_attributes(Shared, kSize).opens(1, false).expect("opened 1");
  w.recalls_attributes().expect("ack 0-0 watches");
  w.sets_attributes(kSize).expect_nothing();  // chmod, say
  w.shows(7, 3 * kPageSize).expect_nothing();
  w.later_ms(kMoment).expect("push size 12288");
  w.size_is_pushed().expect("shown 7");
}

TEST(AgentGrowthTest, BehindTheAnswerToASetattrASizeIsPushedWhenTheLockHasBeenFree) {
  AgentOptions options;
  options.settle_ns = 100'000'000;
  AgentWorld w(options);
  w.has_attributes(Shared, kSize).opens(1, false).expect("opened 1");
  w.recalls_attributes().expect("ack 0-0 watches");
  w.sets_attributes(kSize).expect("settle size 4196 behind the truncation");
  w.shows(7, 3 * kPageSize).expect_nothing();
  w.later_ms(50).expect_nothing();
  w.settle_ends().expect("push size 12288");
  w.size_is_pushed().expect("shown 7");
}

TEST(AgentGrowthTest, AFileThatIsReadIsWatchedAgainInTheNextSession) {
  AgentWorld w;
  w.has_attributes(Shared, kSize).opens(1, false).expect("opened 1");
  w.resets().expect("names lost", "ask Shared attributes");
  w.grants_attributes(3 * kPageSize).expect("push size 12288");
  w.size_is_pushed().expect_nothing();
  w.recalls_attributes().expect("ack 0-0 watches");
}

}  // namespace
}  // namespace vremote::coherence
