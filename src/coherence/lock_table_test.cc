#include "coherence/lock_table.h"

#include <gtest/gtest.h>

#include <array>
#include <map>
#include <utility>
#include <vector>

#include "base/prng.h"

namespace vremote::coherence {
namespace {

using Decision = LockTable::Decision;
using Ticket = LockTable::Ticket;
const FileId kFile{0, 1, 7};
const FileId kOther{0, 1, 8};
constexpr uint64_t kEnd = INT64_MAX;

struct World {
  LockTable table;
  std::vector<Ticket> woken;
  uint64_t next_call = 1;

  LockTable::Request request(uint32_t node, uint64_t owner, LockType type, uint64_t start,
                             uint64_t end, bool wait = false) {
    return {.file = kFile,
            .kind = LockKind::Range,
            .owner = {NodeId{node}, owner},
            .type = type,
            .range = {start, end},
            .pid = 1,
            .wait = wait,
            .ticket = {NodeId{node}, next_call++}};
  }
  Decision set(const LockTable::Request& r) {
    woken.clear();
    Decision d = table.set(r, woken);
    table.check();
    return d;
  }
};

TEST(LockTableTest, ReadersShareAndAWriterIsAlone) {
  World w;
  EXPECT_EQ(w.set(w.request(1, 1, LockType::Read, 0, 9)), Decision::Done);
  EXPECT_EQ(w.set(w.request(2, 1, LockType::Read, 5, 20)), Decision::Done);
  EXPECT_EQ(w.set(w.request(3, 1, LockType::Write, 9, 9)), Decision::Conflict);
  EXPECT_EQ(w.set(w.request(3, 1, LockType::Write, 21, kEnd)), Decision::Done);
  EXPECT_EQ(w.set(w.request(1, 2, LockType::Read, 30, 31)), Decision::Conflict);
}

TEST(LockTableTest, TheSameOwnerNumberOnAnotherNodeIsAnotherOwner) {
  World w;
  EXPECT_EQ(w.set(w.request(1, 5, LockType::Write, 0, kEnd)), Decision::Done);
  EXPECT_EQ(w.set(w.request(2, 5, LockType::Write, 0, kEnd)), Decision::Conflict);
}

TEST(LockTableTest, OfALongLineTheFirstAreTold) {
  World w;
  w.set(w.request(1, 1, LockType::Write, 0, 9));
  for (uint64_t owner = 2; owner < 6; ++owner)
    EXPECT_EQ(w.set(w.request(1, owner, LockType::Write, 0, 9, true)), Decision::Waits);
  const auto all = w.table.blocked_requests(10), some = w.table.blocked_requests(3, 2);
  ASSERT_EQ(all.size(), 4u);
  EXPECT_EQ(all[3].held_by.size(), 4u);
  ASSERT_EQ(some.size(), 3u);
  ASSERT_EQ(some[2].held_by.size(), 2u);
  EXPECT_EQ(some[2].held_by[0].owner.id, 1u) << "who has it";
  EXPECT_EQ(some[2].held_by[1].owner.id, 2u) << "who is next";
}

TEST(LockTableTest, UnlockingTheMiddleSplitsAndWakesWhoWaitsForIt) {
  World w;
  EXPECT_EQ(w.set(w.request(1, 1, LockType::Write, 0, 99)), Decision::Done);
  auto waits = w.request(2, 1, LockType::Write, 40, 59, true);
  EXPECT_EQ(w.set(waits), Decision::Waits);
  EXPECT_EQ(w.set(w.request(1, 1, LockType::Unlock, 40, 49)), Decision::Done);
  EXPECT_TRUE(w.woken.empty());
  EXPECT_EQ(w.set(w.request(1, 1, LockType::Unlock, 50, 59)), Decision::Done);
  ASSERT_EQ(w.woken.size(), 1u);
  EXPECT_EQ(w.woken[0], waits.ticket);
  EXPECT_EQ(w.table.held(), 3u);
}

TEST(LockTableTest, TheLocksOfANodeAreCountedAndUnlockingTheMiddleOfOneMakesMore) {
  World w;
  EXPECT_EQ(w.set(w.request(1, 1, LockType::Write, 0, 99)), Decision::Done);
  EXPECT_EQ(w.set(w.request(1, 2, LockType::Read, 200, 299)), Decision::Done);
  EXPECT_FALSE(w.table.holds_too_many(w.request(1, 1, LockType::Read, 300, 300), 3));
  EXPECT_TRUE(w.table.holds_too_many(w.request(1, 1, LockType::Read, 300, 300), 2));
  EXPECT_FALSE(w.table.holds_too_many(w.request(2, 1, LockType::Read, 300, 300), 2)) << "another";
  EXPECT_TRUE(w.table.holds_too_many(w.request(1, 1, LockType::Unlock, 50, 50), 2));
  for (const auto& [start, end] : {std::pair{0u, 50u}, {50u, 99u}, {0u, 99u}, {150u, 160u}})
    EXPECT_FALSE(w.table.holds_too_many(w.request(1, 1, LockType::Unlock, start, end), 2));
  EXPECT_EQ(w.set(w.request(1, 1, LockType::Unlock, 0, 99)), Decision::Done);
  EXPECT_FALSE(w.table.holds_too_many(w.request(1, 1, LockType::Read, 300, 300), 2));
}

// n waits for n + 1, and so on: each holds what the one before it wants.
TEST(LockTableTest, ALongLineOfOwnersIsFollowedAsFarAsATrailGoes) {
  World w;
  constexpr uint64_t kOwners = 400;
  for (uint64_t owner = 1; owner <= kOwners; ++owner)
    EXPECT_EQ(w.set(w.request(1, owner, LockType::Write, owner, owner)), Decision::Done);
  std::vector<LockTable::Ticket> tickets;
  for (uint64_t owner = 1; owner < kOwners; ++owner) {
    auto waits = w.request(1, owner, LockType::Write, owner + 1, owner + 1, true);
    waits.since = owner;
    tickets.push_back(waits.ticket);
    EXPECT_EQ(w.table.set(waits, w.woken), Decision::Waits);
  }
  const auto far = w.table.in_the_way(kFile, tickets.front(), kOwners, 1000);
  EXPECT_GT(far.owners.size(), 30u);
  const auto near = w.table.in_the_way(kFile, tickets.front(), kOwners, 1000, 5);
  EXPECT_EQ(near.owners.size(), 5u);
  EXPECT_EQ(near.owners.back().through.size(), 5u);
  EXPECT_TRUE(w.table.in_the_way(kFile, tickets.front(), kOwners, 1000, 0).owners.empty());
}

TEST(LockTableTest, AWaitingWriterIsNotOvertakenByReaders) {
  World w;
  EXPECT_EQ(w.set(w.request(1, 1, LockType::Read, 0, 9)), Decision::Done);
  auto writer = w.request(2, 1, LockType::Write, 0, 9, true);
  EXPECT_EQ(w.set(writer), Decision::Waits);
  auto reader = w.request(3, 1, LockType::Read, 0, 9, true);
  EXPECT_EQ(w.set(reader), Decision::Waits);
  EXPECT_EQ(w.set(w.request(1, 1, LockType::Unlock, 0, kEnd)), Decision::Done);
  ASSERT_EQ(w.woken.size(), 1u);
  EXPECT_EQ(w.woken[0], writer.ticket);
  EXPECT_EQ(w.set(w.request(2, 1, LockType::Unlock, 0, kEnd)), Decision::Done);
  ASSERT_EQ(w.woken.size(), 1u);
  EXPECT_EQ(w.woken[0], reader.ticket);
}

TEST(LockTableTest, AnUpgradeWaitsOnlyForTheOtherReaders) {
  World w;
  EXPECT_EQ(w.set(w.request(1, 1, LockType::Read, 0, 9)), Decision::Done);
  EXPECT_EQ(w.set(w.request(2, 1, LockType::Read, 0, 9)), Decision::Done);
  auto other = w.request(3, 1, LockType::Write, 0, 9, true);
  EXPECT_EQ(w.set(other), Decision::Waits);
  auto upgrade = w.request(1, 1, LockType::Write, 0, 9, true);
  EXPECT_EQ(w.set(upgrade), Decision::Waits);
  EXPECT_EQ(w.set(w.request(2, 1, LockType::Unlock, 0, 9)), Decision::Done);
  ASSERT_EQ(w.woken.size(), 1u);
  EXPECT_EQ(w.woken[0], upgrade.ticket);
}

TEST(LockTableTest, ACircleOfWaitersIsRefusedAcrossNodes) {
  World w;
  EXPECT_EQ(w.set(w.request(1, 1, LockType::Write, 0, 0)), Decision::Done);
  EXPECT_EQ(w.set(w.request(2, 1, LockType::Write, 1, 1)), Decision::Done);
  EXPECT_EQ(w.set(w.request(3, 1, LockType::Write, 2, 2)), Decision::Done);
  EXPECT_EQ(w.set(w.request(1, 1, LockType::Write, 1, 1, true)), Decision::Waits);
  EXPECT_EQ(w.set(w.request(2, 1, LockType::Write, 2, 2, true)), Decision::Waits);
  EXPECT_EQ(w.set(w.request(3, 1, LockType::Write, 0, 0, true)), Decision::Deadlock);
  // Without the last, no circle: it is refused only because it would close one.
  EXPECT_EQ(w.set(w.request(3, 2, LockType::Write, 0, 0, true)), Decision::Waits);
}

TEST(LockTableTest, TheCircleMayPassThroughSeveralFiles) {
  World w;
  auto on = [&](FileId file, LockTable::Request r) {
    r.file = file;
    return w.set(r);
  };
  EXPECT_EQ(on(kFile, w.request(1, 1, LockType::Write, 0, 0)), Decision::Done);
  EXPECT_EQ(on(kOther, w.request(2, 1, LockType::Write, 0, 0)), Decision::Done);
  EXPECT_EQ(on(kOther, w.request(1, 1, LockType::Read, 0, 0, true)), Decision::Waits);
  EXPECT_EQ(on(kFile, w.request(2, 1, LockType::Read, 0, 0, true)), Decision::Deadlock);
}

TEST(LockTableTest, ANodeThatIsGoneHoldsAndWaitsForNothing) {
  World w;
  EXPECT_EQ(w.set(w.request(1, 1, LockType::Write, 0, kEnd)), Decision::Done);
  EXPECT_EQ(w.set(w.request(1, 2, LockType::Write, 0, kEnd, true)), Decision::Waits);
  auto waits = w.request(2, 1, LockType::Write, 0, kEnd, true);
  EXPECT_EQ(w.set(waits), Decision::Waits);
  std::vector<Ticket> woken;
  w.table.node_gone(NodeId{1}, woken);
  w.table.check();
  ASSERT_EQ(woken.size(), 1u);
  EXPECT_EQ(woken[0], waits.ticket);
  EXPECT_EQ(w.table.held(), 1u);
}

TEST(LockTableTest, ReleasingAnOwnerCancelsItsWaitingRequests) {
  World w;
  EXPECT_EQ(w.set(w.request(1, 1, LockType::Write, 0, 9)), Decision::Done);
  auto waits = w.request(2, 1, LockType::Write, 0, 9, true);
  EXPECT_EQ(w.set(waits), Decision::Waits);
  std::vector<Ticket> woken, cancelled;
  w.table.release(kFile, LockKind::Range, {NodeId{2}, 1}, woken, cancelled);
  EXPECT_EQ(cancelled, std::vector<Ticket>{waits.ticket});
  EXPECT_FALSE(w.table.cancel(kFile, waits.ticket, woken));
  w.table.release(kFile, LockKind::Range, {NodeId{1}, 1}, woken, cancelled);
  EXPECT_EQ(w.table.held(), 0u);
}

TEST(LockTableTest, WhoHoldsSomethingPassesTheLine) {
  World w;
  EXPECT_EQ(w.set(w.request(1, 1, LockType::Write, 0, 0)), Decision::Done);
  EXPECT_EQ(w.set(w.request(3, 1, LockType::Write, 5, 5)), Decision::Done);
  EXPECT_EQ(w.set(w.request(2, 1, LockType::Write, 0, 1, true)), Decision::Waits);
  // Behind node 2 it would wait for node 1, which is about to wait for it.
  EXPECT_EQ(w.set(w.request(3, 1, LockType::Read, 1, 1, true)), Decision::Done);
  EXPECT_EQ(w.set(w.request(1, 1, LockType::Write, 5, 5, true)), Decision::Waits);
  EXPECT_EQ(w.set(w.request(3, 1, LockType::Unlock, 0, kEnd)), Decision::Done);
  EXPECT_EQ(w.woken.size(), 1u);
}

TEST(LockTableTest, ACircleMayPassThroughTheLine) {
  World w;
  EXPECT_EQ(w.set(w.request(1, 1, LockType::Write, 0, 0)), Decision::Done);
  EXPECT_EQ(w.set(w.request(2, 1, LockType::Write, 0, 1, true)), Decision::Waits);
  EXPECT_EQ(w.set(w.request(3, 1, LockType::Read, 1, 1, true)), Decision::Waits);
  EXPECT_EQ(w.set(w.request(3, 1, LockType::Write, 5, 5)), Decision::Done);  // another thread
  EXPECT_EQ(w.set(w.request(1, 1, LockType::Write, 5, 5, true)), Decision::Deadlock);
}

TEST(LockTableTest, ALongCircleIsSeen) {
  LockTable table;
  std::vector<Ticket> woken;
  World w;
  constexpr uint64_t kOwners = 500;
  for (uint64_t i = 0; i < kOwners; ++i)
    ASSERT_EQ(table.set(w.request(1, i, LockType::Write, i, i), woken), Decision::Done);
  for (uint64_t i = 0; i + 1 < kOwners; ++i)
    ASSERT_EQ(table.set(w.request(1, i, LockType::Write, i + 1, i + 1, true), woken),
              Decision::Waits);
  EXPECT_EQ(table.set(w.request(1, kOwners - 1, LockType::Write, 0, 0, true), woken),
            Decision::Deadlock);
}

// With a search for circles that looks at every waiter for every waiter it meets, this takes hours.
TEST(LockTableTest, ThousandsWaitInOneLine) {
  for (const bool all_hold_something : {false, true}) {
    LockTable table;
    std::vector<Ticket> woken;
    World w;
    const uint64_t waiters = all_hold_something ? 300 : 3000;
    ASSERT_EQ(table.set(w.request(1, 0, LockType::Write, 0, 0), woken), Decision::Done);
    for (uint64_t i = 1; i <= waiters; ++i) {
      ASSERT_EQ(table.set(w.request(2, i, LockType::Write, 0, 0, true), woken), Decision::Waits);
      // Their other threads: from now on each of them may be waited for.
      if (!all_hold_something) continue;
      ASSERT_EQ(table.set(w.request(2, i, LockType::Write, i, i), woken), Decision::Done);
    }
    EXPECT_EQ(table.waiting(), waiters);
    for (uint64_t i = 0; i <= waiters; ++i) {
      woken.clear();
      ASSERT_EQ(table.set(w.request(i == 0 ? 1 : 2, i, LockType::Unlock, 0, 0), woken),
                Decision::Done);
      ASSERT_EQ(woken.size(), i < waiters ? 1u : 0u);
    }
    table.check();
  }
}

TEST(LockTableTest, TwoSharedFlocksThatBothWantToBeAloneTakeTurns) {
  World w;
  const auto flock = [&](uint32_t node, LockType type, bool wait) {
    auto request = w.request(node, 1, type, 0, kEnd, wait);
    request.kind = LockKind::Flock;
    return request;
  };
  EXPECT_EQ(w.set(flock(1, LockType::Read, false)), Decision::Done);
  EXPECT_EQ(w.set(flock(2, LockType::Read, false)), Decision::Done);
  const auto first = flock(1, LockType::Write, true);
  EXPECT_EQ(w.set(first), Decision::Waits);
  EXPECT_EQ(w.set(flock(2, LockType::Write, true)), Decision::Done);  // the other has let go
  EXPECT_EQ(w.set(flock(2, LockType::Unlock, false)), Decision::Done);
  EXPECT_EQ(w.woken, std::vector<Ticket>{first.ticket});
}

TEST(LockTableTest, FlockAndByteRangesDoNotMeet) {
  World w;
  EXPECT_EQ(w.set(w.request(1, 1, LockType::Write, 0, kEnd)), Decision::Done);
  auto flock = w.request(2, 1, LockType::Write, 0, kEnd);
  flock.kind = LockKind::Flock;
  EXPECT_EQ(w.set(flock), Decision::Done);
}

// Against one cell per byte and owner, on random requests without waiting.
TEST(LockTableTest, AgreesWithAByteMap) {
  constexpr int kBytes = 12;
  for (uint64_t seed = 1; seed <= 300; ++seed) {
    Prng prng(seed);
    World w;
    std::map<uint32_t, std::array<LockType, kBytes>> model;
    for (uint32_t n = 1; n <= 3; ++n) model[n].fill(LockType::Unlock);
    for (int step = 0; step < 60; ++step) {
      const uint32_t node = static_cast<uint32_t>(prng.between(1, 3));
      const LockType type = static_cast<LockType>(prng.below(3));
      const uint64_t start = prng.below(kBytes), end = prng.between(start, kBytes - 1);
      bool free = true;
      for (auto& [other, bytes] : model) {
        if (other == node || type == LockType::Unlock) continue;
        for (uint64_t b = start; b <= end; ++b)
          if (bytes[b] == LockType::Write ||
              (bytes[b] == LockType::Read && type == LockType::Write))
            free = false;
      }
      ASSERT_EQ(w.set(w.request(node, 1, type, start, end)),
                free ? Decision::Done : Decision::Conflict)
          << "seed " << seed << " step " << step;
      if (free)
        for (uint64_t b = start; b <= end; ++b) model[node][b] = type;
    }
  }
}

}  // namespace
}  // namespace vremote::coherence
