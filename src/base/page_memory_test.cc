#include "base/page_memory.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <set>
#include <thread>
#include <vector>

#include "base/prng.h"

namespace vremote {
namespace {

using Pages = std::vector<std::shared_ptr<std::byte[]>>;

constexpr size_t kOneChunk = 512;

TEST(PageMemory, PagesAreAlignedAndApart) {
  Pages pages;
  std::set<uintptr_t> addresses;
  for (size_t i = 0; i < 2 * kOneChunk + 1; ++i) {
    pages.push_back(new_page_memory());
    std::memset(pages.back().get(), static_cast<int>(i % 251), kPageMemorySize);
    addresses.insert(reinterpret_cast<uintptr_t>(pages.back().get()));
  }
  EXPECT_EQ(addresses.size(), pages.size());
  for (uintptr_t address : addresses) EXPECT_EQ(address % kPageMemorySize, 0u);
  for (size_t i = 0; i < pages.size(); ++i) {
    EXPECT_EQ(pages[i][0], std::byte(i % 251));
    EXPECT_EQ(pages[i][kPageMemorySize - 1], std::byte(i % 251));
  }
}

TEST(PageMemory, ChunksThatNobodyUsesGoBackButForOne) {
  Pages pages;
  for (size_t i = 0; i < 8 * kOneChunk; ++i) pages.push_back(new_page_memory());
  EXPECT_GE(page_memory_chunks(), 8u);
  pages.clear();
  EXPECT_EQ(page_memory_chunks(), 1u);
}

TEST(PageMemory, ARoomyChunkIsUsedBeforeAnotherIsMade) {
  Pages pages;
  for (size_t i = 0; i < 4 * kOneChunk; ++i) pages.push_back(new_page_memory());
  const size_t chunks = page_memory_chunks();
  Prng prng(7);
  for (int round = 0; round < 20000; ++round) {
    auto& page = pages[prng.below(pages.size())];
    page.reset();
    page = new_page_memory();
    std::memset(page.get(), 1, kPageMemorySize);
  }
  EXPECT_EQ(page_memory_chunks(), chunks);
}

TEST(PageMemory, AnotherThreadMayDropThem) {
  Pages pages;
  for (size_t i = 0; i < 3 * kOneChunk; ++i) pages.push_back(new_page_memory());
  std::thread other([taken = std::move(pages)]() mutable { taken.clear(); });
  Pages more;
  for (size_t i = 0; i < 3 * kOneChunk; ++i) {
    more.push_back(new_page_memory());
    std::memset(more.back().get(), 1, kPageMemorySize);
  }
  other.join();
  more.clear();
  EXPECT_EQ(page_memory_chunks(), 1u);
}

}  // namespace
}  // namespace vremote
