#include "coherence/kernel_cache.h"

#include <gtest/gtest.h>

#include <array>
#include <vector>

#include "base/prng.h"
#include "coherence/test_text.h"

namespace vremote::coherence {
namespace {

using test::pages;

PageSet set(std::initializer_list<PageRange> ranges) {
  PageSet out;
  for (PageRange range : ranges) out.add(range);
  return out;
}

// A cache with these pages in it, long ago.
KernelCache with(PageRange range, Mistakes mistakes = {}) {
  KernelCache cache(mistakes);
  cache.fill_arrived(1, range);
  cache.fill_answered(1, range, Instant{});
  return cache;
}

TEST(KernelCacheTest, APageMayBeCachedFromItsAnsweredFillOn) {  // C1
  KernelCache cache{Mistakes{}};
  cache.fill_arrived(1, pages(0, 3));
  EXPECT_TRUE(cache.resident().empty());
  cache.fill_answered(1, pages(0, 3), Instant{});
  EXPECT_EQ(cache.resident(), set({pages(0, 3)}));
}

TEST(KernelCacheTest, APendingFillProvesItsPagesAbsent) {  // C2, K3
  KernelCache cache = with(pages(0, 3));
  cache.fill_arrived(2, pages(1, 1));
  EXPECT_EQ(cache.resident(), set({pages(0, 0), pages(2, 3)}));
  EXPECT_TRUE(cache.fill_pending(pages(0, 3)));
  EXPECT_FALSE(cache.fill_pending(pages(2, 3)));
}

TEST(KernelCacheTest, AFailedFillCachesNothing) {
  KernelCache cache{Mistakes{}};
  cache.fill_arrived(1, pages(0, 3));
  cache.fill_failed(1);
  EXPECT_TRUE(cache.resident().empty());
  EXPECT_FALSE(cache.fill_pending(pages(0, 3)));
}

TEST(KernelCacheTest, OnlyWhatMayBeCachedIsPurged) {
  KernelCache cache = with(pages(2, 3));
  uint64_t id = 1;
  auto purges = cache.start_purges(set({pages(0, 9)}), &id);
  ASSERT_EQ(purges.size(), 1u);
  EXPECT_EQ(purges[0].range, pages(2, 3));
  EXPECT_TRUE(cache.start_purges(set({pages(0, 9)}), &id).empty())
      << "the purge under way serves everybody";
  cache.purge_returned(purges[0].id);
  EXPECT_TRUE(cache.resident().empty());
}

TEST(KernelCacheTest, APurgeDoesNotCountForPagesFilledSinceItBegan) {  // C3, K4
  KernelCache cache = with(pages(0, 3));
  uint64_t id = 1;
  auto first = cache.start_purges(set({pages(0, 3)}), &id);
  cache.fill_arrived(2, pages(1, 1));
  cache.fill_answered(2, pages(1, 1), Instant{});
  cache.purge_returned(first.at(0).id);
  EXPECT_EQ(cache.resident(), set({pages(1, 1)}));

  Mistakes mistakes;
  mistakes.add(Mistake::OldPurgeCounts);
  KernelCache wrong = with(pages(0, 3), mistakes);
  first = wrong.start_purges(set({pages(0, 3)}), &id);
  wrong.fill_arrived(2, pages(1, 1));
  wrong.fill_answered(2, pages(1, 1), Instant{});
  wrong.purge_returned(first.at(0).id);
  EXPECT_TRUE(wrong.resident().empty()) << "what the simulator is to notice";
}

TEST(KernelCacheTest, AnotherPurgeIsStartedBesideOneThatAFillHoldsUp) {  // C4, K5
  KernelCache cache = with(pages(0, 3));
  uint64_t id = 1;
  auto first = cache.start_purges(set({pages(0, 3)}), &id);
  cache.fill_arrived(2, pages(1, 1));
  auto second = cache.start_purges(set({pages(0, 3)}), &id);
  ASSERT_EQ(second.size(), 2u);
  EXPECT_EQ(second[0].range, pages(0, 0));
  EXPECT_EQ(second[1].range, pages(2, 3));
  cache.purge_returned(second[0].id);
  cache.purge_returned(second[1].id);
  EXPECT_TRUE(cache.resident().empty()) << "although the first has not returned";
  EXPECT_EQ(cache.purges_in_flight(), 1u);
}

TEST(KernelCacheTest, APageIsSparedUntilTheMomentItsFillSaid) {  // K13
  KernelCache cache{Mistakes{}};
  cache.fill_arrived(1, pages(0, 3));
  cache.fill_answered(1, pages(0, 3), Instant{100});
  cache.fill_arrived(2, pages(8, 8));
  cache.fill_answered(2, pages(8, 8), Instant{200});
  EXPECT_EQ(cache.keep_until(pages(3, 5), Instant{50}), Instant{100});
  EXPECT_EQ(cache.keep_until(pages(0, 9), Instant{50}), Instant{200});
  EXPECT_EQ(cache.keep_until(pages(5, 7), Instant{50}), std::nullopt);
  EXPECT_EQ(cache.keep_until(pages(0, 3), Instant{100}), std::nullopt);
}

// ---- against a kernel

constexpr uint64_t kPages = 6;

// A page cache as the kernel has it: purges walk their range in order and wait at a locked folio,
// the walk may be long over before anybody hears of it, and any clean page may vanish silently.
class TinyKernel {
 public:
  TinyKernel(uint64_t seed, Mistakes mistakes) : prng_(seed), cache_(mistakes) {}

