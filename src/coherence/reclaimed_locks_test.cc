#include "coherence/reclaimed_locks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <string>

namespace vremote::coherence {
namespace {

const FileId kFile{.export_index = 0, .generation = 1, .inode = 7};

class ReclaimedLocksTest : public testing::Test {
 protected:
  ReclaimedLocksTest() {
    std::vector<LockTable::Ticket> woken;
    for (uint64_t owner : {1u, 2u})
      (void)held.set({.file = kFile,
                      .owner = {{}, owner},
                      .type = LockType::Write,
                      .range = {100 * owner, 100 * owner + 99},
                      .pid = 4711,
                      .ticket = {}},
                     woken);
  }
  static LockCall call(LockAction action, LockType type, uint64_t start, uint64_t end) {
    return {.file = kFile, .action = action, .type = type, .owner = 1, .start = start, .end = end};
  }
  std::vector<std::string> reclaimed(const std::vector<LockCall>& under_way) const {
    std::vector<std::string> out;
    for (const LockTable::Held& h : locks_to_reclaim(held, under_way))
      out.push_back((h.lock.type == LockType::Write ? "write " : "read ") +
                    std::to_string(h.lock.range.start) + "-" + std::to_string(h.lock.range.end));
    return out;
  }
  LockTable held;
};

TEST_F(ReclaimedLocksTest, WhatIsHeldIsClaimed) {
  EXPECT_THAT(reclaimed({}), testing::UnorderedElementsAre("write 100-199", "write 200-299"));
}

TEST_F(ReclaimedLocksTest, WhatIsBeingGivenUpIsNot) {
  EXPECT_THAT(reclaimed({call(LockAction::Release, LockType::Unlock, 0, 0)}),
              testing::UnorderedElementsAre("write 200-299"));
  EXPECT_THAT(reclaimed({call(LockAction::Try, LockType::Unlock, 150, 400)}),
              testing::UnorderedElementsAre("write 100-149", "write 200-299"))
      << "only its owner's";
}

TEST_F(ReclaimedLocksTest, WhatIsBeingExchangedForLessIsClaimedAsThat) {
  EXPECT_THAT(reclaimed({call(LockAction::Wait, LockType::Read, 150, 400)}),
              testing::UnorderedElementsAre("write 100-149", "read 150-199", "write 200-299"));
}

TEST_F(ReclaimedLocksTest, WhatIsOnlyAskedForIsNotClaimed) {
  EXPECT_THAT(reclaimed({call(LockAction::Try, LockType::Write, 0, 1000),
                         call(LockAction::Test, LockType::Unlock, 0, 1000)}),
              testing::UnorderedElementsAre("write 100-199", "write 200-299"));
}

// Found by the simulator (locks, 5180): it was not noted, and not claimed.
TEST_F(ReclaimedLocksTest, AnFlockThatAnotherOfTheNodeHasLetGoOfIsNoted) {
  LockTable flocks;
  const auto locks = [&](uint64_t owner, LockType type) {
    note_lock(flocks, {.file = kFile,
                       .action = LockAction::Wait,
                       .kind = LockKind::Flock,
                       .type = type,
                       .owner = owner});
  };
  locks(1, LockType::Read);
  locks(2, LockType::Read);
  locks(2, LockType::Write);  // the first waits for the same
  ASSERT_EQ(flocks.all().size(), 1u);
  EXPECT_EQ(flocks.all()[0].lock.owner.id, 2u);
  EXPECT_EQ(flocks.all()[0].lock.type, LockType::Write);
}

// The answer to an unlock of the first is still under way, the home has given the lock to the
// second.
TEST_F(ReclaimedLocksTest, WhatIsGivenToAnotherOfTheNodeLeavesAllElse) {
  const auto wait = [](uint64_t owner, LockType type, uint64_t start, uint64_t end) {
    return LockCall{.file = kFile,
                    .action = LockAction::Wait,
                    .type = type,
                    .owner = owner,
                    .start = start,
                    .end = end};
  };
  note_lock(held, wait(3, LockType::Write, 120, 149));
  EXPECT_THAT(reclaimed({}), testing::UnorderedElementsAre("write 100-119", "write 120-149",
                                                           "write 150-199", "write 200-299"));
  note_lock(held, wait(3, LockType::Read, 500, 509));
  note_lock(held, wait(1, LockType::Read, 505, 509));
  note_lock(held, wait(2, LockType::Write, 500, 504));
  EXPECT_THAT(reclaimed({}), testing::UnorderedElementsAre(
                                 "write 100-119", "write 120-149", "write 150-199", "write 200-299",
                                 "read 505-509", "read 505-509", "write 500-504"));
}

// Found by the simulator (locks, 640): it was claimed against another that had been given it.
TEST_F(ReclaimedLocksTest, AnFlockWhoseExchangeWasGivenUpIsNotClaimed) {
  const auto kept = [](LockKind kind, LockAction action, int error) {
    LockTable table;
    LockCall call{
        .file = kFile, .action = LockAction::Try, .kind = kind, .type = LockType::Read, .owner = 1};
    note_lock(table, call);
    call.owner = 2;
    note_lock(table, call);
    call.type = LockType::Write;
    call.action = action;
    note_lock(table, call, error);
    return table.all().size();
  };
  EXPECT_EQ(kept(LockKind::Flock, LockAction::Wait, EINTR), 1u);
  EXPECT_EQ(kept(LockKind::Flock, LockAction::Wait, EIO), 1u) << "nobody knows";
  EXPECT_EQ(kept(LockKind::Flock, LockAction::Wait, ENOLCK), 2u) << "it did not wait";
  EXPECT_EQ(kept(LockKind::Flock, LockAction::Try, EAGAIN), 2u) << "it did not wait";
  EXPECT_EQ(kept(LockKind::Range, LockAction::Wait, EINTR), 2u) << "what is there stays meanwhile";
}

// Found by the simulator (locks, 6989): another had been given it, and lost it to this claim.
TEST_F(ReclaimedLocksTest, AnFlockWhoseExchangeForAStrongerOneWaitsIsNotClaimed) {
  const auto claims = [](LockType has, LockType asks, LockAction action) {
    LockTable flocks;
    std::vector<LockTable::Ticket> woken;
    (void)flocks.set({.file = kFile,
                      .kind = LockKind::Flock,
                      .owner = {{}, 1},
                      .type = has,
                      .range = {},
                      .ticket = {}},
                     woken);
    const std::vector<LockCall> under_way{
        {.file = kFile, .action = action, .kind = LockKind::Flock, .type = asks, .owner = 1}};
    return locks_to_reclaim(flocks, under_way).size();
  };
  EXPECT_EQ(claims(LockType::Read, LockType::Write, LockAction::Wait), 0u);
  EXPECT_EQ(claims(LockType::Read, LockType::Write, LockAction::Try), 1u) << "it fails, or is done";
  EXPECT_EQ(claims(LockType::Write, LockType::Write, LockAction::Wait), 1u) << "it stays";
  EXPECT_EQ(claims(LockType::Write, LockType::Read, LockAction::Wait), 1u)
      << "nobody is in the way";
}

}  // namespace
}  // namespace vremote::coherence
