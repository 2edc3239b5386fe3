// Sizes of files that several nodes change: mappings at the end, holes, allocation, limits.
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstring>
#include <limits>
#include <utility>

#include "posix_mapping.h"
#include "posix_support.h"

namespace vremote::live {
namespace {

TEST_F(PosixTest, ALoadBehindTheEndRaisesSigbus) {
  ASSERT_EQ(0, put(a("f"), pattern(5000)));
  Fd reads = open_at(b("f"), O_RDONLY), writes = open_at(c("f"), O_RDWR);
  for (const auto& [fd, protection] : {std::pair{&reads, PROT_READ}, {&writes, kBoth}}) {
    Mapping map(*fd, 16384, protection);
    ASSERT_TRUE(map.valid());
    EXPECT_EQ(pattern(5000)[4999], map.load(4999));
    EXPECT_EQ(0, map.load(5000)) << "the rest of the last page";
    EXPECT_EQ(-1, map.load(8192));
    if (protection == kBoth) {
      EXPECT_EQ(-1, map.store(8192, 'x'));
    }
  }
  EXPECT_EQ(5000, stat_of(a("f")).st_size);
}

TEST_F(PosixTest, ATruncationElsewhereEndsWhatAMappingMayTouch) {
  ASSERT_EQ(0, put(a("f"), pattern(16384)));
  Fd reads = open_at(b("f"), O_RDONLY), writes = open_at(c("f"), O_RDWR);
  Mapping read_map(reads, 16384, PROT_READ), write_map(writes, 16384, kBoth);
  ASSERT_TRUE(read_map.valid() && write_map.valid());
  EXPECT_EQ(pattern(16384)[16383], read_map.load(16383));
  EXPECT_EQ(0, write_map.store(16383, 'w'));
  ASSERT_OK(::truncate(a("f").c_str(), 5000));
  // The size is taken in with the next look at the file; the bytes are gone at once.
  stat_of(b("f"));
  stat_of(c("f"));
  for (const Mapping* map : {&read_map, &write_map}) {
    EXPECT_EQ(pattern(16384)[4999], map->load(4999));
    EXPECT_EQ(0, map->load(5001));
    EXPECT_EQ(-1, map->load(8192));
    EXPECT_EQ(-1, map->load(16383));
  }
  EXPECT_EQ(-1, write_map.store(16000, 'w'));
  EXPECT_EQ(5000, stat_of(a("f")).st_size);
}

TEST_F(PosixTest, AMappingBecomesValidWhenAnotherNodeExtendsTheFile) {
  ASSERT_EQ(0, put(a("f"), pattern(4096)));
  Fd reads = open_at(b("f"), O_RDONLY), writes = open_at(c("f"), O_RDWR);
  Mapping read_map(reads, 16384, PROT_READ), write_map(writes, 16384, kBoth);
  ASSERT_TRUE(read_map.valid() && write_map.valid());
  EXPECT_EQ(pattern(4096)[0], read_map.load(0));
  EXPECT_EQ(-1, write_map.store(12000, 'w'));
  Fd extends = open_at(a("f"), O_WRONLY | O_APPEND);
  ASSERT_EQ(12288, ::write(extends.get(), pattern(12288, 2).data(), 12288));
  EXPECT_EQ(pattern(12288, 2).back(), read_map.load(16383));
  EXPECT_EQ(0, write_map.store(16383, 'w'));
  EXPECT_EQ('w', read_all(a("f")).back());
}

TEST_F(PosixTest, MappingsBehindFourGigabytesAreTheFilesPages) {
  constexpr off_t kFar = off_t{5} << 30;
  Fd on_b = open_at(b("f"), O_RDWR | O_CREAT);
  ASSERT_OK(::ftruncate(on_b.get(), kFar + 8192));
  Fd on_c = open_at(c("f"), O_RDWR);
  Mapping map_b(on_b, 8192, kBoth, kFar), map_c(on_c, 8192, kBoth, kFar);
  ASSERT_TRUE(map_b.valid() && map_c.valid());
  EXPECT_EQ(0, map_b.store(5000, 'b'));
  EXPECT_EQ('b', map_c.load(5000));
  EXPECT_EQ(0, map_c.store(0, 'c'));
  EXPECT_EQ("c", read_at(open_at(a("f"), O_RDONLY), kFar, 1));
  EXPECT_EQ(std::string(1, '\0'), read_at(on_b, kFar - (off_t{4} << 30), 1)) << "not modulo 4 GiB";
  ASSERT_OK(::ftruncate(on_c.get(), kFar + 1));
  EXPECT_EQ(kFar + 1, stat_of(a("f")).st_size);
}

TEST_F(PosixTest, SizesBeyondWhatTheDiskCanHaveAreRefused) {
  Fd fd = open_at(b("f"), O_RDWR | O_CREAT);
  constexpr off_t kMost = std::numeric_limits<off_t>::max();
  // The kernel itself: no byte lies behind the last offset.
  EXPECT_ERROR(EINVAL, ::pwrite(fd.get(), "x", 1, kMost));
  EXPECT_ERROR(EINVAL, ::pwrite(fd.get(), "x", 1, -1));
  EXPECT_ERROR(EINVAL, ::ftruncate(fd.get(), -1));
  EXPECT_ERROR(EFBIG, ::pwrite(fd.get(), "x", 1, kMost - 1));
  EXPECT_ERROR(EFBIG, ::pwrite(fd.get(), "x", 1, off_t{1} << 44));
  // The origin's file system, which has a limit of its own (16 TiB on ext4).
  EXPECT_ERROR(EFBIG, ::ftruncate(fd.get(), kMost));
  EXPECT_ERROR(EFBIG, ::fallocate(fd.get(), 0, kMost - 10, 100));
  EXPECT_EQ(0, stat_of(c("f")).st_size);
}

TEST_F(PosixTest, TheProcessesOwnLimitHolds) {
  const pid_t child = in_child([&] {
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{10'000, 10'000};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    Fd fd = open_at(b("f"), O_RDWR | O_CREAT);
    const std::string text = pattern(20'000);
    if (::pwrite(fd.get(), text.data(), text.size(), 0) != 10'000) return 1;
    if (::pwrite(fd.get(), "x", 1, 10'000) == 0 || errno != EFBIG) return 2;
    if (::ftruncate(fd.get(), 10'001) == 0 || errno != EFBIG) return 3;
    return 0;
  });
  EXPECT_EQ(0, WEXITSTATUS(status_of(child)));
  EXPECT_TRUE(pattern(20'000).substr(0, 10'000) == read_all(c("f")));
}

TEST_F(PosixTest, EachModeOfFallocateSeesWhatOtherNodesHave) {
  Fd on_a = open_at(a("f"), O_RDWR | O_CREAT), on_b = open_at(b("f"), O_RDWR);
  if (::fallocate(on_a.get(), 0, 0, 1) != 0 && errno == EOPNOTSUPP)
    GTEST_SKIP() << "the file system below has no fallocate";
  // Bytes and an end that only B knows.
  ASSERT_EQ(0, write_at(on_b, 0, pattern(40'000)));
  ASSERT_OK(::fallocate(on_a.get(), FALLOC_FL_KEEP_SIZE, 0, 1 << 20));
  EXPECT_EQ(40'000, stat_of(b("f")).st_size);
  EXPECT_GE(stat_of(c("f")).st_blocks, (1 << 20) / 512);
  ASSERT_OK(::fallocate(on_a.get(), 0, 10'000, 20'000));
  EXPECT_EQ(40'000, stat_of(b("f")).st_size) << "inside the file nothing changes";
  EXPECT_TRUE(pattern(40'000) == read_all(c("f")));
  Mapping map(on_b, 40'960, kBoth);
  ASSERT_TRUE(map.valid());
  ASSERT_EQ(0, map.store(9000, 'm'));
  ASSERT_OK(::fallocate(on_a.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 8192, 8192));
  EXPECT_EQ(0, map.load(9000)) << "a hole goes through mappings, too";
  EXPECT_EQ(pattern(40'000)[8191], map.load(8191));
  ASSERT_EQ(0, map.store(9000, 'n'));
  EXPECT_EQ("n", read_at(on_a, 9000, 1)) << "and may be written again";
  ASSERT_OK(::fallocate(on_b.get(), FALLOC_FL_ZERO_RANGE, 30'000, 20'000));
  EXPECT_EQ(50'000, stat_of(c("f")).st_size);
  EXPECT_EQ(std::string(20'000, '\0'), read_all(c("f")).substr(30'000));
  ASSERT_OK(::fallocate(on_b.get(), FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, 49'000, 20'000));
  EXPECT_EQ(50'000, stat_of(a("f")).st_size);
  // FUSE knows no more modes.
  EXPECT_ERROR(EOPNOTSUPP, ::fallocate(on_b.get(), FALLOC_FL_COLLAPSE_RANGE, 0, 4096));
  EXPECT_ERROR(EOPNOTSUPP, ::fallocate(on_b.get(), FALLOC_FL_INSERT_RANGE, 0, 4096));
  EXPECT_ERROR(EBADF, ::fallocate(open_at(c("f"), O_RDONLY).get(), 0, 0, 10));
}

TEST_F(PosixTest, HolesMadeOnOneNodeAreFoundOnAnother) {
  Fd on_b = open_at(b("f"), O_RDWR | O_CREAT);
  ASSERT_EQ(0, write_at(on_b, 0, pattern(1 << 20)));
  ASSERT_OK(::fsync(on_b.get()));
  ASSERT_OK(::fallocate(on_b.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 65536, 131072));
  Fd on_c = open_at(c("f"), O_RDONLY);
  EXPECT_EQ(65536, ::lseek(on_c.get(), 0, SEEK_HOLE));
  EXPECT_EQ(65536 + 131072, ::lseek(on_c.get(), 65536, SEEK_DATA));
  // Not flushed: data all the same.
  ASSERT_EQ(0, write_at(on_b, 100'000, "x"));
  EXPECT_LE(::lseek(on_c.get(), 65536, SEEK_DATA), 100'000);
  EXPECT_EQ(1 << 20, ::lseek(on_c.get(), 0, SEEK_END));
  ASSERT_EQ(0, write_at(on_b, 2 << 20, "x"));
  EXPECT_EQ((2 << 20) + 1, ::lseek(on_c.get(), 0, SEEK_END));
  EXPECT_ERROR(ENXIO, ::lseek(on_c.get(), (2 << 20) + 1, SEEK_HOLE));
}

}  // namespace
}  // namespace vremote::live
