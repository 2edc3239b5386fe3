// The checker itself: histories one copy could have shown are accepted, others refused.
#include "sim/history.h"

#include <gtest/gtest.h>

namespace vremote::sim {
namespace {

using Values = std::array<uint64_t, kCells>;

PageOp begin_state() {
  return {.begin = 0,
          .end = 0,
          .write = true,
          .cells = 0xf,
          .values = {},
          .what = "beginning",
          .node = -1};
}
PageOp write(uint64_t begin, uint64_t end, uint8_t cells, uint64_t value) {
  return {.begin = begin,
          .end = end,
          .write = true,
          .cells = cells,
          .values = {value << 32, value << 32, value << 32, value << 32},
          .what = "write",
          .node = 0};
}
PageOp read(uint64_t begin, uint64_t end, Values values, uint8_t cells = 0xf) {
  for (auto& v : values) v <<= 32;
  return {.begin = begin,
          .end = end,
          .write = false,
          .cells = cells,
          .values = values,
          .what = "read",
          .node = 1};
}
bool accepted(std::vector<PageOp> ops) {
  ops.insert(ops.begin(), begin_state());
  return !check_page(ops).has_value();
}

TEST(CheckPageTest, ReadsInOrderAreAccepted) {
  EXPECT_TRUE(accepted({read(1, 2, {0, 0, 0, 0}), write(3, 4, 0xf, 1), read(5, 6, {1, 1, 1, 1}),
                        write(7, 8, 1, 2), read(9, 10, {2, 1, 1, 1})}));
}

TEST(CheckPageTest, AReadDuringAWriteMaySeeEither) {
  EXPECT_TRUE(accepted({write(1, 10, 0xf, 1), read(2, 3, {0, 0, 0, 0}), read(4, 5, {1, 1, 1, 1})}));
  EXPECT_TRUE(accepted({write(1, 10, 0xf, 1), read(2, 5, {1, 1, 1, 1}), read(3, 4, {0, 0, 0, 0})}));
}

TEST(CheckPageTest, AStaleReadIsRefused) {
  EXPECT_FALSE(accepted({write(1, 2, 0xf, 1), write(3, 4, 0xf, 2), read(5, 6, {1, 1, 1, 1})}));
}

TEST(CheckPageTest, ALostWriteIsRefused) {
  EXPECT_FALSE(accepted({write(1, 2, 0xf, 1), read(3, 4, {0, 0, 0, 0})}));
}

TEST(CheckPageTest, AReadFromTheFutureIsRefused) {
  EXPECT_FALSE(accepted({read(1, 2, {1, 1, 1, 1}), write(3, 4, 0xf, 1)}));
}

TEST(CheckPageTest, NewThenOldDuringOneWriteIsRefused) {
  EXPECT_FALSE(
      accepted({write(1, 10, 0xf, 1), read(2, 3, {1, 1, 1, 1}), read(4, 5, {0, 0, 0, 0})}));
}

TEST(CheckPageTest, TwoReadersThatDisagreeOnTheOrderOfTwoWritesAreRefused) {
  EXPECT_FALSE(accepted({write(1, 20, 0xf, 1), write(1, 20, 0xf, 2), read(2, 3, {1, 1, 1, 1}),
                         read(4, 5, {2, 2, 2, 2}), read(6, 7, {1, 1, 1, 1})}));
}

TEST(CheckPageTest, ATornPageIsRefused) {
  // Two writes of the whole page: no order of them leaves half of each.
  EXPECT_FALSE(accepted({write(1, 2, 0xf, 1), write(3, 6, 0xf, 2), read(4, 5, {2, 2, 1, 1})}));
  EXPECT_TRUE(accepted({write(1, 2, 0xf, 1), write(3, 6, 0x3, 2), read(4, 5, {2, 2, 1, 1})}));
}

TEST(CheckPageTest, TwoCellsThatNeedOppositeOrdersAreRefused) {
  EXPECT_FALSE(accepted({write(1, 9, 0x3, 1), write(1, 9, 0x3, 2), read(10, 11, {1, 2, 0, 0})}));
}

TEST(CheckPageTest, AValueNobodyWroteIsRefused) {
  EXPECT_FALSE(accepted({read(1, 2, {7, 0, 0, 0})}));
}

TEST(CheckPageTest, ZeroesMayComeFromEitherOfTwoTruncations) {
  EXPECT_TRUE(accepted({write(1, 2, 0xf, 1), write(3, 4, 0xf, 0), write(5, 6, 0xf, 2),
                        write(7, 8, 0xf, 0), read(9, 10, {0, 0, 0, 0})}));
  EXPECT_FALSE(accepted(
      {write(1, 2, 0xf, 1), write(3, 4, 0xf, 0), write(5, 6, 0xf, 2), read(7, 8, {0, 0, 0, 0})}));
}

TEST(CheckPageTest, AWriteThatNeverReturnedMayHaveHappenedOrNot) {
  EXPECT_TRUE(
      accepted({write(1, kNever, 0xf, 1), read(3, 4, {0, 0, 0, 0}), read(5, 6, {1, 1, 1, 1})}));
  EXPECT_FALSE(
      accepted({write(1, kNever, 0xf, 1), read(3, 4, {1, 1, 1, 1}), read(5, 6, {0, 0, 0, 0})}));
}

using Kind = SizeOp::Kind;

TEST(CheckSizesTest, SizesFollowWritesAndTruncations) {
  EXPECT_FALSE(
      check_sizes(std::vector<SizeOp>{
                      {0, 0, Kind::Set, 10}, {1, 2, Kind::Grow, 20}, {3, 4, Kind::Read, 20}})
          .has_value());
  EXPECT_TRUE(
      check_sizes(std::vector<SizeOp>{
                      {0, 0, Kind::Set, 10}, {1, 2, Kind::Grow, 20}, {3, 4, Kind::Read, 10}})
          .has_value())
      << "an old size";
  EXPECT_TRUE(check_sizes(std::vector<SizeOp>{{0, 0, Kind::Set, 10},
                                              {1, 9, Kind::Grow, 20},
                                              {2, 3, Kind::Read, 20},
                                              {4, 5, Kind::Read, 10}})
                  .has_value())
      << "it fell";
  EXPECT_TRUE(
      check_sizes(std::vector<SizeOp>{
                      {0, 0, Kind::Set, 10}, {1, 2, Kind::Set, 5}, {3, 4, Kind::AtLeast, 8}})
          .has_value())
      << "bytes beyond the end";
  EXPECT_TRUE(
      check_sizes(std::vector<SizeOp>{
                      {0, 0, Kind::Set, 10}, {1, 2, Kind::Grow, 20}, {3, 4, Kind::AtMost, 10}})
          .has_value())
      << "an end too early";
  EXPECT_FALSE(
      check_sizes(std::vector<SizeOp>{
                      {0, 0, Kind::Set, 10}, {1, 5, Kind::Set, 5}, {3, 4, Kind::AtLeast, 8}})
          .has_value());
}

History::Interval at(uint64_t begin, uint64_t end, int node = 0) {
  return {begin, end, "append", node};
}

TEST(AppendsTest, WholeRecordsInOrderAreAccepted) {
  History h;
  h.start_append_file(0);
  const auto a = History::record(1, 100), b = History::record(2, 50);
  h.appended(0, at(1, 2), 0, a);
  h.appended(0, at(3, 4, 1), 100, b);
  std::vector<std::byte> disk = a;
  disk.insert(disk.end(), b.begin(), b.end());
  h.read_appended(0, {5, 6, "read", 1}, 0, 4096, disk);
  h.append_file_ended(0, disk);
  EXPECT_EQ(h.check(), std::nullopt);
}

TEST(AppendsTest, AnOverwrittenRecordIsRefused) {
  History h;
  h.start_append_file(0);
  h.appended(0, at(1, 2), 0, History::record(1, 100));
  h.appended(0, at(1, 2, 1), 0, History::record(2, 50));
  EXPECT_NE(h.check(), std::nullopt);
}

TEST(AppendsTest, ATornRecordOnTheDiskIsRefused) {
  History h;
  h.start_append_file(0);
  auto record = History::record(1, 100);
  h.appended(0, at(1, 2), 0, record);
  record[70] = std::byte{0};
  h.append_file_ended(0, record);
  EXPECT_NE(h.check(), std::nullopt);
}

TEST(AppendsTest, AReadThatMissesAFinishedRecordIsRefused) {
  History h;
  h.start_append_file(0);
  h.appended(0, at(1, 2), 0, History::record(1, 100));
  h.read_appended(0, {3, 4, "read", 1}, 0, 4096, {});
  EXPECT_NE(h.check(), std::nullopt);
}

TEST(HistoryTest, MisplacedBytesAreRefused) {
  History h;
  h.start_register_file(0, 2 * kPageSize);
  std::vector<std::byte> page(kPageSize);
  for (uint64_t c = 0; c < kCells; ++c)
    fill_cell(std::span<std::byte>(page).subspan(c * kCell, kCell), cell_value(1, 1, c));
  h.read(0, {1, 2, "read", 0}, kPageSize, kPageSize, page);
  EXPECT_EQ(h.check(), std::nullopt);
  h.read(0, {3, 4, "read", 0}, 0, kPageSize, page);
  EXPECT_NE(h.check(), std::nullopt);
}

TEST(HistoryTest, AnFsyncThatLeavesAnOlderValueOnTheDiskIsRefused) {
  History h;
  h.start_register_file(0, kPageSize);
  std::vector<std::byte> disk(kPageSize);
  for (uint64_t c = 0; c < kCells; ++c)
    fill_cell(std::span<std::byte>(disk).subspan(c * kCell, kCell), cell_value(1, 0, c));
  h.wrote(0, {1, 2, "write", 0}, 0, kPageSize, 5);
  h.synced(0, {3, 4, "fsync", 1}, disk);
  EXPECT_EQ(h.check(), std::nullopt) << "the other node has written nothing";
  h.synced(0, {5, 6, "fsync", 0}, disk);
  EXPECT_NE(h.check(), std::nullopt);
}

}  // namespace
}  // namespace vremote::sim
