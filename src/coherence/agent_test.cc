// Scenarios of one agent, one or more for each rule of docs/kernel_cache.md that the agent keeps.
#include "coherence/agent.h"

#include <cerrno>
#include <memory>

#include "coherence/agent_test_world.h"

namespace vremote::coherence {
namespace {

using test::AgentWorld;
using test::pages;
using test::pages_from;
using enum LeaseMode;

constexpr uint64_t kSize = 16 * kPageSize;  // of the file in most scenarios

// ---- what needs no message
// ------------------------------------------------------------------------------------------------------

TEST(AgentTest, TheFirstReadBringsALeaseAndTheNextOneOnlyBytes) {
  AgentWorld w;
  w.fills(1, pages(0, 0)).expect("ask Shared attributes");
  w.grants_attributes(kSize, Exclusive).expect("ask Shared 0-0 with data");
  w.grants('A', {.mode = Exclusive, .range = PageRange::all()}).expect("data 1 4096*A");
  w.fills(2, pages(1, 2)).expect("fetch 1-2");
  w.serves_fetch('B').expect("data 2 8192*B");
}

TEST(AgentTest, WritesUnderExclusiveNeedNoMessageAndAreReadBack) {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize).has(Exclusive, PageRange::all());
  w.writes(1, 0, 4096, 'W').expect("written 1 @0+4096");
  w.reads(2, 0, 4096).expect("data 2 4096*W");
  EXPECT_EQ(w.agent.statistics().hits_without_message, 2u);
}

TEST(AgentTest, AWriteGoesThroughAtOnceOnlyWhereNothingWaitsAndNothingIsCached) {
  AgentWorld w;
  const Bytes page = test::repeated('W', kPageSize);
  const auto goes = [&](uint64_t at) {
    return w.agent.write_now({}, {.file = w.file, .offset = at * kPageSize, .bytes = page.view()})
        .has_value();
  };
  EXPECT_FALSE(goes(0)) << "no lease";
  w.has_attributes(Exclusive, kSize).has(Exclusive, pages(0, 3)).cached(pages(0, 0), 'A');
  EXPECT_FALSE(goes(0)) << "cached";
  EXPECT_TRUE(goes(1));
  EXPECT_FALSE(goes(4)) << "not leased";
  w.recalls(pages(0, 0)).expect("purge 0-0");
  EXPECT_FALSE(goes(1)) << "a recall waits";
  w.returns(pages(0, 0)).expect("ack 0-0");
  w.reads(1, 4 * kPageSize, 4096).expect("ask Shared 4-4 with data");
  EXPECT_FALSE(goes(1)) << "a request waits";
}

TEST(AgentTest, APartlyWrittenPageIsReadOverTheHomesBytes) {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize).has(Exclusive, PageRange::all());
  w.writes(1, 100, 50, 'W').expect("written 1 @100+50");
  w.reads(2, 0, 4096).expect("fetch 0-0");
  w.serves_fetch('A').expect("data 2 100*A 50*W 3946*A");
}

TEST(AgentTest, ALeaseThatComesUnaskedIsUsed) {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize);
  w.stats(1).expect("attributes 1 size 65536");
}

// ---- recalls of data: K3, K4, K5
// ------------------------------------------------------------------------------------------------

TEST(AgentTest, ARecallOfCachedPagesIsAckedAfterTheirPurge) {
  AgentWorld w;
  w.has_attributes(Shared, kSize).has(Shared, PageRange::all()).cached(pages(0, 3), 'A');
  w.recalls(pages(0, 3)).expect("purge 0-3");
  w.returns(pages(0, 3)).expect("ack all");
  EXPECT_EQ(w.held(0), None);
}

TEST(AgentTest, WithNothingCachedARecallIsAckedAtOnce) {
  AgentWorld w;
  w.has(Exclusive, PageRange::all());
  w.recalls(pages(5, 5)).expect("ack all");
}

TEST(AgentTest, RecallDuringFillNeedsNoPurge) {  // K3
  AgentWorld w;
  w.has_attributes(Shared, kSize).has(Shared, PageRange::all());
  w.fills(1, pages(0, 0)).expect("fetch 0-0");
  w.recalls(pages(0, 0)).expect("ack all", "ask Shared 0-0 with data");
  w.grants('B').expect("data 1 4096*B");
}

