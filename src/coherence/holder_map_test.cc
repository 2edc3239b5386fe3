#include "coherence/holder_map.h"

#include <gtest/gtest.h>

#include <array>

#include "base/prng.h"
#include "coherence/test_text.h"

namespace vremote::coherence {
namespace {

using test::pages;
using enum LeaseMode;

constexpr NodeId kOne{1}, kTwo{2}, kThree{3};

TEST(HolderMapTest, TheRangesOfANodeAreThoseItWasGrantedHoweverOthersCutTheMap) {
  HolderMap map;
  EXPECT_EQ(map.grant(pages(0, 99), kOne, Shared), 1);
  ptrdiff_t of_two = 0;
  for (uint64_t page = 1; page < 99; page += 2)
    of_two += map.grant(pages(page, page), kTwo, Shared);
  EXPECT_EQ(of_two, 49);
  EXPECT_EQ(map.ranges_of(kOne), 1u);
  EXPECT_EQ(map.ranges_of(kTwo), 49u);
  EXPECT_EQ(map.reduce(pages(40, 59), kOne, None), 1);  // two are left
  EXPECT_EQ(map.grant(pages(0, 98), kTwo, Shared), -48);
  EXPECT_EQ(map.ranges_of(kTwo), 1u);
  EXPECT_EQ(map.remove(kOne), -2);
  EXPECT_EQ(map.remove(kTwo), -1);
  EXPECT_TRUE(map.empty());
}

TEST(HolderMapTest, RangesAreCountedAsTheMapChanges) {
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    Prng random(seed);
    HolderMap map;
    std::map<NodeId, ptrdiff_t> counted;
    for (int step = 0; step < 60; ++step) {
      const NodeId node{static_cast<uint32_t>(random.between(1, 3))};
      const uint64_t first = random.below(20);
      const PageRange range{first, first + random.between(1, 8)};
      if (random.chance(40)) {
        counted[node] += map.reduce(range, node, random.chance(50) ? Shared : None);
      } else {
        const LeaseMode mode = random.chance(30) ? Exclusive : Shared;
        bool free = true;
        map.each(range, [&](PageRange, const Holding& holding) {
          free = free && (holding.only(node) || (mode == Shared && holding.mode == Shared));
          return free;
        });
        if (free) counted[node] += map.grant(range, node, mode);
      }
      map.check();
      for (const auto& [who, ranges] : counted)
        ASSERT_EQ(static_cast<ptrdiff_t>(map.ranges_of(who)), ranges) << "seed " << seed;
    }
  }
}

TEST(HolderMapTest, NeighboursThatSayTheSameAreOnePiece) {
  HolderMap map;
  map.grant(pages(0, 3), kOne, Shared);
  map.grant(pages(8, 9), kOne, Shared);
  EXPECT_EQ(map.size(), 2u);
  map.grant(pages(4, 7), kOne, Shared);
  EXPECT_EQ(map.size(), 1u);
  map.grant(pages(5, 5), kTwo, Shared);
  EXPECT_EQ(map.size(), 3u);
  map.remove(kTwo);
  EXPECT_EQ(map.size(), 1u);
}

TEST(HolderMapTest, CostIsPerRangeNotPerPage) {
  HolderMap map;
  map.grant(PageRange::all(), kOne, Exclusive);
  map.reduce(pages(500, 500), kOne, None);
  EXPECT_EQ(map.size(), 2u);
}

TEST(HolderMapTest, SharedAndUpdateOfOneNodeAreExclusive) {
  HolderMap map;
  map.grant(kUnit, kOne, Shared);
  map.grant(kUnit, kOne, Update);
  EXPECT_EQ(map.at(0).mode, Exclusive);
}

TEST(HolderMapTest, WidestEndsAtAForbiddingPieceEvenInsideTheNeed) {
  HolderMap map;
  map.grant(pages(0, 9), kOne, Exclusive);
  map.grant(pages(20, 29), kTwo, Shared);
  auto only_three = [](const Holding& holding) { return holding.only(kThree); };
  EXPECT_EQ(map.widest(pages(12, 13), only_three), pages(10, 19));
  EXPECT_EQ(map.widest(pages(5, 13), only_three), pages(5, 19)) << "page 4 is n1's";
  EXPECT_EQ(map.widest(pages(5, 6), only_three), pages(5, 6));
  EXPECT_EQ(map.widest(pages(12, 25), only_three), pages(10, 25));
  EXPECT_EQ(map.widest(pages(12, 13), [](const Holding&) { return true; }), PageRange::all());
}

TEST(HolderMapDeathTest, AGrantBesideAConflictingHolderStopsTheProgram) {
  HolderMap map;
  map.grant(pages(0, 3), kOne, Exclusive);
  EXPECT_DEATH(map.grant(pages(3, 5), kTwo, Shared), "a grant conflicts");
}

TEST(HolderMapTest, AgreesWithAHoldingPerPage) {
  constexpr uint64_t kPages = 10;
  for (uint64_t seed = 1; seed <= 300; ++seed) {
    Prng prng(seed);
    HolderMap map;
    std::array<std::array<LeaseMode, 4>, kPages> model{};  // by page and node
    auto free_for = [&](uint64_t page, uint32_t node, LeaseMode mode) {
      for (uint32_t other = 1; other < 4; ++other)
        if (other != node && !compatible(model[page][other], mode)) return false;
      // One with Shared and Update has Exclusive: it must be alone for that.
      if (model[page][node] != None && !covers(model[page][node], mode))
        for (uint32_t other = 1; other < 4; ++other)
          if (other != node && model[page][other] != None) return false;
      return true;
    };
    for (int step = 0; step < 60; ++step) {
      const uint64_t first = prng.below(kPages);
      const PageRange range{first, first + 1 + prng.below(kPages - first)};
      const uint32_t node = 1 + static_cast<uint32_t>(prng.below(3));
      const LeaseMode mode = static_cast<LeaseMode>(1 + prng.below(3));
      if (prng.chance(60)) {
        bool free = true;
        for (uint64_t page = range.first; page < range.end; ++page)
          free = free && free_for(page, node, mode);
        if (!free) continue;
        map.grant(range, NodeId{node}, mode);
        for (uint64_t page = range.first; page < range.end; ++page)
          if (LeaseMode& have = model[page][node]; !covers(have, mode))
            have = have == None ? mode : Exclusive;
      } else {
        const LeaseMode to = prng.chance(50) ? Shared : None;
        map.reduce(range, NodeId{node}, to);
        for (uint64_t page = range.first; page < range.end; ++page) {
          bool alone = true;
          for (uint32_t other = 1; other < 4; ++other)
            alone = alone && (other == node || model[page][other] == None);
          LeaseMode& have = model[page][node];
          if (have == None) continue;
          have = to == Shared && (have == Shared || alone)
                     ? Shared
                     : None;  // Update beside another's Update goes altogether
        }
      }
      map.check();

      for (uint64_t page = 0; page < kPages; ++page) {
        Holding expected;
        for (uint32_t n = 1; n < 4; ++n) {
          if (model[page][n] == None) continue;
          expected.mode = model[page][n];
          expected.nodes.push_back(NodeId{n});
        }
        ASSERT_EQ(map.at(page), expected) << "seed " << seed << " page " << page;
      }
      // each() visits exactly the held pages of its range, in order.
      uint64_t at = range.first;
      map.each(range, [&](PageRange piece, const Holding& holding) {
        EXPECT_TRUE(range.contains(piece));
        for (; at < piece.first; ++at) EXPECT_EQ(map.at(at), Holding{});
        for (; at < piece.end; ++at) EXPECT_EQ(map.at(at), holding);
        return true;
      });
      for (; at < range.end; ++at) ASSERT_EQ(map.at(at), Holding{});
      // widest() stops at the first page on either side that is not allowed.
      auto allowed = [&](const Holding& holding) { return holding.only(NodeId{node}); };
      auto may = [&](uint64_t page) { return map.at(page).nodes.empty() || allowed(map.at(page)); };
      PageRange wide = range;
      while (wide.first > 0 && may(wide.first - 1)) --wide.first;
      while (wide.end < kPages && may(wide.end)) ++wide.end;
      if (wide.end == kPages) wide.end = kPageEnd;
      ASSERT_EQ(map.widest(range, allowed), wide) << "seed " << seed;
    }
  }
}

}  // namespace
}  // namespace vremote::coherence
