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

// ---- memory and errors

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
  w.writes(2, 8192, 4096, 'W').expect("flush @0+8192*V", "flush time");
  w.acks_flush().expect("written 2 @8192+4096");
}

TEST(AgentTest, AWriteThatIsLargerThanAllMemoryGoesAlone) {
  AgentWorld w({.dirty_max_bytes = kPageSize});
  w.has_attributes(Exclusive, kSize).has(Exclusive, PageRange::all());
  w.writes(1, 0, 8192, 'V').expect("written 1 @0+8192");
  w.writes(2, 0, 8192, 'W').expect("flush @0+8192*V", "flush time");
  w.acks_flush().expect("written 2 @0+8192");
}

// Its size is not the file's yet: others may change that meanwhile, and its kernel may be told.
TEST(AgentTest, AThrottledWriterHoldsNothing) {
  AgentWorld w({.dirty_max_bytes = kPageSize});
  w.has_attributes(Exclusive, kSize).has(Exclusive, PageRange::all());
  w.writes(1, 0, kPageSize, 'V').expect("written 1 @0+4096");
  w.appends(2, kSize, 10, 'W').expect("flush @0+4096*V", "flush time");
  w.stats(3).expect(fmt::format("attributes 3 size {}", kSize));
  w.recalls_attributes().expect("drop attributes", "ack 0-0");
  w.acks_flush().expect("ask Exclusive attributes");
  w.grants_attributes(100, Exclusive).expect("written 2 @100+10");
}

TEST(AgentTest, WhoWaitsForMemoryTakesTurnsWithOthers) {
  AgentWorld w({.dirty_max_bytes = 2 * kPageSize});
  const FileId first = w.file, second{.export_index = 0, .generation = 1, .inode = 8};
  for (const FileId file : {first, second}) {
    w.file = file;
    w.has_attributes(Exclusive, kSize).has(Exclusive, PageRange::all());
  }
  w.file = first;
  w.writes(1, 0, 8192, 'A').expect("written 1 @0+8192");
  w.writes(2, 8192, 8192, 'B').expect("flush @0+8192*A", "flush time");
  w.writes(3, 16384, 8192, 'C').expect_nothing();
  w.file = second;
  w.writes(4, 0, 8192, 'D').expect_nothing();
  w.file = first;
  w.acks_flush().expect("written 2 @8192+8192", "flush @8192+8192*B", "flush time");
  w.acks_flush().expect_nothing();
  w.acks_flush().expect("written 4 @0+8192", "flush @0+8192*D", "flush time");
}

TEST(AgentTest, ASmallWriteLeavesRoomForTheLargeOneThatWaits) {
  AgentWorld w({.dirty_max_bytes = 4 * kPageSize});
  w.has_attributes(Exclusive, kSize).has(Exclusive, PageRange::all());
  w.writes(1, 0, 3 * kPageSize, 'A').expect("written 1 @0+12288");
  w.writes(2, 12288, 4 * kPageSize, 'B').expect("flush @0+12288*A", "flush time");
  w.writes(3, 40960, 10, 'C').expect_nothing();
  w.acks_flush().expect("written 2 @12288+16384", "flush @12288+16384*B", "flush time");
  w.acks_flush().expect_nothing();
  w.acks_flush().expect("written 3 @40960+10");
}

TEST(AgentTest, AThrottledWriterCanBeKilled) {
  AgentWorld w({.dirty_max_bytes = kPageSize});
  w.has_attributes(Exclusive, kSize).has(Exclusive, PageRange::all());
  w.writes(1, 0, kPageSize, 'V').expect("written 1 @0+4096");
  w.writes(2, 4096, 10, 'W').expect("flush @0+4096*V", "flush time");
  w.interrupts(2).expect("error 2 4");
  w.acks_flush().expect_nothing();
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

TEST(AgentTest, ForgottenFileReleasesItsLeases) {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize).has(Exclusive, PageRange::all()).cached(pages(0, 0), 'A');
  w.forgets().expect("release");
  EXPECT_EQ(w.held(0), None);
  EXPECT_EQ(w.agent.counts().files, 0u);
}

TEST(AgentTest, ALeaseIsGivenBackAlsoAfterARefusalWithoutANumber) {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize).has(Shared, PageRange::all());
  w.writes(1, 0, 4096, 'W').discard().refuses_at_the_door(EROFS).expect("error 1 30");
  w.forgets().expect("release");
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