TEST(AgentTest, FetchFromBeforeARecallIsVoid) {  // K11
  AgentWorld w;
  w.has_attributes(Shared, kSize).has(Shared, PageRange::all());
  w.fills(1, pages(0, 0)).expect("fetch 0-0");
  w.recalls(pages(0, 0)).expect("ack all", "ask Shared 0-0 with data");
  w.serves_fetch('A').expect_nothing();
  w.grants('B').expect("data 1 4096*B");
}

TEST(AgentTest, FillCountedAsAbsenceIsNotAnsweredBeforeTheAck) {  // K3
  AgentWorld w;
  w.has_attributes(Shared, kSize).has(Shared, PageRange::all()).cached(pages(0, 0), 'A');
  w.fills(1, pages(1, 1)).expect("fetch 1-1");
  w.recalls(pages(0, 1)).expect("purge 0-0");
  w.serves_fetch('A').expect_nothing();
  w.returns(pages(0, 0)).expect("ack all", "ask Shared 1-1 with data");
  w.grants('B').expect("data 1 4096*B");
}

TEST(AgentTest, SecondPurgeIsStartedBesideAHeldUpOne) {  // K5
  AgentWorld w;
  w.has_attributes(Shared, kSize).has(Shared, PageRange::all()).cached(pages(0, 3), 'A');
  w.recalls(pages(0, 3)).expect("purge 0-3");
  w.fills(1, pages(1, 1))
      .expect("purge 0-0",
              "purge 2-3");  // the first may be stuck on page 1 until this fill is answered
  w.returns(pages(2, 3)).expect_nothing();
  w.returns(pages(0, 0)).expect("ack all", "ask Shared 1-1 with data");
  w.grants('B').expect("data 1 4096*B");
  w.returns(pages(0, 3)).expect_nothing();
}

TEST(AgentTest, LatePurgeProvesNothing) {  // K4
  AgentWorld w;
  w.has_attributes(Shared, kSize).has(Shared, PageRange::all()).cached(pages(0, 0), 'A');
  w.recalls(pages(0, 0)).expect("purge 0-0");
  w.fills(1, pages(0, 0)).expect("ack all", "ask Shared 0-0 with data");
  w.grants('B').expect("data 1 4096*B");  // cached again, after the purge began
  w.later_ms(2);
  w.recalls(pages(0, 0)).expect("purge 0-0");
  w.returns(pages(0, 0)).expect_nothing();  // the old one
  w.returns(pages(0, 0)).expect("ack all");
}

TEST(AgentTest, PurgesAreSharedByAllWhoWait) {  // C1 to C4
  AgentWorld w;
  w.has_attributes(Exclusive, kSize).has(Exclusive, PageRange::all()).cached(pages(0, 3), 'A');
  w.writes(1, 0, 4096, 'W').expect("purge 0-0");
  w.recalls(pages(0, 1)).expect("purge 1-1");
  w.returns(pages(1, 1)).expect_nothing();
  w.returns(pages(0, 0)).expect("written 1 @0+4096", "flush @0+4096*W", "ack 0-1");
}

TEST(AgentTest, ReclaimedPagesArePurgedForNothingButNeverMissed) {  // C1: the kernel does not tell
                                                                    // what it drops
  AgentWorld w;
  w.has_attributes(Shared, kSize).has(Shared, PageRange::all()).cached(pages(0, 0), 'A');
  EXPECT_EQ(w.agent.counts().resident_pages, 1u);
  w.recalls(pages(0, 0)).expect("purge 0-0");
  w.returns(pages(0, 0)).expect("ack all");
  EXPECT_EQ(w.agent.counts().resident_pages, 0u);
}

// ---- writable mappings: K2, K7
// --------------------------------------------------------------------------------------------------

TEST(AgentTest, OpenReadWritePurgesWhatIsNotExclusive) {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize)
      .has(Shared, pages(0, 1))
      .has(Exclusive, pages(2, 3))
      .cached(pages(0, 3), 'A');
  w.opens(1, true).expect("purge 0-1");
  w.returns(pages(0, 1)).expect("opened 1");
}

TEST(AgentTest, OpenForWritingOnlyPurgesNothing) {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize).has(Shared, pages(0, 1)).cached(pages(0, 1), 'A');
  w.opens(1, false).expect("opened 1");
}

TEST(AgentTest, AKernelWithoutWritableMappingsPurgesNothingAtOpen) {
  AgentWorld w({.writable_mappings = false});
  w.has_attributes(Exclusive, kSize).has(Shared, pages(0, 1)).cached(pages(0, 1), 'A');
  w.opens(1, true).expect("opened 1");
}

