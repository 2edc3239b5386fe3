// Bytes and attributes on the disk.
#include <sys/resource.h>
#include <sys/wait.h>

#include <vector>

#include "store/test_support.h"

namespace vremote::store::test {
namespace {

using namespace coherence;

class DataTest : public StoreTest {
 protected:
  int grow(FileId file, uint64_t size) {
    return code(
        store->apply(file, {.has_size = true, .has_mtime = false, .size = size, .mtime = {}}));
  }
  int allocate(FileId file, uint64_t offset, uint64_t length, uint32_t mode) {
    return code(run(AllocateCall{file, offset, length, mode}));
  }
  Result<uint64_t> seek(FileId file, uint64_t offset, uint32_t whence) {
    auto found = run(SeekCall{file, offset, whence});
    if (!found) return std::unexpected(found.error());
    return std::get<Offset>(*found).value;
  }
};
INSTANTIATE_TEST_SUITE_P(, DataTest, testing::Bool(), how);

TEST_P(DataTest, ReadIsCutAtTheEndOfTheFile) {
  FileId f = make("f", "0123456789");
  EXPECT_EQ(content(f, 0, 4), "0123");
  EXPECT_EQ(content(f, 8, 4), "89");
  EXPECT_EQ(content(f, 8, 1 << 20), "89");
  EXPECT_EQ(content(f, 10, 4), "");
  EXPECT_EQ(content(f, 1 << 30, 1 << 20), "");
  EXPECT_EQ(content(f, 0, 0), "");
  EXPECT_EQ(content(f, 0, UINT64_MAX), "0123456789");
  EXPECT_EQ(code(store->read(f, UINT64_MAX, 1)), EINVAL);
  EXPECT_EQ(content(f, INT64_MAX, UINT64_MAX), "");
  EXPECT_EQ(code(store->read(store->root(), 0, 1)), EISDIR);
}

TEST_P(DataTest, LargeReadsAndWritesAreWhole) {
  std::string big(5 << 20, '\0');
  for (size_t i = 0; i < big.size(); ++i) big[i] = static_cast<char>(i * 7 + i / 4096);
  FileId f = make("f", big);
  EXPECT_EQ(store->stat(f)->size, big.size());
  EXPECT_TRUE(content(f, 0, 8 << 20) == big);
  EXPECT_TRUE(content(f, 1234567, 1 << 20) == big.substr(1234567, 1 << 20));
}

TEST_P(DataTest, AReadThatNeedsTooMuchMemoryIsRefused) {
  FileId f = make("f");
  ASSERT_EQ(grow(f, kReadMax + 1), 0);
  EXPECT_EQ(code(store->read(f, 0, UINT64_MAX)), EINVAL);
  EXPECT_EQ(store->read(f, 1, UINT64_MAX)->size(), kReadMax);
}

TEST_P(DataTest, ExtentsAreWrittenWhereTheyBelong) {
  FileId f = make("f");
  std::vector<Extent> extents;
  std::string expected;
  for (int i = 0; i < 300; ++i) {  // more than one call's worth of adjacent pieces
    std::string piece(static_cast<size_t>(i % 5), static_cast<char>('a' + i % 26));
    extents.push_back({expected.size(), bytes(piece)});
    expected += piece;
  }
  extents.push_back({expected.size() + 10, bytes("far")});
  expected += std::string(10, '\0') + "far";
  extents.push_back({1, bytes("XY")});
  expected.replace(1, 2, "XY");
  ASSERT_EQ(code(store->write(f, extents)), 0);
  EXPECT_EQ(content(f), expected);
  EXPECT_EQ(code(store->write(f, {})), 0);
  EXPECT_EQ(put(f, INT64_MAX, "x"), EFBIG);
  EXPECT_EQ(put(f, UINT64_MAX, "x"), EFBIG);
  EXPECT_EQ(put(store->root(), 0, "x"), EISDIR);
}

TEST_P(DataTest, FilesAreSparseBeyondFourGigabytes) {
  FileId f = make("f", "head");
  uint64_t far = (uint64_t{5} << 30) + 3;
  ASSERT_EQ(put(f, far, "tail"), 0);
  auto attributes = store->stat(f);
  EXPECT_EQ(attributes->size, far + 4);
  EXPECT_LT(attributes->blocks, 1000u);
  EXPECT_EQ(content(f, far, 100), "tail");
  EXPECT_EQ(content(f, far - 2, 3), std::string("\0\0t", 3));
}

TEST_P(DataTest, HolesAreFoundMadeAndFilled) {
  FileId f = make("f");
  ASSERT_EQ(grow(f, 1 << 20), 0);
  ASSERT_EQ(put(f, 512 << 10, "data"), 0);
  EXPECT_EQ(*seek(f, 0, SEEK_DATA), 512u << 10);
  EXPECT_EQ(*seek(f, 0, SEEK_HOLE), 0u);
  EXPECT_EQ(*seek(f, 512 << 10, SEEK_HOLE), (512u << 10) + 4096);
  EXPECT_EQ(code(seek(f, (1 << 20) + 1, SEEK_DATA)), ENXIO);
  EXPECT_EQ(code(seek(f, UINT64_MAX, SEEK_DATA)), ENXIO);
  EXPECT_EQ(code(seek(f, 0, SEEK_END)), EINVAL);
  EXPECT_EQ(code(seek(store->root(), 0, SEEK_DATA)), EISDIR);
  ASSERT_EQ(allocate(f, 512 << 10, 4096, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE), 0);
  EXPECT_EQ(code(seek(f, 0, SEEK_DATA)), ENXIO);
  EXPECT_EQ(content(f, 512 << 10, 4), std::string(4, '\0'));
}

TEST_P(DataTest, AllocateHasEveryMode) {
  FileId f = make("f", std::string(8192, 'a') + std::string(8192, 'b'));
  EXPECT_EQ(allocate(f, 0, 1 << 20, FALLOC_FL_KEEP_SIZE), 0);
  EXPECT_EQ(store->stat(f)->size, 16384u);
  EXPECT_GE(store->stat(f)->blocks, 2048u);
  EXPECT_EQ(allocate(f, 0, 32768, 0), 0);
  EXPECT_EQ(store->stat(f)->size, 32768u);
  int zeroed = allocate(f, 0, 4096, FALLOC_FL_ZERO_RANGE);
  if (zeroed != EOPNOTSUPP) {
    EXPECT_EQ(zeroed, 0);
    EXPECT_EQ(content(f, 4094, 3), std::string("\0\0a", 3));
    EXPECT_EQ(allocate(f, 0, 8192, FALLOC_FL_COLLAPSE_RANGE), 0);
    EXPECT_EQ(content(f, 0, 1), "b");
    EXPECT_EQ(store->stat(f)->size, 32768u - 8192u);
    EXPECT_EQ(allocate(f, 0, 4096, FALLOC_FL_INSERT_RANGE), 0);
    EXPECT_EQ(content(f, 4095, 2), std::string("\0b", 2));
  }
  EXPECT_EQ(allocate(f, 0, 0, 0), EINVAL);
  EXPECT_EQ(allocate(f, UINT64_MAX, 1, 0), EFBIG);
  EXPECT_EQ(allocate(f, 1, UINT64_MAX, 0), EFBIG);
  EXPECT_NE(allocate(f, 0, 4096, 0x40000000), 0);
  EXPECT_EQ(allocate(store->root(), 0, 4096, 0), EISDIR);
}

TEST_P(DataTest, CopiesBetweenFilesUpToTheEndOfTheSource) {
  FileId from = make("from", "0123456789");
  FileId to = make("to", "abcdefghij");
  const auto copy = [&](CopyCall call) -> Result<uint64_t> {
    auto done = run(call);
    if (!done) return std::unexpected(done.error());
    return std::get<Offset>(*done).value;
  };
  EXPECT_EQ(copy({from, to, 2, 4, 3}), 3u);
  EXPECT_EQ(content(to, 0, 100), "abcd234hij");
  EXPECT_EQ(copy({from, to, 8, 20, 1 << 20}), 2u);
  EXPECT_EQ(content(to, 10, 100), std::string(10, '\0') + "89");
  EXPECT_EQ(copy({from, to, 100, 0, 5}), 0u);
  EXPECT_EQ(copy({from, from, 0, 10, 4}), 4u);
  EXPECT_EQ(content(from, 0, 100), "01234567890123");
  EXPECT_EQ(code(copy({store->root(), to, 0, 0, 5})), EISDIR);
  EXPECT_EQ(code(copy({from, to, 0, UINT64_MAX, 5})), EFBIG);
  FileId elsewhere = from;
  elsewhere.export_index += 1;
  EXPECT_EQ(code(copy({elsewhere, to, 0, 0, 5})), EXDEV);
}

TEST_P(DataTest, TryReadAnswersFromMemoryOnly) {
  FileId f = make("f", std::string(10000, 'x'));
  reopen();
  ASSERT_EQ(lookup("f")->file, f);
  EXPECT_EQ(code(store->try_read(f, 0, 10)), EAGAIN);  // not open
  ASSERT_EQ(content(f).size(), 10000u);
  auto warm = store->try_read(f, 0, 4096);
  if (!warm && warm.error().code == EAGAIN) GTEST_SKIP() << "no RWF_NOWAIT on this file system";
  ASSERT_TRUE(warm);
  EXPECT_EQ(text(*warm), std::string(4096, 'x'));
  EXPECT_EQ(store->try_read(f, 9000, 4096)->size(), 1000u);
  EXPECT_EQ(store->try_read(f, 20000, 4096)->size(), 0u);
  // Half in memory is not enough.
  ASSERT_EQ(code(run(SyncCall{f, false})), 0);
  int fd = ::open((dir / "f").c_str(), O_RDONLY);
  ASSERT_EQ(::posix_fadvise(fd, 4096, 0, POSIX_FADV_DONTNEED), 0);
  ::close(fd);
  auto cold = store->try_read(f, 0, 10000);
  if (cold && cold->size() == 10000) GTEST_SKIP() << "the pages stayed in memory";
  ASSERT_FALSE(cold) << "half a read of " << cold->size();
  EXPECT_EQ(cold.error().code, EAGAIN);
  EXPECT_EQ(content(f).size(), 10000u);
  EXPECT_EQ(store->try_read(f, 0, 10000)->size(), 10000u);
}

TEST_P(DataTest, ApplyGrowsAndNeverShrinks) {
  FileId f = make("f", "0123456789");
  EXPECT_EQ(grow(f, 5), 0);
  EXPECT_EQ(store->stat(f)->size, 10u);
  EXPECT_EQ(grow(f, 12), 0);
  EXPECT_EQ(content(f), std::string("0123456789\0\0", 12));
  EXPECT_EQ(grow(f, UINT64_MAX), EFBIG);
  EXPECT_EQ(grow(store->root(), 10), EISDIR);
}

TEST_P(DataTest, ApplySetsTheModificationTimeAlone) {
  FileId f = make("f", "x");
  Timestamp atime = store->stat(f)->atime;
  ASSERT_EQ(code(store->apply(
                f, {.has_size = false, .has_mtime = true, .size = 0, .mtime = {-5, 999'999'999}})),
            0);
  EXPECT_EQ(store->stat(f)->mtime, (Timestamp{-5, 999'999'999}));
  EXPECT_EQ(store->stat(f)->atime, atime);
  for (uint32_t magic : {1'000'000'000u, uint32_t{UTIME_NOW}, uint32_t{UTIME_OMIT}})
    EXPECT_EQ(code(store->apply(
                  f, {.has_size = false, .has_mtime = true, .size = 0, .mtime = {1, magic}})),
              EINVAL);
  ASSERT_EQ(code(store->apply(store->root(),
                              {.has_size = false, .has_mtime = true, .size = 0, .mtime = {7, 8}})),
            0);
  EXPECT_EQ(store->stat(store->root())->mtime, (Timestamp{7, 8}));
}

TEST_P(DataTest, ReadsLeaveTheAccessTime) {
  FileId f = make("f", "x");
  SetAttributesCall set;
  set.file = f;
  set.has_atime = true;
  set.atime = {1000, 1};  // so old that relatime would renew it
  ASSERT_TRUE(node(set));
  EXPECT_EQ(content(f), "x");
  EXPECT_EQ(store->stat(f)->atime, (Timestamp{1000, 1}));
  reopen();
  EXPECT_EQ(content(lookup("f")->file), "x");
  EXPECT_EQ(lookup("f")->attributes.atime, (Timestamp{1000, 1}));
}

TEST_P(DataTest, SetAttributesWorksOnEveryMode) {
  // Without privileges a truncation clears set-ID bits.
  for (uint32_t mode : {0u, 0444u, 0200u, ::geteuid() == 0 ? 07777u : 01777u}) {
    std::string name = "f" + std::to_string(mode);
    ASSERT_TRUE(create(name, S_IFREG | mode));
    store->forget(lookup(name)->file);  // nothing is open
    SetAttributesCall set;
    set.file = lookup(name)->file;
    set.has_size = set.has_atime = set.has_mtime = true;
    set.size = 100;
    set.atime = {1, 2};
    set.mtime = {3, 4};
    auto after = node(set);
    ASSERT_TRUE(after) << std::strerror(code(after));
    EXPECT_EQ(after->file, set.file);
    EXPECT_EQ(after->attributes.size, 100u);
    EXPECT_EQ(after->attributes.atime, (Timestamp{1, 2}));
    EXPECT_EQ(after->attributes.mtime, (Timestamp{3, 4}));
    EXPECT_EQ(after->attributes.mode, S_IFREG | mode);
    EXPECT_EQ(content(set.file).size(), 100u);
  }
}

TEST_P(DataTest, SetAttributesTruncates) {
  FileId f = make("f", "0123456789");
  SetAttributesCall set;
  set.file = f;
  set.has_size = true;
  set.size = 3;
  EXPECT_EQ(node(set)->attributes.size, 3u);
  set.size = 5;
  ASSERT_TRUE(node(set));
  EXPECT_EQ(content(f), std::string("012\0\0", 5));
  set.size = UINT64_MAX;
  EXPECT_EQ(code(run(set)), EFBIG);
  set.size = 0;
  set.file = store->root();
  EXPECT_EQ(code(run(set)), EISDIR);
  set.file = node(SymlinkCall{store->root(), "l", "f"})->file;
  EXPECT_EQ(code(run(set)), EINVAL);
  EXPECT_EQ(store->stat(f)->size, 5u);
}

TEST_P(DataTest, SetAttributesKnowsNow) {
  FileId f = make("f");
  SetAttributesCall set;
  set.file = f;
  set.has_atime = set.has_mtime = true;
  set.atime = set.mtime = {1, 1};
  ASSERT_TRUE(node(set));
  set.has_atime = false;
  set.mtime_now = true;
  auto after = node(set);
  EXPECT_EQ(after->attributes.atime, (Timestamp{1, 1}));
  EXPECT_GT(after->attributes.mtime.seconds, 1'000'000'000);
  set.mtime_now = false;
  set.mtime = {1, uint32_t{UTIME_NOW}};
  EXPECT_EQ(code(run(set)), EINVAL);
}

TEST_P(DataTest, OwnersChangeOneByOneAlsoOfLinks) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root";
  FileId f = make("f"), l = node(SymlinkCall{store->root(), "l", "f"})->file;
  SetAttributesCall set;
  set.file = l;
  set.has_uid = true;
  set.uid = 1001;
  EXPECT_EQ(node(set)->attributes.uid, 1001u);
  EXPECT_EQ(store->stat(l)->gid, 0u);
  set.has_uid = false;
  set.has_gid = set.has_mtime = true;
  set.gid = 1002;
  set.mtime = {9, 9};
  ASSERT_TRUE(node(set));
  EXPECT_EQ(store->stat(l)->uid, 1001u);
  EXPECT_EQ(store->stat(l)->gid, 1002u);
  EXPECT_EQ(store->stat(l)->mtime, (Timestamp{9, 9}));
  EXPECT_EQ(store->stat(f)->uid, 0u);  // not the link's target
  EXPECT_NE(store->stat(f)->mtime, (Timestamp{9, 9}));
  set.gid = UINT32_MAX;
  EXPECT_EQ(code(run(set)), EINVAL);
}

TEST_P(DataTest, WhoMustOwnAFileIsJudgedByItsOwnerOfNow) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root";
  SetAttributesCall set;
  set.file = make("f");
  set.has_uid = true;
  set.uid = 1001;
  ASSERT_TRUE(node(set));
  set.has_uid = false;
  set.has_mode = set.must_own = true;
  set.mode = 0640;
  EXPECT_EQ(code(store->execute({.uid = 1002, .gid = 1, .groups = {}}, set)), EPERM);
  EXPECT_NE(store->stat(set.file)->mode & 07777, 0640u);
  EXPECT_EQ(code(store->execute({.uid = 1001, .gid = 1, .groups = {}}, set)), 0);
  EXPECT_EQ(store->stat(set.file)->mode & 07777, 0640u);
}

TEST_P(DataTest, SetIdBitsAreClearedWhenAsked) {
  FileId f = make("f");
  SetAttributesCall set, clear;
  set.file = clear.file = f;
  set.has_mode = true;
  clear.clear_suid = true;
  set.mode = 06755;
  ASSERT_TRUE(node(set));
  EXPECT_EQ(node(clear)->attributes.mode, mode_t{S_IFREG | 0755});
  set.mode = 06745;  // not executable for the group: no set-group-ID program
  ASSERT_TRUE(node(set));
  EXPECT_EQ(node(clear)->attributes.mode, mode_t{S_IFREG | 02745});
  if (::geteuid() != 0) return;
  // Whoever is not of the group takes the bit away in any case.
  EXPECT_EQ(std::get<coherence::Node>(*store->execute({.uid = 7, .gid = 8, .groups = {0}}, clear))
                .attributes.mode,
            mode_t{S_IFREG | 02745});
  EXPECT_EQ(std::get<coherence::Node>(*store->execute({.uid = 7, .gid = 8, .groups = {9}}, clear))
                .attributes.mode,
            mode_t{S_IFREG | 0745});
  set.has_uid = true;  // a chown clears them, the mode of the same call is set after it
  set.uid = 1001;
  set.mode = 04755;
  EXPECT_EQ(node(set)->attributes.mode, mode_t{S_IFREG | 04755});
}

TEST_P(DataTest, SyncWorksOnFilesAndDirectories) {
  FileId f = make("f", "x");
  EXPECT_EQ(code(run(SyncCall{f, false})), 0);
  EXPECT_EQ(code(run(SyncCall{f, true})), 0);
  EXPECT_EQ(code(run(SyncCall{store->root(), false})), 0);
  EXPECT_EQ(code(run(SyncCall{store->root(), true})), 0);
}

TEST_P(DataTest, StatFsIsTheFileSystems) {
  auto outcome = run(StatFsCall{store->root()});
  ASSERT_TRUE(outcome);
  auto stats = std::get<FileSystemStats>(*outcome);
  EXPECT_GT(stats.blocks, 0u);
  EXPECT_LE(stats.blocks_available, stats.blocks);
  EXPECT_EQ(stats.name_max, 255u);
  EXPECT_GT(stats.block_size, 0u);
  EXPECT_GT(stats.fragment_size, 0u);
}

TEST_P(DataTest, ReadingAProgramDoesNotMakeItBusy) {
  // Our own descriptors must not keep the origin's users from running an exported program.
  FileId f = make("true", "#!/bin/true\n");
  SetAttributesCall set;
  set.file = f;
  set.has_mode = true;
  set.mode = 0755;
  ASSERT_TRUE(node(set));
  reopen();
  ASSERT_EQ(content(lookup("true")->file).substr(0, 2), "#!");
  pid_t child = ::fork();
  if (child == 0) {
    std::string path = dir / "true";
    ::execl(path.c_str(), path.c_str(), nullptr);
    ::_exit(errno);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0) << std::strerror(WEXITSTATUS(status));
}

TEST_P(DataTest, AFileSizeLimitIsAnErrorNotASignal) {
  FileId f = make("f");
  rlimit before{}, tight{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  tight = {8192, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &tight), 0);
  int written = put(f, 0, std::string(10000, 'x')), grown = grow(f, 100000);
  ::setrlimit(RLIMIT_FSIZE, &before);
  EXPECT_EQ(written, EFBIG);
  EXPECT_EQ(grown, EFBIG);
}

TEST_P(DataTest, WhatWasRemovedDoesNotKeepADiskFull) {
  if (::mount("none", dir.path().c_str(), "tmpfs", 0, "size=64k") != 0)
    GTEST_SKIP() << "cannot mount here";
  departed_files = 4;
  reopen();
  FileId old = make("old", std::string(48 << 10, 'x'));
  FileId other = make("other");
  ASSERT_EQ(remove("old"), 0);
  EXPECT_EQ(content(old, 0, 1), "x");
  EXPECT_EQ(put(other, 0, std::string(40 << 10, 'y')), 0);
  EXPECT_EQ(code(store->read(old, 0, 1)), ESTALE);
  ASSERT_EQ(remove("other"), 0);
  FileId third = make("third");
  EXPECT_EQ(allocate(third, 0, 48 << 10, 0), 0);
  store.reset();
  EXPECT_EQ(::umount2(dir.path().c_str(), MNT_DETACH), 0);
}

// One test, two directories: the full disk is a small one mounted for it.
TEST_P(DataTest, AFullDiskIsAnError) {
  if (::mount("none", dir.path().c_str(), "tmpfs", 0, "size=64k,nr_inodes=8") != 0)
    GTEST_SKIP() << "cannot mount here";
  reopen();
  FileId f = make("f", std::string(4096, 'x'));
  EXPECT_EQ(put(f, 4096, std::string(100 << 10, 'y')), ENOSPC);
  EXPECT_EQ(allocate(f, 0, 1 << 20, 0), ENOSPC);
  EXPECT_EQ(content(f, 0, 4096), std::string(4096, 'x'));
  int full = 0;
  for (int i = 0; i < 10 && full == 0; ++i) full = code(create("n" + std::to_string(i)));
  EXPECT_EQ(full, ENOSPC);
  store.reset();
  EXPECT_EQ(::umount2(dir.path().c_str(), MNT_DETACH), 0);
}

}  // namespace
}  // namespace vremote::store::test
