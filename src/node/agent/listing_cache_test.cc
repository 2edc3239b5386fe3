#include "node/agent/listing_cache.h"

#include <gtest/gtest.h>

namespace vremote::node {
namespace {

using coherence::DirectoryEntry;
using coherence::DirectoryPage;

constexpr FileId kDir{.export_index = 0, .generation = 1, .inode = 5};
constexpr FileId kOther{.export_index = 0, .generation = 1, .inode = 6};

DirectoryPage page(size_t entries, bool end = false) {
  DirectoryPage p;
  p.entries.resize(entries);
  p.end = end;
  return p;
}

TEST(ListingCacheTest, PagesAreFoundByWhereTheyBeginUntilTheirDirectoryIsForgotten) {
  ListingCache cache;
  cache.remember(kDir, 0, page(3));
  cache.remember(kDir, 77, page(2, true));
  cache.remember(kOther, 0, page(1, true));
  ASSERT_NE(cache.find(kDir, 77), nullptr);
  EXPECT_TRUE(cache.find(kDir, 77)->end);
  EXPECT_EQ(cache.find(kDir, 76), nullptr);
  cache.forget(kDir);
  EXPECT_EQ(cache.find(kDir, 0), nullptr);
  EXPECT_NE(cache.find(kOther, 0), nullptr);
  EXPECT_EQ(cache.entries(), 1u);
}

TEST(ListingCacheTest, ItsSizeIsBounded) {
  ListingCache cache;
  for (uint64_t cookie = 0; cookie < 100; ++cookie) cache.remember(kDir, cookie, page(10'000));
  EXPECT_LE(cache.entries(), 1u << 18);
  EXPECT_NE(cache.find(kDir, 99), nullptr);
  cache.remember(kOther, 0, page((1 << 18) + 1));
  EXPECT_EQ(cache.find(kOther, 0), nullptr);
}

}  // namespace
}  // namespace vremote::node
