// Scenarios of one agent (agent_test.cc): sizes, truncations and what a kernel knows of them.
#include <cerrno>
#include <memory>

#include "coherence/agent.h"
#include "coherence/agent_test_world.h"

namespace vremote::coherence {
namespace {

using test::AgentWorld;
using test::pages;
using test::pages_from;
using enum LeaseMode;

constexpr uint64_t kSize = 16 * kPageSize;  // of the file in most scenarios

// ---- sizes: K16

TEST(AgentTest, AReadEndsAtTheTrueEndOfTheFile) {
  AgentWorld w;
  w.has(Shared, PageRange::all());
  w.reads(1, 4096, 8192).expect("ask Shared attributes");
  w.grants_attributes(5000).expect("fetch 1-2");
  w.serves_fetch('A').expect("data 1 904*A");
  w.reads(2, 8192, 100).expect("data 2 end");
}

TEST(AgentTest, AFillBehindTheEndIsShort) {
  AgentWorld w;
  w.has_attributes(Shared, 5000).has(Shared, PageRange::all());
  w.fills(1, pages(1, 1)).expect("fetch 1-1");
  w.serves_fetch('A').expect("data 1 904*A");
}

TEST(AgentTest, WithTheAttributesGoesThePageWithTheEndInIt) {
  AgentWorld w;
  w.has_attributes(Exclusive, 5000).has(Shared, PageRange::all()).cached(pages(0, 1), 'A');
  w.recalls_attributes().expect(
      "purge 1-1");  // another node may make the file longer; page 0 stays good
  w.returns(pages(1, 1)).expect("ack 0-0");
  EXPECT_EQ(w.agent.counts().resident_pages, 1u);
}

TEST(AgentTest, AttributesStayWhileAnAnswerDependsOnThem) {
  AgentWorld w;
  w.has_attributes(Exclusive, 5000);
  w.fills(1, pages(1, 1)).expect("ask Shared 1-1 with data");
  w.recalls_attributes().expect_nothing();
  w.grants('A').expect("data 1 904*A");
  w.later_ms(2).expect("purge 1-1");
  w.returns(pages(1, 1)).expect("ack 0-0");
}

TEST(AgentTest, TheHomeHearsOfANewSizeWithTheAck) {
  AgentWorld w;
  w.has_attributes(Exclusive, 0).has(Exclusive, PageRange::all());
  w.writes(1, 0, 5000, 'W').expect("written 1 @0+5000");
  w.recalls_attributes().expect("flush size 5000 time", "ack 0-0");
}

TEST(AgentTest, WhoGivesUpOnlyTheRightToChangeTheAttributesStillTellsThem) {
  AgentWorld w;
  w.has_attributes(Exclusive, 0).has(Exclusive, PageRange::all());
  w.writes(1, 0, 4096, 'W').expect("written 1 @0+4096");
  w.recalls_attributes(Shared).discard();
  w.stats(2).expect("attributes 2 size 4096");
}

TEST(AgentTest, ALargerSizeIsPushedIntoTheKernelBeforeItIsTold) {
  AgentWorld w;
  w.has_attributes(Shared, 5000);
  w.stats(1).expect("attributes 1 size 5000");
  w.recalls_attributes().expect("drop attributes", "ack 0-0");
  w.stats(2).expect("ask Shared attributes");
  w.grants_attributes(9000).expect("push size 9000");  // the answer alone could be thrown away
  w.recalls_attributes().expect("ack 0-0");            // nobody waits for the push
  w.size_is_pushed().expect("attributes 2 size 9000");
}

TEST(AgentTest, ASizeTheKernelKnowsIsNotPushed) {
  AgentWorld w;
  w.has_attributes(Exclusive, 5000).has(Exclusive, PageRange::all());
  w.stats(1).expect("attributes 1 size 5000");
  w.writes(2, 5000, 100, 'W').expect("drop attributes", "written 2 @5000+100");
  w.later_ms(1).expect_nothing();  // nothing that was asked before is on its way any more
  w.stats(3).expect("attributes 3 size 5100");
  w.truncates(4, 10).expect("truncate 4");
  w.truncation_done(10).expect_nothing();
  w.stats(5).expect("attributes 5 size 10");
}

TEST(AgentTest, AnAppendElsewhereThanTheKernelThinksIsPushed) {
  AgentWorld w;
  w.has_attributes(Exclusive, 5000).has(Exclusive, PageRange::all());
  w.stats(1).expect("attributes 1 size 5000");
  w.recalls_attributes().expect("drop attributes", "ack 0-0");
  w.appends(2, 5000, 10, 'R').expect("ask Exclusive attributes");
  w.grants_attributes(8000).expect("written 2 @8000+10");  // the kernel takes 5010 for the end
  w.stats(3).expect("push size 8010");
  w.size_is_pushed().expect("attributes 3 size 8010");
}

// Seed 20174 of the simulator: only acks of flushes let a throttled writer go on.
TEST(AgentTest, AThrottledWriterGoesOnWhenATruncationDropsTheBytes) {
  AgentOptions options;
  options.dirty_max_bytes = 4096;
  options.flush_window_bytes = 0;
  AgentWorld w(options);
  w.has_attributes(Exclusive, kSize).has(Exclusive, PageRange::all());
  w.writes(1, 8192, 8192, 'W').expect("written 1 @8192+8192");
  w.truncates(2, 0).expect("truncate 2");
  w.writes(3, 0, 100, 'X').expect_nothing();
  w.truncation_done(0).expect("flush time", "written 3 @0+100");
}

// ---- sizes the kernel may have too large (kernel_size.h)

AgentOptions with_settling() {
  AgentOptions options;
  options.settle_ns = 100'000'000;
  return options;
}

TEST(AgentTest, AShortAnswerWaitsUntilTheKernelHasNoLargerSize) {  // Z2
  AgentWorld w(with_settling());
  w.has_attributes(Exclusive, 8192).has(Exclusive, PageRange::all());
  w.stats(1).expect("attributes 1 size 8192");
  w.recalls_attributes().expect("drop attributes", "ack 0-0");  // another node truncates
  w.fills(2, pages(2, 2)).expect("ask Shared attributes");
  w.grants_attributes(100).expect("settle size 100");
  w.asks_itself(3).expect("attributes 3 size 100");
  w.size_is_settled().expect("data 2 end");
  w.settle_ends().expect_nothing();
}

TEST(AgentTest, ASmallerSizeIsToldWhenTheKernelHasTakenItIn) {  // Z2: or a program's stat would cut
  AgentWorld w(with_settling());
  w.has_attributes(Exclusive, 8192).has(Exclusive, PageRange::all());
  w.stats(1).expect("attributes 1 size 8192");
  w.recalls_attributes().expect("drop attributes", "ack 0-0");
  w.stats(2).expect("ask Shared attributes");
  w.grants_attributes(100).expect("settle size 100");
  w.size_is_settled().expect("attributes 2 size 100");
}

TEST(AgentTest, WhileTheKernelCutsTheSizeStays) {  // Z3
  AgentWorld w(with_settling());
  w.has_attributes(Exclusive, 8192).has(Exclusive, PageRange::all());
  w.truncates(1, 100).expect("truncate 1");
  w.truncation_done(100).expect("settle size 100 behind the truncation");
  w.recalls_attributes().expect_nothing();
  w.size_is_settled().expect_nothing();
  w.settle_ends().expect("ack 0-0");
}

TEST(AgentTest, AWriterThatArrivesProvesThatATruncationIsThrough) {  // both hold the inode's lock
  AgentWorld w(with_settling());
  w.has_attributes(Exclusive, 8192).has(Exclusive, PageRange::all());
  w.truncates(1, 100).expect("truncate 1");
  w.truncation_done(100).expect("settle size 100 behind the truncation");
  w.writes(2, 100, 50, 'W').expect("written 2 @100+50");
}

// ---- K19: what the kernel judges by

TEST(AgentTest, ANewModeIsToldWhenTheKernelHasTakenItIn) {
  AgentWorld w(with_settling());
  w.has_attributes(Shared, 100);
  w.stats(1).expect("attributes 1 size 100");
  w.recalls_attributes().expect("drop attributes", "ack 0-0");  // another node changes the mode
  w.stats(2).expect("ask Shared attributes");
  w.mode_is(0600).grants_attributes(100).expect("settle mode 100600");
  w.recalls_attributes().expect_nothing();  // the answer is still due
  w.asks_itself(3).expect("attributes 3 size 100");
  w.size_is_settled().expect("attributes 2 size 100", "ack 0-0");
  // The same mode again needs no such care.
  w.stats(4).expect("ask Shared attributes");
  w.grants_attributes(100).expect("attributes 4 size 100");
}

TEST(AgentTest, NobodyWaitsForAModeForever) {
  AgentWorld w(with_settling());
  w.has_attributes(Shared, 100);
  w.stats(1).expect("attributes 1 size 100");
  w.recalls_attributes().expect("drop attributes", "ack 0-0");
  w.stats(2).expect("ask Shared attributes");
  w.mode_is(0600).grants_attributes(100).expect("settle mode 100600");
  w.later_ms(100).expect("attributes 2 size 100");
}

TEST(AgentTest, NobodyWaitsForASizeForever) {  // Z4
  AgentWorld w(with_settling());
  w.has_attributes(Exclusive, 8192).has(Exclusive, PageRange::all());
  w.truncates(1, 100).expect("truncate 1");
  w.truncation_done(100).expect("settle size 100 behind the truncation");
  w.recalls_attributes().expect_nothing();
  w.later_ms(100).expect("ack 0-0");
}

TEST(AgentTest, WithoutALeaseTheAgentsOwnQuestionIsNotKeptWaiting) {
  AgentWorld w(with_settling());
  w.asks_itself(1).expect("error 1 11");
}

// ---- files in use

TEST(AgentTest, WhatTheKernelKeepsOfTheAttributesGoesBeforeTheirLease) {
  AgentWorld w;
  w.has_attributes(Shared, kSize);
  w.stats(1).expect("attributes 1 size 65536");
  w.recalls_attributes().expect("drop attributes", "ack 0-0");
  w.has_attributes(Shared, kSize);
  w.recalls_attributes().expect("ack 0-0");  // it has asked for none since
}

TEST(AgentTest, ALongerFileMakesTheKernelAskForItsSizeBeforeTheWriteIsAnswered) {
  AgentWorld w;
  w.has_attributes(Exclusive, 5000).has(Exclusive, PageRange::all());
  w.stats(1).expect("attributes 1 size 5000");
  w.writes(2, 5000, 100, 'W').expect("drop attributes", "written 2 @5000+100");
}

TEST(AgentTest, AWriteBackMakesTheKernelAskForTheTimesAnew) {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize).has(Exclusive, PageRange::all()).cached(pages(0, 0), 'A');
  w.opens(1, true).expect("opened 1");
  w.stats(2).expect("attributes 2 size 65536");
  w.writes_back(0, 'M').expect("drop attributes");
  w.writes_back(0, 'N').expect_nothing();
}

TEST(AgentTest, AfterAWriteBackNobodyKeepsTheTimesWhenFsyncReturns) {
  AgentWorld w;
  w.has_attributes(Shared, kSize).has(Exclusive, PageRange::all()).cached(pages(0, 0), 'A');
  w.opens(1, true).expect("opened 1");
  w.writes_back(0, 'M').expect_nothing();
  w.syncs(2).expect("flush @0+4096*M", "flush time", "ask Update attributes");
  w.acks_flush().expect_nothing();
  w.acks_flush().expect_nothing();
  w.grants_attributes(kSize).expect("flushed 2");
  w.writes_back(0, 'N').expect_nothing();
  w.syncs(3).expect("flush @0+4096*N", "flush time");  // whoever looks recalls them from here
  w.acks_flush().expect_nothing();
  w.acks_flush().expect("flushed 3");
}

TEST(AgentTest, WithTheAttributesGoTheBytesThatGiveTheFileItsBlocks) {
  const auto world = [](bool has_blocks, LeaseMode to) {
    auto w = std::make_unique<AgentWorld>();
    if (!has_blocks) w->has_no_blocks();
    w->has_attributes(Exclusive, 0).has(Exclusive, PageRange::all());
    w->writes(1, 0, 4096, 'W').discard();
    w->recalls_attributes(to);
    return w;
  };
  // Somebody looks, or the file has no blocks at all yet.
  world(true, Shared)->expect("flush @0+4096*W size 4096", "flush size 4096 time", "ack 0-0");
  world(false, None)->expect("flush @0+4096*W size 4096", "flush size 4096 time", "ack 0-0");
  // A writer's turn.
  world(true, None)->expect("flush size 4096 time", "ack 0-0");
}

// Where bytes were written, at most what they may take; when the disk has them, what they took.
TEST(AgentTest, TheBlocksAreTheDisksWhenAllIsFlushed) {
  AgentWorld w;
  w.has_attributes(Exclusive, 0).has(Exclusive, PageRange::all());
  w.writes(1, 5 * kPageSize, 4096, 'W').expect("written 1 @20480+4096");
  w.stats(2).expect("attributes 2 size 24576");
  EXPECT_EQ(w.told_blocks, 16u);  // what it had, and a page
  w.syncs(3).expect("flush @20480+4096*W size 24576", "flush size 24576 time");
  w.acks_flush(0, 24).expect("drop attributes");  // the kernel may keep what was guessed
  w.acks_flush(0, 24).expect("flushed 3");
  w.stats(4).expect("attributes 4 size 24576");
  EXPECT_EQ(w.told_blocks, 24u);
}

TEST(AgentTest, TheHomeHearsThatAFileIsOpenAndWhenNoLonger) {
  AgentWorld w;
  w.opens(1, false).expect("ask Shared attributes");
  w.grants_attributes(kSize).expect("push size 65536");
  w.size_is_pushed().expect("opened 1");
  w.recalls_attributes().expect("ack 0-0 watches");
  w.opens(2, false).expect("ask Shared attributes");
  w.grants_attributes(kSize).expect("opened 2");
  w.closes(false).expect_nothing();
  w.closes(false).expect("release of the last open");
}

TEST(AgentTest, AFileThatWasGoneBeforeItsOpenIsNotOpened) {
  AgentWorld w;
  w.opens(1, false).expect("ask Shared attributes");
  w.opens(2, false).expect("ask Shared attributes");
  w.loses_its_last_name().grants_attributes(kSize).expect("tell of the open", "tell of the open");
  w.open_is_told(false).expect("error 1 116");
  w.open_is_told(false).expect("error 2 116");
  w.closes(false).expect_nothing();
  w.closes(false).expect_nothing();
}

TEST(AgentTest, AFileThatTheHomeStillHasIsOpenedWithoutAName) {
  AgentWorld w;
  w.opens(1, false).expect("ask Shared attributes");
  w.loses_its_last_name().grants_attributes(kSize).expect("tell of the open");
  // Nobody waits for the answer, nor does the answer wait for anybody.
  w.recalls_attributes().expect("ack 0-0 watches", "ask Shared attributes");
  w.grants_attributes(kSize).expect_nothing();
  w.open_is_told(true).expect("push size 65536");
  w.size_is_pushed().expect("opened 1");
  w.opens(2, false).expect("opened 2");
  w.closes(false).expect_nothing();
  w.closes(false).expect("release of the last open");
}

TEST(AgentTest, AnOpenThatWasToldToAnEarlierSessionIsToldAgain) {
  AgentWorld w;
  w.opens(1, false).expect("ask Shared attributes");
  w.loses_its_last_name().grants_attributes(kSize).expect("tell of the open");
  w.resets().expect("names lost", "ask Shared attributes");
  w.open_is_told(true).expect_nothing();
  w.grants_attributes(kSize).expect("tell of the open");
  w.open_is_told(false).expect("error 1 116");
}

TEST(AgentTest, AFileThatIsMadeWithoutANameIsOpen) {
  AgentWorld w;
  w.loses_its_last_name();
  w.opens_nameless(1).expect("ask Shared attributes");
  w.grants_attributes(kSize).expect("push size 65536");
  w.size_is_pushed().expect("opened 1");
  w.closes(false).expect("release of the last open");
}

TEST(AgentTest, AFileThatLosesItsNameWhileOpenIsOpenedAgain) {
  AgentWorld w;
  w.opens(1, false).expect("ask Shared attributes");
  w.grants_attributes(kSize).expect("push size 65536");
  w.size_is_pushed().expect("opened 1");
  w.recalls_attributes().expect("ack 0-0 watches");
  w.opens(2, false).expect("ask Shared attributes");
  w.loses_its_last_name().grants_attributes(kSize).expect("opened 2");
  w.closes(false).expect_nothing();
  w.closes(false).expect("release of the last open");
}

// ---- truncation: K8

TEST(AgentTest, TruncateHoldsFlushes) {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize).has(Exclusive, PageRange::all());
  w.writes(1, 0, 4096, 'W').expect("written 1 @0+4096");
  w.truncates(2, 100).expect("truncate 2");
  w.later_ms(10'000)
      .expect_nothing();  // a flush could land behind the truncation and bring cut bytes back
  w.truncation_done(100).expect_nothing();
  w.reads(3, 0, 4096).expect("data 3 100*W");
  w.later_ms(10'000).expect("flush @0+100*W", "flush time");
}

TEST(AgentTest, ATruncationWaitsForFlushesUnderWay) {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize).has(Exclusive, PageRange::all());
  w.writes(1, 0, 4096, 'W').expect("written 1 @0+4096");
  w.syncs(2).expect("flush @0+4096*W", "flush time");
  w.truncates(3, 0).expect_nothing();
  w.acks_flush().expect_nothing();
  w.acks_flush().expect("flushed 2", "truncate 3");
  w.truncation_done(0).expect_nothing();
}

TEST(AgentTest, PagesBeyondTheNewEndAreGoneBeforeTheTruncation) {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize).has(Exclusive, PageRange::all()).cached(pages(0, 3), 'A');
  w.truncates(1, 5000).expect("purge 1-3");
  w.returns(pages(1, 3)).expect("truncate 1");
  w.truncation_done(5000).expect_nothing();
}

