#include "node/recovery/recovery_file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>

#include "coherence/test_text.h"
#include "node/base/shown_inode.h"
#include "node/recovery/recovery_writer.h"

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
                         .path = "/vremote/data/file",
                         .written = {5, 6},
                         .export_name = "data"};
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
  EXPECT_EQ(summary_.kept, (RecoverySummary::Kept{.pieces = 3, .bytes = 160}));
}

TEST_F(RecoveryFileTest, AFileCutAnywhereIsSeenToBeAndGoodUpToThere) {
  write_two();
  const auto whole = std::filesystem::file_size(path_);
  for (uint64_t size = 0; size < whole; ++size) {
    std::filesystem::remove(path_);
    write_two();
    std::filesystem::resize_file(path_, size);
    auto header = read();
    if (header) {
      EXPECT_TRUE(summary_.damaged) << size;
      EXPECT_LE(summary_.bytes, 160u);
      EXPECT_EQ(header->written, header_.written) << "what guards newer content is in front";
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

TEST_F(RecoveryFileTest, OneDamagedPieceCostsNoOther) {
  write_two();
  std::fstream file(path_, std::ios::in | std::ios::out | std::ios::binary);
  const std::string text(std::istreambuf_iterator<char>(file), {});
  file.seekp(static_cast<std::streamoff>(text.find("AAAA")));
  file.put('x');
  file.close();
  ASSERT_TRUE(read());
  EXPECT_TRUE(summary_.damaged);
  EXPECT_EQ(summary_.bytes, 60u);
  EXPECT_EQ(summary_.kept, (RecoverySummary::Kept{.pieces = 3, .bytes = 160}));
  EXPECT_EQ(content_[0], 'B');
}

TEST_F(RecoveryFileTest, WhatIsBehindTheLastWholeAdditionIsNoMoreThanDamage) {
  write_two();
  std::ofstream(path_, std::ios::app) << "torn";
  ASSERT_TRUE(read());
  EXPECT_TRUE(summary_.damaged) << "its writer died, or it is being written";
  EXPECT_EQ(summary_.bytes, 160u);
  {
    Fd fd(::open(path_.c_str(), O_RDWR | O_CLOEXEC));
    ASSERT_TRUE(append_recovery(fd, {{0, coherence::test::repeated('D', 10)}}, {}));
  }
  ASSERT_TRUE(read());
  EXPECT_FALSE(summary_.damaged) << "the next addition goes over it";
  EXPECT_EQ(content_[0], 'D');
}

TEST_F(RecoveryFileTest, ZeroesBehindItAreNotReadToTheirEnd) {
  write_two();
  std::filesystem::resize_file(path_, uint64_t{1} << 36);
  ASSERT_TRUE(read());
  EXPECT_TRUE(summary_.damaged);
  EXPECT_EQ(summary_.pieces, 3u);
  EXPECT_EQ(summary_.kept->pieces, 3u);
}

TEST_F(RecoveryFileTest, WhatDoesNotFitLeavesWhatDid) {
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = ::signal(SIGXFSZ, SIG_IGN);
  using coherence::test::repeated;
  auto fd = begin_recovery_file(path_, header_);
  ASSERT_TRUE(fd);
  const rlimit little{8192, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &little), 0);
  const Appended kept =
      append_recovery(*fd, {{0, repeated('A', 100)}, {100, repeated('B', 9000)}}, {});
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  ::signal(SIGXFSZ, handler);
  ASSERT_FALSE(kept);
  EXPECT_EQ(kept.status.error().code, EFBIG);
  EXPECT_EQ(kept.kept, 100u);
  EXPECT_EQ(kept.lost, 9000u);
  ASSERT_TRUE(read());
  EXPECT_TRUE(summary_.damaged) << "a part is not the whole";
  EXPECT_EQ(summary_.bytes, 100u);
  EXPECT_EQ(summary_.kept, (RecoverySummary::Kept{.pieces = 2, .bytes = 9100}));
  note_lost(*fd);
  ASSERT_TRUE(read());
  EXPECT_EQ(summary_.kept->pieces, 3u);
}

TEST_F(RecoveryFileTest, FilesOfTheVersionBeforeAreRead) {
  // Of home "n", export 1, generation 2, inode 3, path "/p": five bytes at 7, and a time.
  constexpr unsigned char kOld[] = {
      0x56, 0x52, 0x52, 0x45, 0x43, 0x4f, 0x56, 0x31, 0x27, 0x00, 0x00, 0x00, 0x13, 0x7e,
      0xf3, 0xc7, 0xe8, 0x03, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01, 0x00, 0x00, 0x00,
      0x02, 0x00, 0x00, 0x00, 0x03, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x21, 0x00,
      0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01, 0x00, 0x6e, 0x02, 0x00, 0x2f, 0x70, 0x01,
      0x00, 0x00, 0x00, 0x05, 0x00, 0x00, 0x00, 0x07, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
      0x00, 0x5a, 0xfd, 0x31, 0xa7, 0x68, 0x65, 0x6c, 0x6c, 0x6f, 0x02, 0x00, 0x00, 0x00,
      0x16, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x4a, 0xc0,
      0xec, 0xcb, 0x00, 0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x09, 0x00,
      0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x0a, 0x00, 0x00, 0x00};
  std::ofstream(path_, std::ios::binary).write(reinterpret_cast<const char*>(kOld), sizeof kOld);
  auto header = read();
  ASSERT_TRUE(header) << header.error().what;
  EXPECT_FALSE(summary_.damaged);
  EXPECT_EQ(summary_.bytes, 5u);
  EXPECT_EQ(content_[7], 'h');
  EXPECT_EQ(header->path, "/p");
  EXPECT_EQ(header->written, Timestamp{});
  EXPECT_EQ(summary_.attributes.mtime, (Timestamp{9, 10}));
}

TEST_F(RecoveryFileTest, OnlyARegularFileIsOpened) {
  ASSERT_EQ(::mkfifo(path_.c_str(), 0600), 0);
  auto opened = open_recovery_file(path_);
  ASSERT_FALSE(opened) << "and it is not waited for a writer";
  EXPECT_EQ(opened.error().code, EINVAL);
  std::filesystem::remove(path_);
  std::filesystem::create_symlink("/etc/passwd", path_);
  opened = open_recovery_file(path_);
  ASSERT_FALSE(opened);
  EXPECT_EQ(opened.error().code, EINVAL);
}

TEST_F(RecoveryFileTest, OnlyRegularFilesAreCounted) {
  HelperThreads threads("test", 1);
  RecoveryWriter writer(directory_, threads, {});
  write_two();
  ASSERT_EQ(::mkfifo((directory_ + "/pipe.recover").c_str(), 0600), 0);
  std::filesystem::create_symlink(path_, directory_ + "/link.recover");
  std::filesystem::create_directory(directory_ + "/directory.recover");
  EXPECT_EQ(writer.files(), 1u);
}

TEST_F(RecoveryFileTest, TheWriterPutsTimeAndExportInFront) {
  HelperThreads threads("test", 1);
  RecoveryWriter writer(directory_, threads, [](const std::string&, FileId) {
    return RecoveryWriter::Seen{.path = {}, .export_name = "data"};
  });
  writer.keep("n1", {.file = {.export_index = 0, .generation = 1, .inode = 99},
                     .extents = {{0, coherence::test::repeated('A', 10)}},
                     .attributes = {.has_mtime = true, .mtime = {77, 5}}});
  ASSERT_TRUE(writer.wait(60'000));
  for (const auto& entry : std::filesystem::directory_iterator(directory_)) path_ = entry.path();
  auto header = read();
  ASSERT_TRUE(header);
  EXPECT_EQ(header->written, (Timestamp{77, 5}));
  EXPECT_EQ(name_of(*header), "inode 99 of export data of n1");
  EXPECT_EQ(header->shown_inode, shown_inode("n1", 0, 99));
  threads.stop();
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
