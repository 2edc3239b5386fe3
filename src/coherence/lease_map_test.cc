#include "coherence/lease_map.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>

#include "base/prng.h"
#include "coherence/test_text.h"

namespace vremote::coherence {
namespace {

using test::pages;
using enum LeaseMode;

TEST(LeaseMapTest, AGrantNeverWeakensWhatIsHeld) {
  LeaseMap map;
  map.raise(pages(2, 3), Exclusive);
  map.raise(pages(0, 5), Shared);
  EXPECT_EQ(map.at(1), Shared);
  EXPECT_EQ(map.at(2), Exclusive);
  EXPECT_TRUE(map.covers(pages(0, 5), Shared)) << "Exclusive allows reading too";
  EXPECT_FALSE(map.covers(pages(1, 2), Exclusive));
}

TEST(LeaseMapTest, ADowngradeLeavesSharedWhatWasHeldAndNothingElse) {
  LeaseMap map;
  map.raise(pages(2, 3), Exclusive);
  map.reduce(pages(0, 2), Shared);
  EXPECT_EQ(map.at(1), None);
  EXPECT_EQ(map.at(2), Shared);
  EXPECT_EQ(map.at(3), Exclusive);
}

TEST(LeaseMapTest, AgreesWithAModePerPage) {
  constexpr uint64_t kPages = 12;
  for (uint64_t seed = 1; seed <= 300; ++seed) {
    Prng prng(seed);
    LeaseMap map;
    std::array<LeaseMode, kPages> model{};
    for (int step = 0; step < 60; ++step) {
      const uint64_t first = prng.below(kPages);
      const PageRange range{first, first + 1 + prng.below(kPages - first)};
      const LeaseMode mode = prng.chance(50) ? Shared : Exclusive;
      const bool up = prng.chance(60);
      const LeaseMode to = prng.chance(50) ? Shared : None;
      up ? map.raise(range, mode) : map.reduce(range, to);
      for (uint64_t page = range.first; page < range.end; ++page)
        model[page] = up ? std::max(model[page], mode) : std::min(model[page], to);

      for (uint64_t page = 0; page < kPages; ++page)
        ASSERT_EQ(map.at(page), model[page]) << "seed " << seed << " page " << page;
      for (LeaseMode want : {Shared, Exclusive}) {
        bool all = true;
        for (uint64_t page = range.first; page < range.end; ++page)
          all = all && model[page] >= want;
        ASSERT_EQ(map.covers(range, want), all) << "seed " << seed;
      }
      ASSERT_EQ(map.empty(),
                std::all_of(model.begin(), model.end(), [](LeaseMode m) { return m == None; }));
    }
  }
}

}  // namespace
}  // namespace vremote::coherence