TEST(AgentTest, WithAMappingThePagesATruncationCutsAreDroppedBehindIt) {
  // Its write-backs are held before: a purge could not end.
  AgentWorld w;
  w.has_attributes(Exclusive, kSize).has(Exclusive, PageRange::all()).cached(pages(0, 3), 'A');
  w.opens(1, true).expect("opened 1");
  w.truncates(2, 5000).expect("truncate 2");
  w.truncation_done(5000).expect("purge 1-3");
}

// What a mapping has stored behind the end must not become bytes of the file.
TEST(AgentTest, AWriteBehindTheEndWaitsForThePageWithTheEndInIt) {
  AgentWorld w;
  w.has_attributes(Exclusive, 5000).has(Exclusive, PageRange::all()).cached(pages(0, 1), 'A');
  w.opens(1, true).expect("opened 1");
  w.writes(2, 12288, 100, 'W').expect("purge 1-1");
  w.returns(pages(1, 1)).expect("written 2 @12288+100");
}

TEST(AgentTest, AWriteBehindTheEndOfAFileThatNobodyMapsWaitsForNothing) {
  AgentWorld w;
  w.has_attributes(Exclusive, 5000).has(Exclusive, PageRange::all()).cached(pages(0, 1), 'A');
  w.writes(2, 12288, 100, 'W').expect("written 2 @12288+100");
}

