// Scenarios of one agent (agent_test.cc): direct writes and appends.
#include <cerrno>
#include <memory>

#include "coherence/agent.h"
#include "coherence/agent_test_world.h"
#include "coherence/dirty_pool.h"

namespace vremote::coherence {
namespace {

using test::AgentWorld;
using test::pages;
using test::pages_from;
using enum LeaseMode;

constexpr uint64_t kSize = 16 * kPageSize;  // of the file in most scenarios

// ---- room for dirty bytes

class FewPieces : public DirtyPool {
 public:
  uint64_t piece() const override { return kPageSize; }
  bool take() override { return left > 0 && left-- > 0; }
  void give_back() override { ++left; }
  int left = 2;
};

TEST(AgentTest, AgentsShareARoomForDirtyBytesAndHaveSomeOfTheirOwn) {
  FewPieces pool;
  {
    const AgentOptions options{.dirty_max_bytes = kPageSize, .dirty_pool = &pool};
    AgentWorld one(options), other(options);
    for (AgentWorld* w : {&one, &other})
      w->has_attributes(Exclusive, kSize).has(Exclusive, PageRange::all());
    one.writes(1, 0, 4096, 'A').expect("written 1 @0+4096");
    one.writes(2, 4096, 4096, 'B').expect("written 2 @4096+4096");
    one.writes(3, 8192, 4096, 'C').expect("written 3 @8192+4096");
    EXPECT_EQ(pool.left, 0);
    other.writes(1, 0, 4096, 'D').expect("written 1 @0+4096");
    other.writes(2, 4096, 4096, 'E').expect("flush @0+4096*D", "flush time");
    // Its own bytes are away: it goes on, whatever the other has.
    other.acks_flush().expect("written 2 @4096+4096");
    other.acks_flush().expect_nothing();
    one.syncs(4).expect("flush @0+4096*A @4096+4096*B @8192+4096*C", "flush time");
    one.acks_flush().expect_nothing();
    EXPECT_EQ(pool.left, 2);
    one.acks_flush().expect("flushed 4");
    one.writes(5, 0, 4096, 'F').expect("written 5 @0+4096");
    one.writes(6, 4096, 4096, 'G').expect("written 6 @4096+4096");
  }
  EXPECT_EQ(pool.left, 2) << "an agent that ends gives back what it had";
}

// ---- direct writes: K10, K12

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

// Found by the simulator (power, 878): another node had cut the file while the append was on its
// way, and the kernel's guess of its end was far behind the real one.
TEST(AgentTest, AnAppendPurgesWhatItsGuessedEndMakesPagesOfTheFile) {
  AgentWorld w;
  w.has_attributes(Exclusive, 5'000).has(Exclusive, PageRange::all()).cached(pages(0, 3), 'A');
  w.appends(1, 12'000, 5, 'R').expect("purge 1-2");
  w.fills(2, pages(2, 2)).expect("purge 1-1");
  w.returns(pages(1, 1)).expect("written 1 @5000+5", "data 2 end");
}
TEST(AgentTest, WhatIsFilledThereWhileAnAppendIsAnnouncedGoesBeforeItsAnswer) {
  AgentWorld w;
  w.has_attributes(Exclusive, 5'000, true).has(Exclusive, PageRange::all());
  w.opens(9, false).expect("opened 9");
  w.appends(1, 12'000, 5, 'R').expect("push size 5005", "announce 5005");
  w.size_is_pushed().expect_nothing();
  w.fills(2, pages(2, 2)).expect("data 2 end");
  w.all_know().expect("purge 2-2");
  w.returns(pages(2, 2)).expect("written 1 @5000+5");
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
  w.appends(3, 2 * kPiece, 9, 'T')
      .expect("written 3 @2097252+9", "flush size 2097261 time", "ack 0-0");
}

TEST(AgentTest, APieceThatNeedsALeaseKeepsItsTurn) {
  AgentWorld w(kLateFlush);
  w.has_attributes(Exclusive, 0).has(Exclusive, pages(0, 255));
  w.appends(1, 0, kPiece, 'R').expect("written 1 @0+1048576");
  w.recalls_attributes().expect_nothing();
  w.appends(2, kPiece, 5000, 'S').expect("ask Exclusive 256-257");
  w.later_ms(5000).expect_nothing();
  w.grants('.').expect("written 2 @1048576+5000", "flush size 1053576 time", "ack 0-0");
}

TEST(AgentTest, APieceThatWaitsForMemoryKeepsItsTurn) {
  AgentWorld w({.dirty_max_bytes = kPiece});
  w.has_attributes(Exclusive, 0).has(Exclusive, PageRange::all());
  w.appends(1, 0, kPiece, 'R').expect("written 1 @0+1048576");
  w.recalls_attributes().expect_nothing();
  w.appends(2, kPiece, 5000, 'S').came();
  w.later_ms(500).expect_nothing();
  w.acks_flush().expect("written 2 @1048576+5000", "flush size 1053576 time", "ack 0-0");
}

// A buffer that does not begin on a page has a place fewer in the first request.
TEST(AgentTest, APieceMayBeShorterByThePlaceInItsPage) {
  AgentWorld w;
  w.has_attributes(Exclusive, 0).has(Exclusive, PageRange::all());
  w.appends(1, 0, kPiece - 4095, 'R').expect("written 1 @0+1044481");
  w.recalls_attributes().expect_nothing();
  w.appends(2, kPiece - 4095, 10, 'S')
      .expect("written 2 @1044481+10", "flush size 1044491 time", "ack 0-0");
}

TEST(AgentTest, AShortAppendKeepsNobodyOut) {
  AgentWorld w;
  w.has_attributes(Exclusive, 0).has(Exclusive, PageRange::all());
  w.appends(1, 0, kPiece - 4096, 'R').expect("written 1 @0+1044480");
  w.recalls_attributes().expect("flush size 1044480 time", "ack 0-0");
}

TEST(AgentTest, ThePieceThatDoesNotComeIsNotWaitedForForLong) {
  AgentWorld w;
  w.has_attributes(Exclusive, 0).has(Exclusive, PageRange::all());
  w.appends(1, 0, kPiece, 'R').expect("written 1 @0+1048576");
  w.recalls_attributes().expect_nothing();
  w.later_ms(99).expect_nothing();
  w.later_ms(1).expect("flush size 1048576 time", "ack 0-0");
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
  w.later_ms(50).expect("flush size 20971520 time", "ack 0-0");
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
        w.writes(2, 0, 5000, 'S')
            .expect("flush size 1048576 time", "ack 0-0", "ask Update attributes");
        break;
      case 1:
        w.appends_by(2, 2, kPiece, 5000, 'S')
            .expect("flush size 1048576 time", "ack 0-0", "ask Exclusive attributes");
        break;
      case 2:
        w.truncates(2, 0).expect("truncate 2", "flush size 1048576 time", "ack 0-0");
        break;
    }
  }
}

}  // namespace
}  // namespace vremote::coherence
