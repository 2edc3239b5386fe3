#include "base/page_range.h"

#include <gtest/gtest.h>

#include <set>

#include "base/prng.h"

namespace vremote {
namespace {

TEST(PageRangeTest, BytesTouchEveryPageTheyReach) {
  EXPECT_EQ(PageRange::of_bytes(0, 1), (PageRange{0, 1}));
  EXPECT_EQ(PageRange::of_bytes(4095, 2), (PageRange{0, 2}));
  EXPECT_EQ(PageRange::of_bytes(8192, 4096), (PageRange{2, 3}));
  EXPECT_TRUE(PageRange::of_bytes(8192, 0).empty());
}

// Against a plain set of page numbers, on random operations.
TEST(PageSetTest, AgreesWithASetOfPages) {
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    Prng prng(seed);
    PageSet set;
    std::set<uint64_t> model;
    for (int step = 0; step < 100; ++step) {
      uint64_t first = prng.below(40);
      PageRange range{first, first + prng.below(8)};
      if (prng.chance(60)) {
        set.add(range);
        for (uint64_t p = range.first; p < range.end; ++p) model.insert(p);
      } else {
        set.remove(range);
        for (uint64_t p = range.first; p < range.end; ++p) model.erase(p);
      }
      ASSERT_EQ(set.page_count(), model.size()) << "seed " << seed;
      PageRange probe{prng.below(40), 0};
      probe.end = probe.first + prng.below(10);
      size_t inside = 0;
      for (uint64_t p = probe.first; p < probe.end; ++p) inside += model.count(p);
      ASSERT_EQ(set.overlaps(probe), inside > 0);
      ASSERT_EQ(set.contains(probe), inside == probe.count());
      ASSERT_EQ(set.intersect(probe).page_count(), inside);
      ASSERT_EQ(set.missing(probe).page_count(), probe.count() - inside);
    }
    uint64_t last = 0;
    bool any = false;
    for (PageRange r : set.ranges()) {
      ASSERT_FALSE(r.empty());
      if (any) {
        ASSERT_GT(r.first, last) << "ranges touch";
      }
      last = r.end;
      any = true;
    }
  }
}

}  // namespace
}  // namespace vremote