  void step() {
    switch (prng_.below(7)) {
      case 0:
        fault();
        break;
      case 1:
      case 2:
        answer();
        break;
      case 3:
        reclaim();
        break;
      case 4: {
        const uint64_t first = prng_.below(kPages);
        want(PageRange{first, first + 1 + prng_.below(kPages - first)});
        break;
      }
      default:
        walk();
        break;
    }
  }

  // Every page that is cached must be among those that may be: a recall acked by `resident` alone
  // must never leave one behind.
  bool sound() const {
    for (uint64_t page = 0; page < kPages; ++page)
      if (pages_[page] == State::Cached && !cache_.resident().contains({page, page + 1}))
        return false;
    return true;
  }

  // No fill is answered any more: does everything wanted become absent all the same (K5)?
  bool everything_can_be_purged() {
    for (int i = 0; i < 1000; ++i) {
      if (cache_.resident().empty()) return true;
      want({0, kPages});
      walk();
    }
    return false;
  }

 private:
  enum class State { Absent, Locked, Cached };
  struct Fill {
    uint64_t id;
    PageRange range;
  };
  struct Walk {
    uint64_t id;
    uint64_t at, end;
  };

  void fault() {
    const uint64_t first = prng_.below(kPages);
    uint64_t end = first;
    while (end < kPages && end < first + 3 && pages_[end] == State::Absent) ++end;
    if (end == first) return;
    for (uint64_t page = first; page < end; ++page) pages_[page] = State::Locked;
    fills_.push_back({next_fill_, {first, end}});
    cache_.fill_arrived(next_fill_++, {first, end});
  }

  void answer() {
    if (fills_.empty()) return;
    const size_t which = prng_.below(fills_.size());
    const Fill fill = fills_[which];
    fills_.erase(fills_.begin() + static_cast<ptrdiff_t>(which));
    const bool failed = prng_.chance(10);
    for (uint64_t page = fill.range.first; page < fill.range.end; ++page)
      pages_[page] = failed ? State::Absent : State::Cached;
    if (failed) {
      cache_.fill_failed(fill.id);
    } else {
      cache_.fill_answered(fill.id, fill.range, Instant{});
    }
  }

  void reclaim() {
    for (State& page : pages_)
      if (page == State::Cached && prng_.chance(50)) page = State::Absent;
  }

  void want(PageRange range) {
    PageSet need;
    need.add(range);
    for (const KernelCache::Purge& purge : cache_.start_purges(need, &next_purge_))
      walks_.push_back({purge.id, purge.range.first, purge.range.end});
  }

  // One purge takes one step; one past the end it is reported.
  void walk() {
    if (walks_.empty()) return;
    const size_t which = prng_.below(walks_.size());
    Walk& walk = walks_[which];
    if (walk.at < walk.end) {
      if (pages_[walk.at] == State::Locked) return;
      pages_[walk.at++] = State::Absent;
      return;
    }
    cache_.purge_returned(walk.id);
    walks_.erase(walks_.begin() + static_cast<ptrdiff_t>(which));
  }

  Prng prng_;
  KernelCache cache_;
  std::array<State, kPages> pages_{};
  std::vector<Fill> fills_;
  std::vector<Walk> walks_;
  uint64_t next_fill_ = 1, next_purge_ = 1;
};

// The seeds of [1, count] that go wrong.
struct Wrong {
  int unsound = 0, stuck = 0;
};
Wrong run(uint64_t count, Mistakes mistakes) {
  Wrong wrong;
  for (uint64_t seed = 1; seed <= count; ++seed) {
    TinyKernel kernel(seed, mistakes);
    bool sound = true;
    for (int i = 0; i < 200 && sound; ++i) {
      kernel.step();
      sound = kernel.sound();
    }
    if (!sound) ++wrong.unsound;
    if (sound && !kernel.everything_can_be_purged()) ++wrong.stuck;
  }
  return wrong;
}

TEST(KernelCacheTest, NeverThinksACachedPageAbsentAndNeverGetsStuck) {
  const Wrong wrong = run(2000, {});
  EXPECT_EQ(wrong.unsound, 0);
  EXPECT_EQ(wrong.stuck, 0);
}

TEST(KernelCacheTest, CountingOldPurgesIsNoticed) {
  Mistakes mistakes;
  mistakes.add(Mistake::OldPurgeCounts);
  EXPECT_GT(run(200, mistakes).unsound, 0);
}

TEST(KernelCacheTest, WaitingForAStuckPurgeIsNoticed) {
  Mistakes mistakes;
  mistakes.add(Mistake::WaitForStuckPurge);
  EXPECT_GT(run(200, mistakes).stuck, 0);
}

}  // namespace
}  // namespace vremote::coherence