// K20: until it is overwritten with zeroes.
TEST(AgentTest, ALongerFileShowsNothingOfWhatWasStoredBehindItsEnd) {
  AgentWorld w;
  w.has_attributes(Exclusive, 5000).has(Exclusive, PageRange::all()).cached(pages(0, 1), 'A');
  w.opens(1, true).expect("opened 1");
  w.truncates(2, 12288).expect("truncate 2");
  EXPECT_TRUE(w.tail_is_shown(5000, 12288));
  w.stats(3).reads(4, 0, 4096).expect_nothing();
  w.recalls(pages(1, 1)).expect_nothing();
  w.truncation_done(12288);
  w.expect("push size 12288", "fetch 0-0", "purge 1-1");
}

TEST(AgentTest, NorOfWhatAPurgeThatIsStuckWritesBack) {
  AgentWorld w;
  w.has_attributes(Exclusive, 5000).has(Exclusive, PageRange::all()).cached(pages(0, 1), 'A');
  w.opens(1, true).expect("opened 1");
  w.recalls(pages(0, 1)).expect("purge 0-1");
  w.truncates(2, 12288).expect("truncate 2");
  EXPECT_FALSE(w.tail_is_shown(5000, 12288)) << "it has the page's lock";
  w.truncation_done(12288).came();
  w.stats(3).expect_nothing();
  w.writes_back(1, 'Z').came();
  w.returns(pages(0, 1));
  EXPECT_THAT(w.came(), testing::Contains(testing::StartsWith("flush @4096")));
}