TEST(AgentTest, WhileAHandleCouldBeMappedFillsAreAnsweredUnderExclusiveOnly) {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize).has(Shared, PageRange::all());
  w.opens(1, true).expect("opened 1");
  w.fills(2, pages(0, 0)).expect("ask Exclusive 0-0 with data");
  w.grants('A').expect("data 2 4096*A");
  w.closes(true).expect_nothing();
  w.fills(3, pages(1, 1)).expect("fetch 1-1");
  w.serves_fetch('A').expect("data 3 4096*A");
}

TEST(AgentTest, MayWriteIsCheckedWhenAnsweringNotWhenAsking) {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize);
  w.fills(1, pages(0, 0)).expect("ask Shared 0-0 with data");
  w.opens(2, true).expect("opened 2");
  w.grants('A').expect("ask Exclusive 0-0 with data");
  w.grants('B').expect("data 1 4096*B");
}

TEST(AgentTest, DowngradeWithoutMappingNeedsNoPurge) {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize).has(Exclusive, PageRange::all());
  w.writes(1, 0, 4096, 'W').expect("written 1 @0+4096");
  w.fills(2, pages(0, 0)).expect("data 2 4096*W");
  w.recalls(pages(0, 0), Shared).expect("flush @0+4096*W", "ack 0-0");
  EXPECT_EQ(w.held(0), Shared);
  EXPECT_EQ(w.agent.counts().resident_pages, 1u);
  w.reads(3, 0, 4096).expect("data 3 4096*W");
}

TEST(AgentTest, DowngradeOfAFileThatCouldBeMappedIsAPurge) {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize).has(Exclusive, PageRange::all()).cached(pages(0, 0), 'A');
  w.opens(1, true).expect("opened 1");
  w.recalls(pages(0, 0), Shared).expect("purge 0-0");
  w.returns(pages(0, 0)).expect("ack all");
}

TEST(AgentTest, AnOpenDuringADowngradeMakesThePurgeNecessaryAgain) {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize).has(Exclusive, PageRange::all()).cached(pages(0, 1), 'A');
  w.writes(1, 0, 4096, 'W').expect("purge 0-0");
  w.recalls(pages(0, 1), Shared).expect_nothing();  // waits for the write only
  w.opens(2, true).expect("purge 1-1", "opened 2");
  w.returns(pages(0, 0)).expect("written 1 @0+4096");
  w.returns(pages(1, 1)).expect("flush @0+4096*W", "ack 0-1");
}

TEST(AgentTest, AWriteBackIsAcceptedDuringARecallAndGoesWithTheAck) {  // K7
  AgentWorld w;
  w.has_attributes(Exclusive, kSize).has(Exclusive, PageRange::all()).cached(pages(0, 0), 'A');
  w.opens(1, true).expect("opened 1");
  w.recalls(pages(0, 0)).expect("purge 0-0");
  w.writes_back(0, 'M').expect_nothing();
  w.returns(pages(0, 0)).expect("flush @0+4096*M", "flush time", "ack all");
  EXPECT_EQ(w.agent.statistics().write_backs_without_exclusive, 0u);
}

TEST(AgentTest, AWriteBackWithoutExclusiveIsCounted) {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize).has(Shared, PageRange::all());
  w.writes_back(0, 'M').expect_nothing();
  EXPECT_EQ(w.agent.statistics().write_backs_without_exclusive, 1u);
}

// ---- direct writes: K10, K12
// ----------------------------------------------------------------------------------------------------

TEST(AgentTest, PurgeBeforeApply) {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize).has(Exclusive, PageRange::all()).cached(pages(0, 0), 'A');
  w.opens(1, true).expect("opened 1");
  w.writes(2, 0, 4096, 'W').expect("purge 0-0");
  w.writes_back(0, 'M').expect_nothing();  // an older mapped store, written back by that purge
  w.returns(pages(0, 0)).expect("written 2 @0+4096");
  w.reads(3, 0, 4096).expect("data 3 4096*W");
}

