// What an agent tells after a power failure of the origin (S1 to S3 of docs/protocol.md).
#include <gtest/gtest.h>

#include <cerrno>

#include "coherence/agent_test_world.h"

namespace vremote::coherence {
namespace {

using test::AgentWorld;
using test::pages;
using enum LeaseMode;

constexpr uint64_t kSize = 16 * kPageSize;
constexpr Instant kNow{1};

// A file that is open here, with bytes that the home has and has not synced.
struct Flushed : AgentWorld {
  explicit Flushed(const AgentOptions& options = {}) : AgentWorld(options) {
    has_attributes(Exclusive, kSize).has(Exclusive, pages(0, 15));
    opens(9, false).expect("opened 9");
    writes(1, 0, 4096, 'W').expect("written 1 @0+4096");
    syncs(2).expect("flush @0+4096*W", "flush time");
    acks_flush().expect_nothing();
    acks_flush().expect("flushed 2");
  }
};
AgentOptions with(Mistake mistake) {
  AgentOptions options;
  options.mistakes.add(mistake);
  return options;
}
AgentWorld& origin_loses_power(AgentWorld& w) {
  return w.resets(Agent::Dirty::Kept, true).expect("names lost", "ask Shared attributes");
}

TEST(AgentPowerTest, AnFsyncTellsOnceThatWhatWasFlushedMayBeLost) {
  Flushed w;
  origin_loses_power(w);
  w.syncs(3).expect("flushed 3 error 5");
  w.syncs(4).expect("flushed 4");
}

TEST(AgentPowerTest, WhatWasSyncedIsNotLost) {
  Flushed w;
  EXPECT_EQ(w.agent.synced(w.file, w.agent.sync_begins(), 0), 0);
  origin_loses_power(w);
  w.syncs(3).expect("flushed 3");
}

TEST(AgentPowerTest, ASyncThatFailedSecuresNothing) {
  Flushed w;
  EXPECT_EQ(w.agent.synced(w.file, w.agent.sync_begins(), ENOSPC), ENOSPC);
  origin_loses_power(w);
  w.syncs(3).expect("flushed 3 error 5");
}

TEST(AgentPowerTest, ASyncSaysNothingOfWhatWasFlushedAfterItBegan) {
  Flushed w;
  const uint64_t begun = w.agent.sync_begins();
  w.writes(3, 4096, 4096, 'X').expect("written 3 @4096+4096");
  w.syncs(4).expect("flush @4096+4096*X", "flush time");
  w.acks_flush().expect_nothing();
  w.acks_flush().expect("flushed 4");
  EXPECT_EQ(w.agent.synced(w.file, begun, 0), 0);
  origin_loses_power(w);
  w.syncs(5).expect("flushed 5 error 5");
}

// The home has synced what was left, and says so.
TEST(AgentPowerTest, ASyncThatIsMadeAgainAfterThePowerFailureTellsOfIt) {
  Flushed w;
  const uint64_t begun = w.agent.sync_begins();
  origin_loses_power(w);
  EXPECT_EQ(w.agent.synced(w.file, begun, 0), EIO);
  EXPECT_EQ(w.agent.synced(w.file, w.agent.sync_begins(), 0), 0) << "told once";
}

TEST(AgentPowerTest, WithoutAPowerFailureNothingIsLost) {
  Flushed w;
  w.resets().expect("names lost", "ask Shared attributes");
  w.syncs(3).expect("flushed 3");
}

TEST(AgentPowerTest, BytesOfOthersThatWereSeenHereCount) {
  for (const bool unsynced : {false, true}) {
    AgentWorld w;
    w.opens(1, false).expect("ask Shared attributes");
    AgentActions actions;
    w.agent.receive(kNow,
                    Grant{.file = w.file,
                          .request = 1,
                          .sequence = 1,
                          .resource = Resource::Attributes,
                          .mode = Shared,
                          .range = kUnit,
                          .unsynced = unsynced},
                    actions);
    w.agent.reset(kNow, Agent::Dirty::Kept, actions, true);
    EXPECT_EQ(w.agent.synced(w.file, w.agent.sync_begins(), 0), unsynced ? EIO : 0);
  }
}

TEST(AgentPowerTest, SoDoCallsThatTheHomeHasCarriedOut) {
  AgentWorld w;
  w.agent.changed_at_home(w.file);
  AgentActions actions;
  w.agent.reset(kNow, Agent::Dirty::Kept, actions, true);
  EXPECT_EQ(w.agent.synced(w.file, w.agent.sync_begins(), 0), EIO);
}

TEST(AgentPowerTest, WhatIsToBeToldIsForgottenWithTheFileOnly) {
  AgentWorld w;
  w.agent.changed_at_home(w.file);
  AgentActions actions;
  w.agent.reset(kNow, Agent::Dirty::Kept, actions, true);
  EXPECT_EQ(w.agent.counts().files, 1u);
  w.agent.forget(kNow, w.file, actions);
  EXPECT_EQ(w.agent.counts().files, 0u);
}

// Of a call whose caller was killed, and whose reply came after that.
TEST(AgentPowerTest, AFileThatTheKernelDoesNotKnowIsNotKept) {
  AgentWorld w;
  w.agent.changed_at_home(w.file, false);
  EXPECT_EQ(w.agent.counts().files, 0u);
}

TEST(AgentPowerTest, AllFsyncsUnderWayTellWhatWasLost) {
  Flushed w;
  const uint64_t one = w.agent.sync_begins(), other = w.agent.sync_begins();
  origin_loses_power(w);
  EXPECT_EQ(w.agent.synced(w.file, one, 0), EIO);
  EXPECT_EQ(w.agent.synced(w.file, other, 0), EIO);
  EXPECT_EQ(w.agent.synced(w.file, w.agent.sync_begins(), 0), 0) << "told";
}

// As with Linux's errseq_t.
TEST(AgentPowerTest, EachFileThatWasOpenHearsOfItOnce) {
  Flushed w;
  w.opens(10, false).expect("opened 10");
  origin_loses_power(w);
  const Opener one{.handle = 1, .next = 3}, other{.handle = 2, .next = 3}, later{3, 4};
  w.syncs(3, one).expect("flushed 3 error 5");
  w.syncs(4, one).expect("flushed 4");
  w.syncs(5, later).expect("flushed 5");
  w.syncs(6, other).expect("flushed 6 error 5");
  w.syncs(7, other).expect("flushed 7");
}

TEST(AgentPowerTest, WhatTheDiskSaysToOneTheOthersHearToo) {
  for (const bool by_disk : {true, false}) {
    Flushed w;
    const Opener one{.handle = 1, .next = 3}, other{.handle = 2, .next = 3};
    const uint64_t under_way = w.agent.sync_begins();
    EXPECT_EQ(w.agent.synced(w.file, w.agent.sync_begins(), ENOSPC, UINT64_MAX, one, by_disk),
              ENOSPC);
    EXPECT_EQ(w.agent.synced(w.file, under_way, 0, UINT64_MAX, one), by_disk ? ENOSPC : 0)
        << "under way beside it";
    EXPECT_EQ(w.agent.synced(w.file, w.agent.sync_begins(), 0, UINT64_MAX, one), 0) << "told";
    EXPECT_EQ(w.agent.synced(w.file, w.agent.sync_begins(), 0, UINT64_MAX, other),
              by_disk ? ENOSPC : 0);
  }
}

TEST(AgentPowerTest, WithoutThatOnlyOneTells) {
  Flushed w(with(Mistake::TellLossToOne));
  const uint64_t one = w.agent.sync_begins(), other = w.agent.sync_begins();
  origin_loses_power(w);
  EXPECT_EQ(w.agent.synced(w.file, one, 0), EIO);
  EXPECT_EQ(w.agent.synced(w.file, other, 0), 0);
}

TEST(AgentPowerTest, SoDoThoseThatStillWaitForTheirFlush) {
  Flushed w;
  w.writes(3, 4096, 4096, 'X').expect("written 3 @4096+4096");
  w.syncs(4).expect("flush @4096+4096*X", "flush time");
  w.syncs(5).expect_nothing();
  const uint64_t begun = w.agent.sync_begins();
  w.resets(Agent::Dirty::Kept, true)
      .expect("names lost", "flush @4096+4096*X size 65536", "flush time",
              "flush @4096+4096*X size 65536", "flush size 65536", "ask Shared attributes");
  w.acks_flush().expect_nothing();
  w.acks_flush().expect_nothing();
  w.acks_flush().expect_nothing();
  w.acks_flush().expect("flushed 4 error 5", "flushed 5 error 5");
  EXPECT_EQ(w.agent.synced(w.file, begun, 0), EIO);
  w.syncs(6).expect("flushed 6");
}

// An O_SYNC write, which was flushed before it was answered.
TEST(AgentPowerTest, WhoBeganToWaitBeforeTheLossHearsOfItThoughItsSyncBeganLater) {
  Flushed w;
  const uint64_t asked = w.agent.sync_begins();
  origin_loses_power(w);
  w.syncs(3).expect("flushed 3 error 5");
  const uint64_t begun = w.agent.sync_begins();
  EXPECT_EQ(w.agent.synced(w.file, begun, 0, asked), EIO);
  EXPECT_EQ(w.agent.synced(w.file, begun, 0, begun), 0);
}

// Another node has cut the file and synced that. It had the Attributes and the pages behind the
// end from us, not those before.
std::vector<std::string> brought_back_behind_a_truncation(const AgentOptions& options) {
  AgentWorld w(options);
  w.has_attributes(Exclusive, kSize).has(Exclusive, pages(0, 15));
  w.opens(1, false).expect("opened 1");
  w.writes(2, 0, 4096, 'W').expect("written 2 @0+4096");
  w.recalls_attributes().discard();
  w.recalls(pages(2, 15)).discard();
  EXPECT_EQ(w.held_attributes(), None);
  EXPECT_EQ(w.held(0), Exclusive);
  EXPECT_EQ(w.held(2), None);
  w.resets(Agent::Dirty::Kept, true);
  return w.came();
}
TEST(AgentPowerTest, BytesThatAreBroughtBackDoNotUndoATruncationByAnotherNode) {
  EXPECT_THAT(brought_back_behind_a_truncation({}), testing::Contains("flush @0+4096*W size 4096"));
}
TEST(AgentPowerTest, WithoutThatTheyBringTheSizeOfBefore) {
  EXPECT_THAT(brought_back_behind_a_truncation(with(Mistake::UndoTruncations)),
              testing::Contains("flush @0+4096*W size 65536"));
}

// The home has done a truncation of this node, and it may be on the disk, when the power goes.
struct CutHere : AgentWorld {
  explicit CutHere(const AgentOptions& options = {}) : AgentWorld(options) {
    has_attributes(Exclusive, kSize).has(Exclusive, pages(0, 15));
    opens(1, true).expect("opened 1");
    cached(pages(0, 0), 'o');
    writes_back(0, 'W').expect_nothing();
    truncates(2, 0).expect("truncate 2");
  }
};
// Found by the simulator (faults, 12057): what it had cut came back, and a size that nobody gave.
TEST(AgentPowerTest, BytesThatATruncationOnItsWayCutsBringNoSize) {
  CutHere w;
  w.recalls_attributes().discard();
  w.resets(Agent::Dirty::Kept, true);
  EXPECT_THAT(w.came(), testing::Contains("flush @0+4096*W"));
}
TEST(AgentPowerTest, WithoutThatTheyUndoIt) {
  CutHere w(with(Mistake::UndoTruncations));
  w.recalls_attributes().discard();
  w.resets(Agent::Dirty::Kept, true);
  EXPECT_THAT(w.came(), testing::Contains("flush @0+4096*W size 65536"));
}
// Found by the simulator (faults, 15412).
TEST(AgentPowerTest, NorDoTheyWhenItsCallerDoesNotWaitForItAnyMore) {
  CutHere w;
  w.recalls_attributes().discard();
  w.truncation_goes_on(0).discard();
  w.resets(Agent::Dirty::Kept, true);
  EXPECT_THAT(w.came(), testing::Contains("flush @0+4096*W"));
  w.late_truncation(0, false).discard();
}
TEST(AgentPowerTest, OneThatHasNotTakenTheAttributesYetHasCutNothing) {
  CutHere w;
  w.resets(Agent::Dirty::Kept, true);
  EXPECT_THAT(w.came(), testing::Contains("flush @0+4096*W size 65536"));
}
// Without a power failure the home knows whether it did it, and does it if not.
TEST(AgentPowerTest, ASizeThatIsSentAgainAfterItIsNotGreaterThanSuchATruncationLeaves) {
  for (const bool disk_has_lost : {true, false}) {
    AgentWorld w;
    w.has_attributes(Exclusive, kSize).has(Exclusive, pages(0, 31));
    w.opens(1, false).expect("opened 1");
    w.writes(2, kSize, 4096, 'W').expect("written 2 @65536+4096");
    w.truncates(3, 4096).expect("truncate 3");
    w.recalls_attributes().expect("flush size 69632 time", "ack 0-0 watches");
    w.resets(Agent::Dirty::Kept, disk_has_lost);
    EXPECT_THAT(w.came(), testing::Contains(disk_has_lost ? "flush size 4096 time"
                                                          : "flush size 69632 time"));
    EXPECT_EQ(w.agent.synced(w.file, w.agent.sync_begins(), 0), disk_has_lost ? EIO : 0)
        << "the truncation may have come to nothing, and the bytes are cut all the same";
  }
}

// Found by the simulator (faults, 26185): a grant of pages that the home had made before it knew.
TEST(AgentPowerTest, AGrantDoesNotForgetHowFarTheFileHasGrownHere) {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize).has(Exclusive, pages(1, 31));
  w.opens(1, false).expect("opened 1");
  w.writes(2, kSize, 4096, 'W').expect("written 2 @65536+4096");
  w.has(Exclusive, pages(0, 0));
  w.recalls_attributes().discard();
  w.acks_flush().expect_nothing();
  w.resets(Agent::Dirty::Kept, true);
  EXPECT_THAT(w.came(), testing::Contains("flush @65536+4096*W size 69632"));
}
TEST(AgentPowerTest, NorDoesOneThatTheHomeMadeBeforeItWasTold) {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize).has(Exclusive, pages(1, 31));
  w.opens(1, false).expect("opened 1");
  w.writes(2, kSize, 4096, 'W').expect("written 2 @65536+4096");
  w.recalls_attributes().discard();
  w.has(Exclusive, pages(0, 0));
  w.acks_flush().expect_nothing();
  w.resets(Agent::Dirty::Kept, true);
  EXPECT_THAT(w.came(), testing::Contains("flush @65536+4096*W size 69632"));
}