// It may have passed by the page, which was filled meanwhile.
TEST(AgentTest, AndThePageOfAFillThatWasAnsweredBesideThatPurgeIsPurgedOnceMore) {
  AgentWorld w;
  w.has_attributes(Exclusive, 9000).has(Exclusive, PageRange::all()).cached(pages(0, 2), 'A');
  w.opens(1, true).expect("opened 1");
  w.truncates(2, 5000).expect("truncate 2");
  w.truncation_done(5000).expect("purge 1-2");
  w.fills(3, pages(1, 1)).expect("purge 2-2");
  w.later_ms(2).came();
  w.truncates(4, 12288).expect("fetch 1-1", "truncate 4");
  w.serves_fetch('A').expect("data 3 904*A");
  EXPECT_FALSE(w.tail_is_shown(5000, 12288));
  w.truncation_done(12288).came();
  w.writes(5, 0, 100, 'W').came();
  w.returns(pages(2, 2)).came();
  w.returns(pages(1, 2)).came();
  w.returns(pages(1, 1)).expect("purge 0-0");  // now the write goes on
}

// The recall waits for the page to be overwritten, which waits for the fill's lock on it.
TEST(AgentTest, AFillOfThatPageWaitsForNoRecall) {
  AgentWorld w;
  w.has_attributes(Exclusive, 5000).has(Exclusive, PageRange::all()).cached(pages(0, 1), 'A');
  w.opens(1, true).expect("opened 1");
  w.truncates(2, 12288).expect("truncate 2");
  EXPECT_TRUE(w.tail_is_shown(5000, 12288));
  w.recalls_attributes().expect_nothing();
  w.fills(3, pages(1, 1)).expect("fetch 1-1");
  w.serves_fetch('A').came();
  EXPECT_THAT(w.came(), testing::IsEmpty());
}