TEST(AgentTest, AFillBesideAWriteShowsTheNewBytes) {  // K12: no fill is answered from the start of
                                                      // the purge to the apply
  AgentWorld w;
  w.has_attributes(Exclusive, kSize).has(Exclusive, PageRange::all()).cached(pages(0, 1), 'A');
  w.writes(1, 0, 8192, 'W').expect("purge 0-1");
  w.fills(2, pages(0, 0))
      .expect("purge 1-1");  // page 0 is absent now, the first purge may hang on it
  w.returns(pages(1, 1)).expect("written 1 @0+8192", "data 2 4096*W");
  w.returns(pages(0, 1)).expect_nothing();
}

TEST(AgentTest, FetchThatOverlapsAFlushIsVoid) {  // K11
  AgentWorld w;
  w.has_attributes(Exclusive, kSize).has(Exclusive, PageRange::all()).cached(pages(2, 2), 'A');
  w.writes(1, 0, 100, 'W').expect("written 1 @0+100");
  w.fills(2, pages(0, 1)).expect("fetch 0-1");
  w.writes(3, 4096, 8192, 'X').expect("purge 2-2");  // the fill must wait for this write
  w.syncs(4).expect("flush @0+100*W", "flush time");
  w.serves_fetch('A').expect_nothing();  // as the home had it before the flush
  w.acks_flush().expect_nothing();
  w.acks_flush().expect("flushed 4");
  w.returns(pages(2, 2)).expect("written 3 @4096+8192", "fetch 0-1");
  w.serves_fetch('B').expect("data 2 4096*B 4096*X");
}

TEST(AgentTest, GrantIsUsedOnceBeforeTheRecall) {  // K10
  AgentWorld w;
  w.has_attributes(Exclusive, kSize).has(Shared, pages(0, 0)).cached(pages(0, 0), 'A');
  w.writes(1, 0, 4096, 'W').expect("ask Exclusive 0-0");
  w.grants('-').expect("purge 0-0");
  w.recalls(pages(0, 0)).expect_nothing();
  w.returns(pages(0, 0)).expect("written 1 @0+4096", "flush @0+4096*W", "ack 0-0");
}

TEST(AgentTest, ARequestThatCameAfterTheRecallAsksAnew) {  // I3, seen from here
  AgentWorld w;
  w.has_attributes(Exclusive, kSize).has(Exclusive, PageRange::all()).cached(pages(0, 0), 'A');
  w.recalls(pages(0, 0)).expect("purge 0-0");
  w.writes(1, 0, 4096, 'W').expect_nothing();
  w.returns(pages(0, 0)).expect("ack all", "ask Exclusive 0-0");
  w.grants('-').expect("written 1 @0+4096");
}

TEST(AgentTest, ARequestNamesItsWholeRange) {  // K10
  AgentWorld w;
  w.has_attributes(Exclusive, kSize).has(Exclusive, pages(0, 0));
  w.writes(1, 0, 8192, 'W').expect("ask Exclusive 0-1");
  w.recalls(pages(0, 0)).expect("ack all");  // nothing is held while it waits
  w.grants('-').expect("written 1 @0+8192");
}

TEST(AgentTest, WritesInsideTheFileOnlyNeedToUpdateItsTime) {
  AgentWorld w;
  w.has_attributes(Shared, kSize).has(Exclusive, PageRange::all());
  w.writes(1, 0, 4096, 'W').expect("ask Update attributes");
  w.grants_attributes(kSize).expect("written 1 @0+4096");
  w.has_attributes(Update, kSize);
  w.writes(2, kSize - 1, 2, 'W');
  EXPECT_EQ(w.held_attributes(), Exclusive) << "Shared and Update together";
  w.expect("written 2 @65535+2");
}

TEST(AgentTest, WritesThatExtendTheFileNeedItsAttributesExclusive) {
  AgentWorld w;
  w.has_attributes(Update, kSize).has(Exclusive, PageRange::all());
  w.writes(1, kSize, 4096, 'W').expect("ask Exclusive attributes");
  w.grants_attributes(kSize).expect("written 1 @65536+4096");
  w.stats(2).expect("attributes 2 size 69632");
}

TEST(AgentTest, AWriteBeyondTheLargestFileIsRefused) {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize).has(Exclusive, PageRange::all());
  w.writes(1, static_cast<uint64_t>(INT64_MAX) - 10, 100, 'W').expect("error 1 27");
}

// ---- appends: K15
// ---------------------------------------------------------------------------------------------------------------

