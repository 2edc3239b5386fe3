#include "node/recovery/recovery_file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <map>

#include "coherence/test_text.h"

namespace vremote::node {
namespace {

class RecoveryFileTest : public testing::Test {
 protected:
  RecoveryFileTest() {
    char name[] = "/tmp/vremote-recovery-XXXXXX";
    directory_ = ::mkdtemp(name);
    path_ = directory_ + "/one.recover";
  }
  ~RecoveryFileTest() override { std::filesystem::remove_all(directory_); }

  void write_two() {
    auto fd = begin_recovery_file(path_, header_);
    ASSERT_TRUE(fd) << fd.error().what;
    using coherence::test::repeated;
    ASSERT_TRUE(append_recovery(*fd, {{4096, repeated('A', 100)}}, {}));
    ASSERT_TRUE(
        append_recovery(*fd, {{0, repeated('B', 10)}, {4096, repeated('C', 50)}},
                        {.has_size = true, .has_mtime = true, .size = 4196, .mtime = {7, 8}}));
  }
  Result<RecoveryHeader> read() {
    content_.clear();
    Fd fd(::open(path_.c_str(), O_RDONLY | O_CLOEXEC));
    return read_recovery(
        fd,
        [&](const RecoveryPiece& piece) -> Status {
          for (size_t i = 0; i < piece.bytes.size(); ++i)
            content_[piece.offset + i] = static_cast<char>(piece.bytes[i]);
          return {};
        },
        summary_);
  }

  std::string directory_, path_;
  RecoveryHeader header_{.saved_at = 1'700'000'000,
                         .home = "node2",
                         .file = {.export_index = 1, .generation = 2, .inode = 3},
                         .shown_inode = 33,
                         .path = "/vremote/data/file"};
  std::map<uint64_t, char> content_;
  RecoverySummary summary_;
};

TEST_F(RecoveryFileTest, WhatWasKeptIsReadBackInOrder) {
  write_two();
  auto header = read();
  ASSERT_TRUE(header) << header.error().what;
  EXPECT_EQ(*header, header_);
  EXPECT_EQ(summary_.bytes, 160u);
  EXPECT_EQ(summary_.end, 4196u);
  EXPECT_FALSE(summary_.damaged);
  EXPECT_EQ(content_[0], 'B');
  EXPECT_EQ(content_[4096], 'C') << "the later bytes win";
  EXPECT_EQ(content_[4195], 'A');
  EXPECT_TRUE(summary_.attributes.has_size);
  EXPECT_EQ(summary_.attributes.size, 4196u);
}

TEST_F(RecoveryFileTest, AFileCutAnywhereIsGoodUpToThere) {
  write_two();
  const auto whole = std::filesystem::file_size(path_);
  for (uint64_t size = 0; size < whole; ++size) {
    std::filesystem::remove(path_);
    write_two();
    std::filesystem::resize_file(path_, size);
    auto header = read();
    if (header) {
      EXPECT_LE(summary_.bytes, 160u);
    }
  }
}

TEST_F(RecoveryFileTest, NoFlippedBitGoesUnnoticed) {
  write_two();
  const auto whole = std::filesystem::file_size(path_);
  for (uint64_t at = 0; at < whole; ++at) {
    Fd fd(::open(path_.c_str(), O_RDWR | O_CLOEXEC));
    std::byte b{};
    ASSERT_EQ(::pread(fd.get(), &b, 1, static_cast<off_t>(at)), 1);
    const std::byte flipped = b ^ std::byte{0x10};
    ASSERT_EQ(::pwrite(fd.get(), &flipped, 1, static_cast<off_t>(at)), 1);
    auto header = read();
    EXPECT_TRUE(!header || summary_.damaged) << "byte " << at;
    ASSERT_EQ(::pwrite(fd.get(), &b, 1, static_cast<off_t>(at)), 1);
  }
}

TEST_F(RecoveryFileTest, AnotherFileIsNotOne) {
  Fd fd(::open(path_.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
  ASSERT_EQ(::write(fd.get(), "hello, this is no such file", 27), 27);
  auto header = read();
  ASSERT_FALSE(header);
  EXPECT_EQ(header.error().code, EINVAL);
}

}  // namespace
}  // namespace vremote::node