TEST(AgentTest, WhereNothingCanBeStoredBehindTheEndNothingIsOverwritten) {
  AgentWorld w;
  w.has_attributes(Exclusive, 5000).has(Exclusive, PageRange::all()).cached(pages(0, 1), 'A');
  w.truncates(2, 12288).expect("truncate 2");
  EXPECT_FALSE(w.tail_is_shown(5000, 12288)) << "nobody can store anything";
  w.truncation_done(12288).came();
  w.opens(3, true).came();
  w.truncates(4, 20000).expect("truncate 4");
  EXPECT_FALSE(w.tail_is_shown(12288, 20000)) << "the end is that of a page";
  EXPECT_FALSE(w.tail_is_shown(22000, 20000)) << "it is shorter now";
  EXPECT_FALSE(w.tail_is_shown(13000, 20000)) << "the page is not cached";
}

TEST(AgentTest, WhileCutPagesMayBeShownNobodyLearnsTheNewSize) {  // K16
  AgentWorld w;
  w.has_attributes(Exclusive, kSize).has(Exclusive, PageRange::all()).cached(pages(0, 3), 'A');
  w.opens(1, true).expect("opened 1");
  w.truncates(2, 5000).expect("truncate 2");
  w.truncation_done(5000).expect("purge 1-3");
  w.recalls_attributes().expect_nothing();
  w.stats(3).expect_nothing();
  w.reads(4, 0, 4096).expect_nothing();
  w.returns(pages(1, 3)).expect("fetch 0-0", "ack 0-0 watches", "ask Shared attributes");
  w.serves_fetch('A').expect("data 4 4096*A");
  w.grants_attributes(5000).expect("attributes 3 size 5000");
}