// Found by the simulator (faults, 1912): an append whose page another node wanted at that moment.
TEST(AgentPowerTest, BytesUnderWayOfPagesThatWereGivenUpBringTheirEnd) {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize).has(Exclusive, pages(0, 15));
  w.opens(1, false).expect("opened 1");
  w.writes(2, 100, 50, 'W').expect("written 2 @100+50");
  w.writes(3, 40960, 4096, 'X').expect("written 3 @40960+4096");
  w.recalls_attributes().discard();
  w.recalls(pages(2, 15)).discard();
  w.resets(Agent::Dirty::Kept, true);
  EXPECT_THAT(w.came(), testing::Contains(testing::HasSubstr("@40960+4096*X size 45056")));
}

// Found by the simulator (faults, 796): they were cut at the end that the power failure had left.
TEST(AgentPowerTest, BytesAreBroughtBackWithTheSizeThatTheFileHad) {
  Flushed w;
  w.writes(3, kSize - 4096, 4096, 'X').expect("written 3 @61440+4096");
  w.resets(Agent::Dirty::Kept, true)
      .expect("names lost", "flush @61440+4096*X size 65536", "flush size 65536 time",
              "ask Shared attributes");
}

// Found by the simulator (power, 827993): the home had restarted without a loss before, and what it
// was to be brought back then was not there yet.
TEST(AgentPowerTest, SoTheyAreWhenTheHomeRestartsOnceMoreBeforeItHasThem) {
  Flushed w;
  w.writes(3, kSize - 4096, 4096, 'X').expect("written 3 @61440+4096");
  w.resets(Agent::Dirty::Kept, false)
      .expect("names lost", "flush @61440+4096*X", "flush time", "ask Shared attributes");
  w.resets(Agent::Dirty::Kept, true);
  EXPECT_THAT(w.came(), testing::Contains("flush @61440+4096*X size 65536"));
}

}  // namespace
}  // namespace vremote::coherence
