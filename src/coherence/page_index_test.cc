#include "coherence/page_index.h"

#include <gtest/gtest.h>

#include <map>
#include <vector>

#include "base/prng.h"

namespace vremote::coherence {
namespace {

using Model = std::map<uint64_t, int>;

std::vector<std::pair<uint64_t, int>> listed(const PageIndex<int>& index) {
  std::vector<std::pair<uint64_t, int>> out;
  for (auto [number, page] : index) out.emplace_back(number, page);
  return out;
}

TEST(PageIndexTest, DoesWhatAnOrderedMapDoes) {
  // Few numbers, so that chunks fill and empty; some far apart, up to the last page there can be.
  for (uint64_t seed = 1; seed <= 50; ++seed) {
    Prng random(seed);
    auto number = [&]() -> uint64_t {
      const uint64_t base[] = {0, 60, 4096, (uint64_t{1} << 52) - 130};
      return base[random.below(4)] + random.below(130);
    };
    PageIndex<int> index;
    Model model;
    for (int step = 0; step < 2000; ++step) {
      const uint64_t n = number();
      switch (random.below(6)) {
        case 0:
        case 1: {
          auto [page, fresh] = index.get(n);
          ASSERT_EQ(fresh, !model.contains(n));
          page = model[n] = step;
          break;
        }
        case 2:
          index.erase(n);
          model.erase(n);
          break;
        case 3: {
          const int* page = index.find(n);
          ASSERT_EQ(page != nullptr, model.contains(n));
          if (page != nullptr) {
            ASSERT_EQ(*page, model[n]);
          }
          break;
        }
        case 4: {  // up from there, and down
          auto it = index.lower_bound(n);
          auto expected = model.lower_bound(n);
          ASSERT_EQ(it == index.end(), expected == model.end());
          if (expected != model.end()) {
            ASSERT_EQ((*it).number, expected->first);
          }
          ASSERT_EQ(it == index.begin(), expected == model.begin());
          if (expected != model.begin()) {
            ASSERT_EQ((*--it).number, (--expected)->first);
          }
          break;
        }
        default: {  // a range goes
          auto it = index.lower_bound(n);
          auto expected = model.lower_bound(n);
          for (int k = 0; k < 3 && expected != model.end(); ++k) {
            it = index.erase(it);
            expected = model.erase(expected);
          }
          ASSERT_EQ(it == index.end(), expected == model.end());
        }
      }
      ASSERT_EQ(index.size(), model.size());
      ASSERT_EQ(index.empty(), model.empty());
    }
    ASSERT_EQ(listed(index), (std::vector<std::pair<uint64_t, int>>(model.begin(), model.end())));
  }
}

TEST(PageIndexTest, APageStaysWhereItIsWhileOthersComeAndGo) {
  PageIndex<int> index;
  int* kept = &index.get(1000).first;
  *kept = 7;
  for (uint64_t n = 0; n < 3000; ++n) index.get(n);
  for (uint64_t n = 0; n < 3000; ++n)
    if (n != 1000) index.erase(n);
  EXPECT_EQ(index.find(1000), kept);
  EXPECT_EQ(*kept, 7);
}

}  // namespace
}  // namespace vremote::coherence