// Found by hammering real mounts: the fill kept the Attributes that the truncation needed, and
// waited for it.
TEST(AgentTest, AFillThatWaitsForATruncationDoesNotKeepTheAttributes) {
  AgentWorld w;
  w.has_attributes(Exclusive, 5000);
  w.fills(1, pages(1, 1))
      .expect("ask Shared 1-1 with data");  // the end is in it: the size must hold still
  w.truncates(2, 100).expect("truncate 2");
  w.recalls_attributes().expect("ack 0-0");
  w.grants('A').expect_nothing();
  w.truncation_done(100).expect("ask Shared attributes");
  w.grants_attributes(100).expect_nothing();  // the kernel may not know its new size yet
  w.later_ms(1).expect("data 1 end");
}

TEST(AgentTest, AShortAnswerWaitsUntilTheKernelHasTakenInOurTruncation) {
  AgentWorld w;
  w.has_attributes(Exclusive, 5000).has(Exclusive, PageRange::all());
  w.truncates(1, 0).expect("truncate 1");
  w.truncation_done(0).expect_nothing();
  w.fills(2, pages(0, 0)).expect_nothing();
  EXPECT_EQ(w.ms_to_deadline(), 1);
  w.later_ms(1).expect("data 2 end");
}

TEST(AgentTest, ARecallThatWaitsForATruncationOfOursIsReportedBusy) {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize).has(Exclusive, PageRange::all()).cached(pages(0, 3), 'A');
  w.opens(1, true).expect("opened 1");
  w.truncates(2, 5000).expect("truncate 2");
  w.recalls(pages(2, 2))
      .expect("purge 2-2");  // it cannot end: the kernel holds the page's write-back
  EXPECT_EQ(w.ms_to_deadline(), 5);
  w.later_ms(5).expect("busy 2-2");
  w.later_ms(5).expect_nothing();  // said once
  w.truncation_done(5000).expect("purge 1-1", "purge 3-3");
  w.returns(pages(2, 2)).expect("ack 2-2");
}

