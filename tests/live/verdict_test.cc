// That the hammer would notice: histories as a broken cluster would make them.
#include "live/verdict.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "live/worker.h"

namespace vremote::live {
namespace {

class VerdictTest : public ::testing::Test {
 protected:
  VerdictTest()
      : shared_(map_shared()),
        file_(::testing::TempDir() + "verdict-" + std::to_string(::getpid())) {}
  ~VerdictTest() override {
    ::munmap(shared_, sizeof(Shared));
    std::error_code ignored;
    std::filesystem::remove(file_, ignored);
  }

  void note(unsigned process, Op op) {
    op.process = static_cast<uint8_t>(process);
    op.last_begin = op.begin;
    op.last_end = op.end;
    ProcessLog& log = shared_->logs[process];
    log.ops[log.count++] = op;
  }
  // Cells of page 3 of file 1; number 0: what was there at the beginning.
  Op on_page(OpKind kind, uint64_t begin, uint64_t end,
             std::initializer_list<std::pair<unsigned, uint64_t>> cells) {
    Op op{.begin = begin, .end = end, .page = 3, .file = 1, .kind = kind};
    for (auto [cell, number] : cells) {
      op.cells |= static_cast<uint8_t>(1u << cell);
      op.values[cell] = number == 0 ? 0 : stamp(0, number, 1, 3, cell);
    }
    return op;
  }
  Op record(uint64_t begin, uint64_t end, uint64_t number) {
    Op op{.begin = begin, .end = end, .file = kAppendFile, .kind = OpKind::Append};
    op.values[0] = 64;
    op.values[1] = number;
    return op;
  }
  void write_records(std::initializer_list<uint32_t> numbers) {
    std::ofstream out(file_, std::ios::binary | std::ios::trunc);
    std::array<std::byte, 64> bytes{};
    for (uint32_t number : numbers) {
      make_record(bytes, 0, number);
      out.write(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    }
  }
  std::optional<std::string> appends() {
    uint64_t records = 0;
    return judge_appends(*shared_, file_, &records);
  }

  Shared* shared_;
  std::string file_;
};

TEST_F(VerdictTest, OneCopyIsLinearizable) {
  note(0, on_page(OpKind::Write, 10, 20, {{0, 1}, {1, 1}}));
  note(1, on_page(OpKind::Read, 12, 15, {{0, 0}, {1, 0}}));
  note(1, on_page(OpKind::Read, 21, 25, {{0, 1}, {1, 1}}));
  EXPECT_FALSE(judge(*shared_).violation);
}

TEST_F(VerdictTest, AStaleReadIsNamedWithTheWriteItMissed) {
  note(0, on_page(OpKind::Write, 10, 20, {{0, 1}}));
  note(1, on_page(OpKind::Read, 21, 25, {{0, 0}}));
  const auto violation = judge(*shared_).violation;
  ASSERT_TRUE(violation);
  EXPECT_NE(std::string::npos, violation->find("file 1 page 3 cell 0"));
  EXPECT_NE(std::string::npos, violation->find("[21, 25]"));
}

// Each cell alone is fine: only together do they show that the write was seen half.
TEST_F(VerdictTest, AHalfSeenWriteIsNoticed) {
  note(0, on_page(OpKind::Write, 10, 100, {{0, 1}, {1, 1}}));
  note(1, on_page(OpKind::Read, 20, 30, {{0, 1}, {1, 0}}));
  const auto violation = judge(*shared_).violation;
  ASSERT_TRUE(violation);
  EXPECT_NE(std::string::npos, violation->find("together"));
}

TEST_F(VerdictTest, OldAfterNewBetweenTwoReadersIsNoticed) {
  note(0, on_page(OpKind::Write, 10, 100, {{0, 1}}));
  note(1, on_page(OpKind::Read, 20, 30, {{0, 1}}));
  note(2, on_page(OpKind::Read, 40, 50, {{0, 0}}));
  EXPECT_TRUE(judge(*shared_).violation);
}

TEST_F(VerdictTest, ASizeThatNeverWasIsNoticed) {
  Op grow{.begin = 10, .end = 20, .file = kTruncated, .kind = OpKind::Grow};
  grow.values[0] = 4096;
  note(0, grow);
  Op seen{.begin = 30, .end = 40, .file = kTruncated, .kind = OpKind::Size};
  seen.values[0] = 4096;
  note(1, seen);
  EXPECT_FALSE(judge(*shared_).violation);
  seen.values[0] = 0;
  note(1, seen);
  EXPECT_TRUE(judge(*shared_).violation);
}

TEST_F(VerdictTest, WhatATruncationCutOffMustNotComeBack) {
  Op write{.begin = 10, .end = 20, .file = kTruncated, .kind = OpKind::Write, .cells = 1};
  write.values[0] = stamp(0, 1, kTruncated, 0, 0);
  Op cut{.begin = 30, .end = 40, .file = kTruncated, .kind = OpKind::Truncate};
  Op read{.begin = 50, .end = 60, .file = kTruncated, .kind = OpKind::Read, .cells = 1};
  note(0, write);
  note(0, cut);
  note(1, read);
  EXPECT_FALSE(judge(*shared_).violation);
  read.values[0] = write.values[0];
  note(1, read);
  EXPECT_TRUE(judge(*shared_).violation);
}

TEST_F(VerdictTest, LostDoubledAndMisplacedRecordsAreNoticed) {
  note(0, record(1, 2, 0));
  note(0, record(3, 4, 1));
  write_records({0, 1});
  EXPECT_FALSE(appends());
  write_records({0});
  EXPECT_TRUE(appends()) << "lost";
  write_records({0, 1, 1});
  EXPECT_TRUE(appends()) << "twice";
  write_records({1, 0});
  EXPECT_TRUE(appends()) << "the later one first";
}

TEST_F(VerdictTest, ATornRecordIsNoticed) {
  note(0, record(1, 2, 0));
  write_records({0});
  std::fstream file(file_, std::ios::binary | std::ios::in | std::ios::out);
  file.seekp(40);
  file.put('\0');
  file.close();
  EXPECT_TRUE(appends());
}

}  // namespace
}  // namespace vremote::live
