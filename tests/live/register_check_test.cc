#include "live/register_check.h"

#include <gtest/gtest.h>

#include <array>

#include "base/prng.h"
#include "live/layout.h"
#include "sim/history.h"

namespace vremote::live {
namespace {

CellOp write(uint64_t begin, uint64_t end, uint64_t value) {
  return {.begin = begin, .end = end, .value = value, .write = true};
}
CellOp read(uint64_t begin, uint64_t end, uint64_t value) {
  return {.begin = begin, .end = end, .last_begin = begin, .value = value};
}

bool fine(std::vector<CellOp> ops) {
  for (uint32_t i = 0; i < ops.size(); ++i) ops[i].index = i;
  return !check_register(ops);
}

TEST(RegisterCheckTest, OneCopyIsFine) {
  EXPECT_TRUE(fine({}));
  EXPECT_TRUE(fine({read(1, 2, 0), write(3, 4, 7), read(5, 6, 7)}));
  EXPECT_TRUE(fine({write(1, 10, 7), read(2, 3, 0), read(4, 5, 7)}))
      << "a write may take effect at any moment of its call";
  EXPECT_TRUE(fine({write(1, 10, 7), write(2, 9, 8), read(11, 12, 7)}));
  EXPECT_TRUE(fine({write(1, kNever, 7), read(5, 6, 0), read(7, 8, 7)}))
      << "a call that never returned may have had its effect";
  EXPECT_TRUE(fine({write(1, kNever, 7), read(5, 6, 0), read(7, 8, 0)}));
}

TEST(RegisterCheckTest, AnOverwrittenValueIsNoticed) {
  EXPECT_FALSE(fine({write(1, 2, 7), read(3, 4, 0)}));
  EXPECT_FALSE(fine({write(1, 2, 7), write(3, 4, 8), read(5, 6, 7)}));
}

TEST(RegisterCheckTest, AFutureValueIsNoticed) {
  EXPECT_FALSE(fine({read(1, 2, 7), write(3, 4, 7)}));
}

TEST(RegisterCheckTest, AValueFromNowhereIsNoticed) {
  EXPECT_FALSE(fine({write(1, 2, 7), read(3, 4, 9)}));
}

TEST(RegisterCheckTest, NewThenOldIsNoticedWhileTheWriteIsUnderWay) {
  EXPECT_FALSE(fine({write(1, 10, 7), read(2, 3, 7), read(4, 5, 0)}));
  EXPECT_FALSE(
      fine({write(1, 20, 7), write(2, 20, 8), read(3, 4, 7), read(5, 6, 8), read(7, 8, 7)}));
}

TEST(RegisterCheckTest, ALostWriteIsNoticed) {
  EXPECT_FALSE(fine({write(1, 2, 7), write(3, 4, 8), read(5, 6, 8), read(7, 8, 7)}));
}

TEST(RegisterCheckTest, MergedReadsCountWithTheirFirstEndAndLastBegin) {
  CellOp many = read(3, 4, 7);
  many.last_begin = 50;
  EXPECT_TRUE(fine({write(1, 2, 7), many}));
  EXPECT_FALSE(fine({write(1, 2, 7), many, write(20, 30, 8)}));
  EXPECT_TRUE(fine({write(1, 2, 7), many, write(20, 60, 8)}));
}

// The simulator's checker is complete for one cell: both must always agree.
TEST(RegisterCheckTest, AgreesWithTheSimulatorsCheckerOnRandomHistories) {
  Prng random(20261122);
  int refuted = 0;
  for (int round = 0; round < 3000; ++round) {
    std::vector<CellOp> ops;
    std::vector<sim::PageOp> page_ops;
    page_ops.push_back({.begin = 0, .end = 0, .write = true, .cells = 1, .values = {}});
    const uint64_t writes = random.between(1, 4);
    for (uint64_t w = 1; w <= writes; ++w) {
      const uint64_t begin = random.between(1, 40);
      ops.push_back(write(begin, begin + random.between(1, 12), w));
    }
    for (uint64_t r = random.between(1, 5); r > 0; --r) {
      const uint64_t begin = random.between(1, 50);
      ops.push_back(read(begin, begin + random.between(1, 6), random.below(writes + 1)));
    }
    for (const CellOp& op : ops)
      page_ops.push_back(
          {.begin = op.begin, .end = op.end, .write = op.write, .cells = 1, .values = {op.value}});
    const bool mine = fine(ops);
    ASSERT_EQ(mine, !sim::check_page(page_ops)) << "round " << round;
    refuted += mine ? 0 : 1;
  }
  EXPECT_GT(refuted, 300);
  EXPECT_LT(refuted, 2900);
}

TEST(LayoutTest, ATornCellHasNoValue) {
  for (Layout layout : {Layout::Pages, Layout::Odd, Layout::Words, Layout::Sim}) {
    for (const Cell& cell : cells_of(layout)) {
      std::vector<std::byte> bytes(cell.length);
      const uint64_t mine = stamp(3, 77, 2, 5, 1);
      fill(bytes, mine);
      EXPECT_EQ(value_of(bytes), mine);
      if (cell.length < 16) continue;
      fill(std::span(bytes).last(bytes.size() / 2 / 8 * 8), stamp(3, 78, 2, 5, 1));
      EXPECT_FALSE(value_of(bytes));
    }
  }
}

TEST(LayoutTest, AStampTellsItsPlaceAndItsWriter) {
  const uint64_t mine = stamp(3, 77, 2, 5, 1);
  EXPECT_EQ(stamp_process(mine), 3u);
  EXPECT_EQ(stamp_write(mine), 77u);
  EXPECT_TRUE(stamp_fits(mine, 2, 5, 1));
  EXPECT_FALSE(stamp_fits(mine, 1, 5, 1));
  EXPECT_FALSE(stamp_fits(mine, 2, 6, 1));
  EXPECT_FALSE(stamp_fits(mine, 2, 5, 2));
}

}  // namespace
}  // namespace vremote::live