TEST(AgentTest, ABouncedRequestLetsGoOfTheAttributesAndAsksAnew) {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize);
  w.writes(1, 0, 4096, 'W').expect("ask Exclusive 0-0");
  w.recalls_attributes().expect_nothing();  // kept for the write
  w.grants('-', {.error = EAGAIN}).expect("ack 0-0", "ask Update attributes");
  w.grants_attributes(kSize).expect("ask Exclusive 0-0");
  w.grants('-').expect("written 1 @0+4096");
}

TEST(AgentTest, ABounceThatComesTooLateTakesNothingFromAWriteThatIsBeingDone) {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize).has(Shared, pages(0, 0)).cached(pages(0, 0), 'A');
  w.writes(1, 0, 4096, 'W').expect("ask Exclusive 0-0");
  w.offers(PageRange::all(), Exclusive).expect("purge 0-0");
  w.recalls_attributes().expect_nothing();
  w.grants('-', {.error = EAGAIN}).expect_nothing();
  w.returns(pages(0, 0)).expect("written 1 @0+4096", "flush time", "ack 0-0");
}

TEST(AgentTest, AFailedTruncationLosesNothing) {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize).has(Exclusive, PageRange::all());
  w.writes(1, 8192, 4096, 'W').expect("written 1 @8192+4096");
  w.truncates(2, 100).expect("truncate 2");
  w.truncation_done(100, false).expect_nothing();
  w.reads(3, 8192, 4096).expect("data 3 4096*W");
}

}  // namespace
}  // namespace vremote::coherence
