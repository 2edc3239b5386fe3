#include "fuse/reply.h"

#include <dirent.h>
#include <gtest/gtest.h>

#include <cstring>
#include <string>

namespace vremote::fuse {
namespace {

Attributes some_attributes() {
  return {.inode = 1,
          .size = 5000,
          .blocks = 16,
          .atime = {-1, 2},
          .mtime = {3, 4},
          .ctime = {5, 6},
          .mode = 0100644,
          .nlink = 2,
          .uid = 7,
          .gid = 8,
          .rdev = 0,
          .block_size = 4096};
}

TEST(ReplyTest, AttributesAreShownUnderTheGivenInode) {
  const fuse_attr_out out = attr_out(some_attributes(), 42, {.seconds = 9, .nanoseconds = 10});
  EXPECT_EQ(out.attr.ino, 42u);
  EXPECT_EQ(out.attr.size, 5000u);
  EXPECT_EQ(out.attr.blocks, 16u);
  EXPECT_EQ(static_cast<int64_t>(out.attr.atime), -1);
  EXPECT_EQ(out.attr.atimensec, 2u);
  EXPECT_EQ(out.attr.mtime, 3u);
  EXPECT_EQ(out.attr.ctimensec, 6u);
  EXPECT_EQ(out.attr.mode, 0100644u);
  EXPECT_EQ(out.attr.nlink, 2u);
  EXPECT_EQ(out.attr.uid, 7u);
  EXPECT_EQ(out.attr.gid, 8u);
  EXPECT_EQ(out.attr.blksize, 4096u);
  EXPECT_EQ(out.attr_valid, 9u);
  EXPECT_EQ(out.attr_valid_nsec, 10u);
}

TEST(ReplyTest, StatxHasTheBasicsAndNoBirthTimeThatIsNot) {
  Attributes device = some_attributes();
  device.rdev = (8u << 8) | 1;
  const StatxOut out = statx_out(device, 42, kNotCached);
  EXPECT_EQ(out.stat.mask, 0x7ffu);
  EXPECT_EQ(out.stat.inode, 42u);
  EXPECT_EQ(out.stat.atime.seconds, -1);
  EXPECT_EQ(out.stat.rdev_major, 8u);
  EXPECT_EQ(out.stat.rdev_minor, 1u);
}

TEST(ReplyTest, StatxHasTheBirthTimeThatIsKnown) {
  Attributes file = some_attributes();
  file.has_btime = true;
  file.btime = {12, 34};
  const StatxOut out = statx_out(file, 42, {1, 2});
  EXPECT_EQ(out.stat.mask, 0xfffu);
  EXPECT_EQ(out.stat.btime.seconds, 12);
  EXPECT_EQ(out.stat.btime.nanoseconds, 34u);
  EXPECT_EQ(out.attr_valid, 1u);
}

TEST(ReplyTest, EntryAndItsAttributesHaveTheirOwnValidity) {
  const fuse_entry_out out = entry_out(12, 3, some_attributes(), 42, {1, 2}, {3, 4});
  EXPECT_EQ(out.nodeid, 12u);
  EXPECT_EQ(out.generation, 3u);
  EXPECT_EQ(out.entry_valid, 1u);
  EXPECT_EQ(out.entry_valid_nsec, 2u);
  EXPECT_EQ(out.attr_valid, 3u);
  EXPECT_EQ(out.attr_valid_nsec, 4u);
  EXPECT_EQ(negative_entry_out({5, 6}).nodeid, 0u);
  EXPECT_EQ(negative_entry_out({5, 6}).entry_valid, 5u);
}

TEST(ReplyTest, CreateIsTheEntryThenTheOpen) {
  const CreateOut out =
      create_out(entry_out(12, 3, some_attributes(), 42, {}, {}), 77, FOPEN_DIRECT_IO);
  EXPECT_EQ(sizeof(out), sizeof(fuse_entry_out) + sizeof(fuse_open_out));
  EXPECT_EQ(out.entry.nodeid, 12u);
  EXPECT_EQ(out.open.fh, 77u);
  EXPECT_EQ(out.open.open_flags, uint32_t{FOPEN_DIRECT_IO});
}

TEST(ReplyTest, SmallOnesCarryTheirNumber) {
  EXPECT_EQ(write_out(5).size, 5u);
  EXPECT_EQ(copy_out_64(uint64_t{1} << 40).bytes_copied, uint64_t{1} << 40);
  EXPECT_EQ(lseek_out(6).offset, 6u);
  EXPECT_EQ(getxattr_out(7).size, 7u);
  EXPECT_EQ(poll_out(8).revents, 8u);
  EXPECT_EQ(lk_out({.start = 1, .end = 2, .type = 3, .pid = 4}).lk.end, 2u);
  const auto fs = statfs_out({.blocks = 1,
                              .blocks_free = 2,
                              .blocks_available = 3,
                              .files = 4,
                              .files_free = 5,
                              .block_size = 6,
                              .name_max = 7,
                              .fragment_size = 8});
  EXPECT_EQ(fs.st.bavail, 3u);
  EXPECT_EQ(fs.st.namelen, 7u);
  EXPECT_EQ(fs.st.frsize, 8u);
}

struct Seen {
  uint64_t inode;
  uint64_t offset;
  uint32_t type;
  std::string name;
  bool operator==(const Seen&) const = default;
};

// Walks the bytes as the kernel does; `prefix` is 0 for READDIR, the size of an entry for
// READDIRPLUS.
std::vector<Seen> walk(std::span<const std::byte> bytes, size_t prefix) {
  std::vector<Seen> seen;
  while (bytes.size() >= prefix + FUSE_NAME_OFFSET) {
    fuse_dirent head{};
    std::memcpy(&head, bytes.data() + prefix, FUSE_NAME_OFFSET);
    const size_t length = FUSE_REC_ALIGN(prefix + FUSE_NAME_OFFSET + head.namelen);
    if (length > bytes.size()) break;
    seen.push_back(
        {head.ino, head.off, head.type,
         std::string(reinterpret_cast<const char*>(bytes.data() + prefix + FUSE_NAME_OFFSET),
                     head.namelen)});
    bytes = bytes.subspan(length);
  }
  EXPECT_TRUE(bytes.empty());
  return seen;
}

TEST(DirentWriterTest, PacksWhatTheKernelReads) {
  DirentWriter writer(4096);
  EXPECT_TRUE(writer.add("a", 10, DT_REG, 1));
  EXPECT_TRUE(writer.add("eight888", 11, DT_DIR, 2));
  EXPECT_TRUE(writer.add(std::string(255, 'x'), 12, DT_LNK, 3));
  EXPECT_EQ(walk(writer.bytes(), 0), (std::vector<Seen>{{10, 1, DT_REG, "a"},
                                                        {11, 2, DT_DIR, "eight888"},
                                                        {12, 3, DT_LNK, std::string(255, 'x')}}));
}

TEST(DirentWriterTest, PlusCarriesTheEntryBefore) {
  DirentWriter writer(4096);
  EXPECT_TRUE(writer.add_plus("a", entry_out(12, 3, some_attributes(), 42, {}, {}), 42, DT_REG, 1));
  EXPECT_TRUE(writer.add_plus("..", {}, 1, DT_DIR, 2));
  EXPECT_EQ(walk(writer.bytes(), sizeof(fuse_entry_out)),
            (std::vector<Seen>{{42, 1, DT_REG, "a"}, {1, 2, DT_DIR, ".."}}));
  fuse_entry_out first;
  std::memcpy(&first, writer.bytes().data(), sizeof(first));
  EXPECT_EQ(first.nodeid, 12u);
}

TEST(DirentWriterTest, NeverExceedsItsCapacityAndStaysAsItWas) {
  DirentWriter writer(64);
  EXPECT_TRUE(writer.add("12345678", 1, DT_REG, 1));    // 32 bytes
  EXPECT_FALSE(writer.add("123456789", 2, DT_REG, 2));  // 40
  EXPECT_EQ(writer.bytes().size(), 32u);
  EXPECT_TRUE(writer.add("1", 3, DT_REG, 3));  // 32: exactly full
  EXPECT_EQ(writer.bytes().size(), 64u);
  EXPECT_FALSE(writer.add("1", 4, DT_REG, 4));
  EXPECT_EQ(walk(writer.bytes(), 0).size(), 2u);
  EXPECT_FALSE(DirentWriter(0).add("1", 1, DT_REG, 1));
}

TEST(DirentWriterTest, NamesTheKernelRefusesAreLeftOut) {
  DirentWriter writer(4096);
  EXPECT_TRUE(writer.add("", 1, DT_REG, 1));
  EXPECT_TRUE(writer.add("a/b", 1, DT_REG, 1));
  EXPECT_TRUE(writer.add(std::string_view("a\0b", 3), 1, DT_REG, 1));
  EXPECT_TRUE(writer.add(std::string(256, 'x'), 1, DT_REG, 1));
  EXPECT_TRUE(writer.empty());
}

}  // namespace
}  // namespace vremote::fuse