TEST(AgentTest, AppendUsesTheRealEnd) {
  AgentWorld w;
  w.has(Exclusive, PageRange::all());
  w.appends(1, 0, 5, 'R').expect("ask Exclusive attributes");  // the kernel's guess is 0
  w.grants_attributes(10'000).expect("written 1 @10000+5");
  w.stats(2).expect("attributes 2 size 10005");
}

TEST(AgentTest, AnAppendPurgesWhereItReallyGoes) {
  AgentWorld w;
  w.has_attributes(Exclusive, 10'000).has(Exclusive, PageRange::all()).cached(pages(0, 2), 'A');
  w.appends(1, 0, 5, 'R').expect("purge 2-2");
  w.returns(pages(2, 2)).expect("written 1 @10000+5");
}

TEST(AgentTest, AppendsOfOneNodeFollowEachOther) {
  AgentWorld w;
  w.has_attributes(Exclusive, 10'000).has(Exclusive, PageRange::all()).cached(pages(2, 2), 'A');
  w.appends(1, 10'000, 5, 'R').expect("purge 2-2");
  w.appends(2, 10'000, 5, 'S').expect_nothing();
  w.returns(pages(2, 2)).expect("written 1 @10000+5", "written 2 @10005+5");
}

TEST(AgentTest, TheEndIsDecidedAnewWhenTheAttributesWereAway) {
  AgentWorld w;
  w.has_attributes(Exclusive, 10'000).has(Exclusive, PageRange::all());
  w.recalls_attributes().expect("ack 0-0");
  w.appends(1, 10'000, 5, 'R').expect("ask Exclusive attributes");
  w.grants_attributes(20'000).expect("written 1 @20000+5");
}

// The kernel cuts an append into pieces of at most 1 MiB, each sent after the answer to the one
// before.
constexpr uint32_t kPiece = 1 << 20;
constexpr AgentOptions kLateFlush{.flush_after_ns = 1'000'000'000'000};

TEST(AgentTest, ALongAppendKeepsOthersOutBetweenItsPieces) {
  AgentWorld w;
  w.has_attributes(Exclusive, 100).has(Exclusive, PageRange::all());
  w.appends(1, 0, kPiece, 'R').expect("written 1 @100+1048576");
  w.recalls_attributes().expect_nothing();
  w.appends(2, kPiece, kPiece, 'S').expect("written 2 @1048676+1048576");
  w.appends(3, 2 * kPiece, 9, 'T').expect("written 3 @2097252+9", "ack 0-0 size 2097261");
}

TEST(AgentTest, APieceThatNeedsALeaseKeepsItsTurn) {
  AgentWorld w(kLateFlush);
  w.has_attributes(Exclusive, 0).has(Exclusive, pages(0, 255));
  w.appends(1, 0, kPiece, 'R').expect("written 1 @0+1048576");
  w.recalls_attributes().expect_nothing();
  w.appends(2, kPiece, 5000, 'S').expect("ask Exclusive 256-257");
  w.later_ms(5000).expect_nothing();
  w.grants('.').expect("written 2 @1048576+5000", "ack 0-0 size 1053576");
}

// A buffer that does not begin on a page has a place fewer in the first request.
TEST(AgentTest, APieceMayBeShorterByThePlaceInItsPage) {
  AgentWorld w;
  w.has_attributes(Exclusive, 0).has(Exclusive, PageRange::all());
  w.appends(1, 0, kPiece - 4095, 'R').expect("written 1 @0+1044481");
  w.recalls_attributes().expect_nothing();
  w.appends(2, kPiece - 4095, 10, 'S').expect("written 2 @1044481+10", "ack 0-0 size 1044491");
}

TEST(AgentTest, AShortAppendKeepsNobodyOut) {
  AgentWorld w;
  w.has_attributes(Exclusive, 0).has(Exclusive, PageRange::all());
  w.appends(1, 0, kPiece - 4096, 'R').expect("written 1 @0+1044480");
  w.recalls_attributes().expect("ack 0-0 size 1044480");
}

TEST(AgentTest, ThePieceThatDoesNotComeIsNotWaitedForForLong) {
  AgentWorld w;
  w.has_attributes(Exclusive, 0).has(Exclusive, PageRange::all());
  w.appends(1, 0, kPiece, 'R').expect("written 1 @0+1048576");
  w.recalls_attributes().expect_nothing();
  w.later_ms(99).expect_nothing();
  w.later_ms(1).expect("ack 0-0 size 1048576");
}

TEST(AgentTest, AnAppendWithoutEndLosesItsTurn) {
  AgentWorld w(kLateFlush);
  w.has_attributes(Exclusive, 0).has(Exclusive, PageRange::all());
  w.appends(1, 0, kPiece, 'R').expect("written 1 @0+1048576");
  w.recalls_attributes().expect_nothing();
  for (uint64_t i = 1; i < 20; ++i) {
    w.later_ms(50);
    w.appends(1 + i, i * kPiece, kPiece, 'S')
        .expect(fmt::format("written {} @{}+1048576", 1 + i, i * kPiece));
  }
  w.later_ms(50).expect("ack 0-0 size 20971520");
  w.appends(30, 20 * kPiece, kPiece, 'S').expect("ask Exclusive attributes");
  w.grants_attributes(30 * kPiece).expect("written 30 @31457280+1048576");
}

// The kernel begins no other write of the file before that in pieces has ended.
TEST(AgentTest, AnotherWriteEndsTheTurnOfALongAppend) {
  for (int other = 0; other < 3; ++other) {
    AgentWorld w;
    w.has_attributes(Exclusive, 0).has(Exclusive, PageRange::all());
    w.appends(1, 0, kPiece, 'R').expect("written 1 @0+1048576");
    w.recalls_attributes().expect_nothing();
    switch (other) {
      case 0:
        w.writes(2, 0, 5000, 'S').expect("ack 0-0 size 1048576", "ask Update attributes");
        break;
      case 1:
        w.appends_by(2, 2, kPiece, 5000, 'S')
            .expect("ack 0-0 size 1048576", "ask Exclusive attributes");
        break;
      case 2:
        w.truncates(2, 0).expect("truncate 2", "ack 0-0 size 1048576");
        break;
    }
  }
}

// ---- sizes: K16
// -----------------------------------------------------------------------------------------------------------------

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
  w.recalls_attributes().expect("ack 0-0 size 5000");
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
  w.writes(1, 8192, 8192, 'W').expect_nothing();
  w.truncates(2, 0).expect("truncate 2");
  w.truncation_done(0).expect("written 1 @8192+8192");
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
// ---------------------------------------------------------------------------------------------------------------

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
  world(true, None)->expect("ack 0-0 size 4096");
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
  w.loses_its_last_name().grants_attributes(kSize).expect("error 1 116", "error 2 116");
  w.closes(false).expect_nothing();
  w.closes(false).expect_nothing();
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

// ---- directories
// ----------------------------------------------------------------------------------------------------------------

TEST(AgentTest, NamesAreLostBeforeTheirRecallIsAcked) {
  AgentWorld w;
  w.lists(1).expect("ask Shared entries");
  w.grants_entries().expect("entries 1");
  w.lists(2).expect("entries 2");
  EXPECT_TRUE(w.agent.has_entries(w.file));
  w.recalls_entries().expect("names lost", "ack 0-0");
  EXPECT_FALSE(w.agent.has_entries(w.file));
}

TEST(AgentTest, NamesInTheKernelEndBeforeTheirRecallIsAcked) {
  AgentWorld w;
  w.lists(1).expect("ask Shared entries");
  w.grants_entries().expect("entries 1");
  EXPECT_TRUE(w.agent.may_give_names(w.file));
  w.agent.names_given(w.file);
  w.recalls_entries().expect("names lost", "end names");
  EXPECT_FALSE(w.agent.may_give_names(w.file));
  w.ends_names().expect("names lost", "ack 0-0");
}

TEST(AgentTest, AnEndOfNamesFromBeforeAResetSaysNothingOfLaterOnes) {
  AgentWorld w;
  w.lists(1).expect("ask Shared entries");
  w.grants_entries().expect("entries 1");
  w.agent.names_given(w.file);
  w.resets().expect("names lost", "end names at once");
  w.lists(2).expect("ask Shared entries");
  w.grants_entries().expect("entries 2");
  w.agent.names_given(w.file);
  w.recalls_entries().expect("names lost", "end names");
  w.ends_names().expect_nothing();  // that of the reset
  w.ends_names().expect("names lost", "ack 0-0");
}

TEST(AgentTest, AllWhoWaitForNamesShareOneRequest) {
  AgentWorld w;
  w.lists(1).expect("ask Shared entries");
  w.lists(2).expect_nothing();
  w.grants_entries().expect("entries 1", "entries 2");
}

// ---- truncation: K8
// -------------------------------------------------------------------------------------------------------------

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

TEST(AgentTest, AFailedTruncationLosesNothing) {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize).has(Exclusive, PageRange::all());
  w.writes(1, 8192, 4096, 'W').expect("written 1 @8192+4096");
  w.truncates(2, 100).expect("truncate 2");
  w.truncation_done(100, false).expect_nothing();
  w.reads(3, 8192, 4096).expect("data 3 4096*W");
}

// ---- fairness: K13, and giving more than was asked
// ------------------------------------------------------------------------------

TEST(AgentTest, AFreshlyFilledPageIsSparedForAMoment) {
  AgentWorld w;
  w.has_attributes(Shared, kSize).has(Shared, PageRange::all());
  w.fills(1, pages(0, 0)).expect("fetch 0-0");
  w.serves_fetch('A').expect("data 1 4096*A");
  w.recalls(pages(0, 0)).expect_nothing();
  EXPECT_EQ(w.ms_to_deadline(), 1);
  w.later_ms(1).expect("purge 0-0");
  w.returns(pages(0, 0)).expect("ack all");
}

TEST(AgentTest, GivesMoreAroundWhatItDoesNotUse) {
  AgentWorld w;
  w.has_attributes(Exclusive, 1000 * kPageSize).has(Exclusive, PageRange::all());
  w.writes(1, 10 * kPageSize, 4096, 'W').expect("written 1 @40960+4096");
  w.recalls(pages(500, 500))
      .expect("ack 75-end");  // page 10 is dirty, and the next 64 will be wanted
  EXPECT_EQ(w.held(74), Exclusive);
  w.recalls(pages(20, 20)).expect("ack 20-20");
}

TEST(AgentTest, DoesNotGiveAwayWhatIsCachedBesideTheRecall) {
  AgentWorld w;
  w.has_attributes(Shared, kSize)
      .has(Shared, PageRange::all())
      .cached(pages(2, 3), 'A')
      .cached(pages(8, 9), 'A');
  w.recalls(pages(5, 5)).expect("ack 4-7");
}

// ---- memory and errors
// ----------------------------------------------------------------------------------------------------------

TEST(AgentTest, DirtyBytesGoHomeAfterAWhile) {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize).has(Exclusive, PageRange::all());
  w.writes(1, 0, 4096, 'W').expect("written 1 @0+4096");
  EXPECT_EQ(w.ms_to_deadline(), 1000);
  w.later_ms(999).expect_nothing();
  w.later_ms(1).expect("flush @0+4096*W", "flush time");
  w.acks_flush().expect_nothing();
  w.acks_flush().expect_nothing();
  EXPECT_TRUE(w.agent.idle_dirty());
}

TEST(AgentTest, ThrottledWriterIsReleased) {
  AgentWorld w({.dirty_max_bytes = 2 * kPageSize});
  w.has_attributes(Exclusive, kSize).has(Exclusive, PageRange::all());
  w.writes(1, 0, 8192, 'V').expect("written 1 @0+8192");
  w.writes(2, 8192, 4096, 'W').expect("flush @0+8192*V @8192+4096*W", "flush time");
  w.acks_flush().expect("written 2 @8192+4096");
}

TEST(AgentTest, BackgroundFlushesKeepToTheirWindow) {
  AgentWorld w({.flush_window_bytes = kPageSize});
  w.has_attributes(Exclusive, 1024 * kPageSize).has(Exclusive, PageRange::all());
  for (uint64_t i = 0; i < 512; ++i) {
    w.writes(i, i * kPageSize, kPageSize, 'W');
    w.expect(fmt::format("written {} @{}+4096", i, i * kPageSize));
  }
  w.later_ms(1000);
  EXPECT_EQ(w.agent.statistics().flushes,
            1u);  // of 1 MiB, a Flush's limit; the rest waits for its ack
  w.discard();
  w.acks_flush();
  EXPECT_EQ(w.agent.statistics().flush_bytes, 512 * kPageSize);
  w.discard();
}

TEST(AgentTest, AFailedFlushIsToldOnceAtFsync) {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize).has(Exclusive, PageRange::all());
  w.writes(1, 0, 4096, 'W').expect("written 1 @0+4096");
  w.syncs(2).expect("flush @0+4096*W", "flush time");
  w.acks_flush(ENOSPC).expect_nothing();
  w.acks_flush().expect("flushed 2 error 28");
  w.syncs(3).expect("flushed 3");
}

TEST(AgentTest, AnErrorOfTheHomeIsTheReadersError) {
  AgentWorld w;
  w.has_attributes(Shared, kSize);
  w.fills(1, pages(0, 0)).expect("ask Shared 0-0 with data");
  w.grants('-', {.error = ESTALE}).expect("error 1 116");
  EXPECT_EQ(w.held(0), None);
  w.has(Shared, PageRange::all());
  w.reads(2, 0, 4096).expect("fetch 0-0");
  w.serves_fetch('-', EIO).expect("error 2 5");
}

TEST(AgentTest, InterruptAnswersEintr) {
  AgentWorld w;
  w.reads(1, 0, 4096).expect("ask Shared attributes");
  w.interrupts(1).expect("error 1 4");
  w.interrupts(1).expect_nothing();
  w.grants_attributes(kSize).expect_nothing();  // the lease stays, the reader has gone
  EXPECT_EQ(w.held_attributes(), Shared);
}

TEST(AgentTest, AFillCannotBeInterrupted) {  // its folios stay locked until it is answered
  AgentWorld w;
  w.has_attributes(Shared, kSize).has(Shared, PageRange::all());
  w.fills(1, pages(0, 0)).expect("fetch 0-0");
  w.interrupts(1).expect_nothing();
  w.serves_fetch('A').expect("data 1 4096*A");
}

TEST(AgentTest, AWriteBeingCarriedOutIsFinished) {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize).has(Exclusive, PageRange::all()).cached(pages(0, 0), 'A');
  w.writes(1, 0, 4096, 'W').expect("purge 0-0");
  w.interrupts(1).expect_nothing();
  w.returns(pages(0, 0)).expect("written 1 @0+4096");
}

// ---- forgetting, starting again
// -------------------------------------------------------------------------------------------------

TEST(AgentTest, ForgottenFileReleasesItsLeases) {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize).has(Exclusive, PageRange::all()).cached(pages(0, 0), 'A');
  w.forgets().expect("release");
  EXPECT_EQ(w.held(0), None);
  EXPECT_EQ(w.agent.counts().files, 0u);
}

TEST(AgentTest, AForgottenFileIsFlushedBeforeItIsReleased) {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize).has(Exclusive, PageRange::all());
  w.writes(1, 0, 4096, 'W').expect("written 1 @0+4096");
  w.forgets().expect("flush @0+4096*W", "flush time");
  w.acks_flush().expect_nothing();
  w.acks_flush().expect("release");
}

TEST(AgentTest, AnOfferTheKernelDoesNotAskForIsGivenBack) {
  AgentWorld w;
  w.has_attributes(Shared, kSize);
  EXPECT_EQ(w.ms_to_deadline(), 10'000);
  w.later_ms(9'999).expect_nothing();
  w.later_ms(1).expect("release");
}

TEST(AgentTest, AnOfferTheKernelAsksForIsKept) {
  AgentWorld w;
  w.has_attributes(Shared, kSize);
  w.stats(1).expect("attributes 1 size 65536");
  w.later_ms(20'000).expect_nothing();
  EXPECT_EQ(w.held_attributes(), Shared);
}

TEST(AgentTest, ResetVoidsLeasesAndPurges) {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize).has(Exclusive, PageRange::all()).cached(pages(0, 1), 'A');
  w.writes(1, 3 * kPageSize, 4096, 'W').expect("written 1 @12288+4096");
  w.resets().expect("names lost", "flush @12288+4096*W", "flush time", "purge 0-1");
  w.reads(2, 0, 4096).expect_nothing();  // nothing is asked for before the unleased pages are gone
  EXPECT_EQ(w.held(0), None);
  w.returns(pages(0, 1)).expect("ask Shared attributes");
  w.grants_attributes(kSize).expect("ask Shared 0-0 with data");
  w.grants('B').expect("data 2 4096*B");
}

TEST(AgentTest, WhatWaitedAtAResetAsksAnew) {
  AgentWorld w;
  w.has_attributes(Shared, kSize);
  w.fills(1, pages(0, 0)).expect("ask Shared 0-0 with data");
  w.resets().expect("names lost", "ask Shared attributes");
  w.grants_attributes(kSize).expect("ask Shared 0-0 with data");
  w.grants('B').expect("data 1 4096*B");
}

}  // namespace
}  // namespace vremote::coherence
