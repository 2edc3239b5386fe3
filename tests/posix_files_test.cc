// What programs expect of files, through the mounts of several nodes.
#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstring>

#include "posix_support.h"

namespace vremote::live {
namespace {

TEST_F(PosixTest, WhatOneNodeWroteTheOthersRead) {
  ASSERT_EQ(0, put(b("f"), "written on B"));
  EXPECT_EQ("written on B", read_all(a("f")));
  EXPECT_EQ("written on B", read_all(c("f")));
  ASSERT_EQ(0, put(c("f"), "and on C"));
  EXPECT_EQ("and on C", read_all(b("f")));
  EXPECT_EQ("and on C", read_all(a("f")));
}

TEST_F(PosixTest, ExclusiveCreationSucceedsOnce) {
  Fd first = open_at(a("f"), O_CREAT | O_EXCL | O_WRONLY);
  EXPECT_TRUE(first.valid());
  EXPECT_ERROR(EEXIST, open_at(b("f"), O_CREAT | O_EXCL | O_WRONLY).get());
  EXPECT_ERROR(EEXIST, open_at(a("f"), O_CREAT | O_EXCL | O_WRONLY).get());
  EXPECT_TRUE(open_at(b("f"), O_CREAT | O_WRONLY).valid());
}

TEST_F(PosixTest, AnOpenHandleSeesLaterWritesOfOtherNodes) {
  ASSERT_EQ(0, put(a("f"), std::string(10000, 'x')));
  Fd reader = open_at(b("f"), O_RDONLY);
  Fd writer = open_at(c("f"), O_WRONLY);
  EXPECT_EQ("xxx", read_at(reader, 4095, 3));
  for (int i = 0; i < 200; ++i) {
    const std::string text = std::to_string(1000 + i);
    ASSERT_EQ(0, write_at(writer, 4094, text));
    ASSERT_EQ(text, read_at(reader, 4094, 4)) << i;
  }
}

TEST_F(PosixTest, WritesOfAllSizesAndOffsetsArriveWhole) {
  Fd writer = open_at(b("f"), O_RDWR | O_CREAT);
  Fd reader = open_at(a("f"), O_RDONLY);
  std::string expected;
  unsigned seed = 1;
  for (size_t size : {1u, 7u, 511u, 4095u, 4096u, 4097u, 65536u, 131073u, 1048576u, 3000001u}) {
    for (size_t offset : {size_t{0}, size_t{1}, size_t{4095}, expected.size()}) {
      const std::string text = pattern(size, ++seed);
      if (expected.size() < offset + size) expected.resize(offset + size);
      expected.replace(offset, size, text);
      ASSERT_EQ(0, write_at(writer, offset, text)) << size << " at " << offset;
      ASSERT_TRUE(text == read_at(reader, offset, size)) << size << " at " << offset;
    }
  }
  EXPECT_TRUE(expected == read_all(c("f")));
}

TEST_F(PosixTest, VectoredAndSequentialIoKeepThePosition) {
  Fd fd = open_at(a("f"), O_RDWR | O_CREAT);
  std::string one = "one", two = "two";
  const std::array<iovec, 2> parts{{{one.data(), 3}, {two.data(), 3}}};
  EXPECT_EQ(6, ::writev(fd.get(), parts.data(), 2));
  EXPECT_EQ(6, ::lseek(fd.get(), 0, SEEK_CUR));
  EXPECT_EQ(3, ::lseek(fd.get(), -3, SEEK_END));
  std::array<char, 3> got{};
  EXPECT_EQ(3, ::read(fd.get(), got.data(), 3));
  EXPECT_EQ("two", std::string(got.data(), 3));
  EXPECT_EQ(0, ::read(fd.get(), got.data(), 3)) << "the end of the file";
}

TEST_F(PosixTest, SizeAndTimeAreSeenAsSoonAsTheWriteReturns) {
  ASSERT_EQ(0, put(a("f"), ""));
  Fd writer = open_at(b("f"), O_WRONLY);
  int64_t before = mtime_ns(stat_of(c("f")));
  for (int i = 1; i <= 20; ++i) {
    ::usleep(6000);  // the clock of file times moves in ticks of up to 4 ms
    ASSERT_EQ(0, write_at(writer, static_cast<uint64_t>(i - 1) * 1000, std::string(1000, 'a')));
    const struct stat st = stat_of(c("f"));
    ASSERT_EQ(i * 1000, st.st_size);
    ASSERT_EQ(i * 1000, stat_of(a("f")).st_size);
    ASSERT_GT(mtime_ns(st), before);
    ASSERT_EQ(mtime_ns(st), mtime_ns(stat_of(a("f"))));
    ASSERT_EQ(mtime_ns(st), mtime_ns(stat_of(b("f"))));
    before = mtime_ns(st);
  }
}

TEST_F(PosixTest, TruncationIsSeenAtOnceEverywhere) {
  ASSERT_EQ(0, put(a("f"), pattern(20000)));
  Fd b_reader = open_at(b("f"), O_RDONLY);
  EXPECT_EQ(pattern(20000), read_at(b_reader, 0, 20000));
  ASSERT_OK(::truncate(c("f").c_str(), 5000));
  EXPECT_EQ(5000, stat_of(b("f")).st_size);
  EXPECT_EQ(pattern(20000).substr(0, 5000), read_at(b_reader, 0, 20000));
  ASSERT_OK(::truncate(a("f").c_str(), 9000));
  EXPECT_EQ(9000, stat_of(b("f")).st_size);
  EXPECT_EQ(pattern(20000).substr(0, 5000) + std::string(4000, '\0'), read_at(b_reader, 0, 20000))
      << "what was cut off stays cut off";
  EXPECT_EQ(std::string(4000, '\0'), read_all(c("f")).substr(5000));
  Fd writer = open_at(b("f"), O_RDWR);
  ASSERT_OK(::ftruncate(writer.get(), 0));
  EXPECT_EQ("", read_all(c("f")));
  EXPECT_EQ("", read_at(b_reader, 0, 10));
}

TEST_F(PosixTest, OpeningWithTruncationEmptiesTheFileForAll) {
  ASSERT_EQ(0, put(a("f"), pattern(9000)));
  Fd reader = open_at(c("f"), O_RDONLY);
  EXPECT_EQ(9000u, read_at(reader, 0, 9000).size());
  Fd writer = open_at(b("f"), O_WRONLY | O_TRUNC);
  ASSERT_TRUE(writer.valid());
  EXPECT_EQ(0, stat_of(a("f")).st_size);
  EXPECT_EQ("", read_at(reader, 0, 9000));
  ASSERT_EQ(0, write_at(writer, 0, "new"));
  EXPECT_EQ("new", read_at(reader, 0, 9000));
}

TEST_F(PosixTest, AppendsOfTwoNodesFollowOneAnother) {
  Fd on_a = open_at(a("log"), O_WRONLY | O_CREAT | O_APPEND),
     on_b = open_at(b("log"), O_WRONLY | O_APPEND);
  std::string expected;
  for (int i = 0; i < 100; ++i) {
    const std::string line = std::string(i % 2 == 0 ? "A" : "B") + std::to_string(i) + "\n";
    ASSERT_EQ(static_cast<ssize_t>(line.size()),
              ::write((i % 2 == 0 ? on_a : on_b).get(), line.data(), line.size()));
    expected += line;
  }
  EXPECT_EQ(expected, read_all(c("log")));
}

TEST_F(PosixTest, SparseFilesAndLargeOffsetsWork) {
  Fd fd = open_at(b("f"), O_RDWR | O_CREAT);
  const uint64_t far = (uint64_t{5} << 30) + 123;
  ASSERT_EQ(0, write_at(fd, far, "far away"));
  EXPECT_EQ(static_cast<off_t>(far + 8), stat_of(a("f")).st_size);
  Fd reader = open_at(a("f"), O_RDONLY);
  EXPECT_EQ("far away", read_at(reader, far, 100));
  EXPECT_EQ(std::string(100, '\0'), read_at(reader, uint64_t{3} << 30, 100));
  ASSERT_OK(::fsync(fd.get()));
  EXPECT_LT(stat_of(a("f")).st_blocks, 1000) << "holes take no room";
}

TEST_F(PosixTest, HolesAndDataAreFound) {
  Fd fd = open_at(a("f"), O_RDWR | O_CREAT);
  ASSERT_EQ(0, write_at(fd, 1 << 20, pattern(4096)));
  ASSERT_OK(::ftruncate(fd.get(), 2 << 20));
  ASSERT_OK(::fsync(fd.get()));
  Fd other = open_at(b("f"), O_RDONLY);
  EXPECT_EQ(0, ::lseek(other.get(), 0, SEEK_HOLE));
  EXPECT_EQ(1 << 20, ::lseek(other.get(), 0, SEEK_DATA));
  EXPECT_EQ((1 << 20) + 4096, ::lseek(other.get(), 1 << 20, SEEK_HOLE));
  EXPECT_ERROR(ENXIO, ::lseek(other.get(), (1 << 20) + 4096, SEEK_DATA));
}

TEST_F(PosixTest, SeekDataKnowsWhatIsNotFlushedYet) {
  Fd fd = open_at(b("f"), O_RDWR | O_CREAT);
  ASSERT_OK(::ftruncate(fd.get(), 1 << 20));
  ASSERT_EQ(0, write_at(fd, 65536, pattern(4096)));
  Fd other = open_at(c("f"), O_RDONLY);
  EXPECT_EQ(65536, ::lseek(other.get(), 0, SEEK_DATA));
  EXPECT_EQ(65536, ::lseek(fd.get(), 0, SEEK_DATA));
}

TEST_F(PosixTest, FallocateAllocatesPunchesAndExtends) {
  Fd fd = open_at(a("f"), O_RDWR | O_CREAT);
  if (::fallocate(fd.get(), 0, 0, 65536) != 0 && errno == EOPNOTSUPP)
    GTEST_SKIP() << "the file system below has no fallocate";
  EXPECT_EQ(65536, stat_of(b("f")).st_size);
  ASSERT_EQ(0, write_at(fd, 0, pattern(65536)));
  Fd reader = open_at(b("f"), O_RDONLY);
  EXPECT_TRUE(pattern(65536) == read_at(reader, 0, 65536));
  ASSERT_OK(::fallocate(fd.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 8192, 8192));
  EXPECT_EQ(std::string(8192, '\0'), read_at(reader, 8192, 8192));
  EXPECT_EQ(pattern(65536).substr(0, 8192), read_at(reader, 0, 8192));
  Fd on_b = open_at(b("f"), O_RDWR);
  ASSERT_OK(::fallocate(on_b.get(), FALLOC_FL_ZERO_RANGE, 0, 100));
  EXPECT_EQ(std::string(100, '\0'), read_at(fd, 0, 100));
  ASSERT_OK(::fallocate(on_b.get(), 0, 100000, 1));
  EXPECT_EQ(100001, stat_of(a("f")).st_size);
}

TEST_F(PosixTest, CopiesAtTheOriginSeeAndChangeWhatEveryNodeHas) {
  Fd from = open_at(a("from"), O_RDWR | O_CREAT);
  ASSERT_EQ(0, put(a("to"), pattern(50'000, 1)));
  Fd reader = open_at(c("to"), O_RDONLY);
  EXPECT_TRUE(pattern(50'000, 1) == read_at(reader, 0, 60'000));  // cached there
  // Bytes, and a size, that only A knows.
  ASSERT_EQ(0, write_at(from, 0, pattern(300'000, 2)));
  Fd in = open_at(b("from"), O_RDONLY);
  Fd out = open_at(b("to"), O_WRONLY);
  const auto copy = [&](const Fd& target, off_t from_offset, off_t offset, size_t length) {
    size_t copied = 0;
    while (copied < length) {
      const ssize_t n =
          ::copy_file_range(in.get(), &from_offset, target.get(), &offset, length - copied, 0);
      if (n < 0) ADD_FAILURE() << std::strerror(errno);
      if (n <= 0) break;
      copied += static_cast<size_t>(n);
    }
    return copied;
  };
  const auto written = [] {
    const std::string status = cluster->status(1), key = "\"direct_writes\":";
    return std::stoull(status.substr(status.find(key) + key.size()));
  };
  const uint64_t before = written();
  ASSERT_EQ(200'000u, copy(out, 100'000, 10'001, 1 << 20));
  EXPECT_EQ(before, written()) << "through the page cache, not at the origin";
  std::string wanted = pattern(50'000, 1).substr(0, 10'001) + pattern(300'000, 2).substr(100'000);
  EXPECT_EQ(210'001, stat_of(a("to")).st_size);
  EXPECT_TRUE(wanted == read_at(reader, 0, 300'000));
  EXPECT_TRUE(wanted == read_all(a("to")));
  EXPECT_TRUE(wanted == read_all(b("to")));

  // Where a mapping may exist the kernel copies, with the same outcome.
  Fd mapped = open_at(b("to"), O_RDWR);
  ASSERT_EQ(5'000u, copy(mapped, 0, 20'000, 5'000));
  EXPECT_LT(before, written());
  wanted.replace(20'000, 5'000, pattern(300'000, 2), 0, 5'000);
  EXPECT_TRUE(wanted == read_at(reader, 0, 300'000));
}

TEST_F(PosixTest, FsyncReachesTheOriginsDisk) {
  Fd fd = open_at(b("f"), O_WRONLY | O_CREAT);
  ASSERT_EQ(0, write_at(fd, 0, "durable"));
  ASSERT_OK(::fsync(fd.get()));
  EXPECT_EQ("durable", read_all(disk("f")));
  ASSERT_EQ(0, write_at(fd, 0, "DURABLE"));
  ASSERT_OK(::fdatasync(fd.get()));
  EXPECT_EQ("DURABLE", read_all(disk("f")));
}

TEST_F(PosixTest, SynchronousWritesReachTheOriginsDisk) {
  for (int flag : {O_SYNC, O_DSYNC}) {
    Fd fd = open_at(c("f"), O_WRONLY | O_CREAT | flag);
    for (int i = 0; i < 5; ++i) {
      const std::string text = "number " + std::to_string(i * 100 + flag);
      ASSERT_OK(::ftruncate(fd.get(), 0));
      ASSERT_EQ(0, write_at(fd, 0, text));
      ASSERT_EQ(text, read_all(disk("f")));
    }
  }
}

TEST_F(PosixTest, WhatIsNotSyncedReachesTheDiskByItself) {
  ASSERT_EQ(0, put(b("f"), "in its own time"));
  for (int i = 0; i < 100 && read_all(disk("f")) != "in its own time"; ++i) ::usleep(100'000);
  EXPECT_EQ("in its own time", read_all(disk("f")));
}

TEST_F(PosixTest, DirectIoSeesAndMakesTheSameBytes) {
  ASSERT_EQ(0, put(a("f"), pattern(16384)));
  Fd direct = open_at(b("f"), O_RDWR | O_DIRECT);
  ASSERT_TRUE(direct.valid());
  alignas(4096) static std::array<char, 8192> buffer;
  ASSERT_EQ(8192, ::pread(direct.get(), buffer.data(), 8192, 4096));
  EXPECT_EQ(pattern(16384).substr(4096, 8192), std::string(buffer.data(), 8192));
  buffer.fill('d');
  ASSERT_EQ(4096, ::pwrite(direct.get(), buffer.data(), 4096, 8192));
  EXPECT_EQ(std::string(4096, 'd'), read_all(c("f")).substr(8192, 4096));
}

TEST_F(PosixTest, ABinaryOnTheMountRuns) {
  ASSERT_EQ(0, put(a("true"), read_all("/bin/true")));
  ASSERT_OK(::chmod(a("true").c_str(), 0755));
  EXPECT_EQ(0, ::system(b("true").c_str()));
  ASSERT_EQ(0, put(c("script"), "#!/bin/sh\nexit 7\n"));
  ASSERT_OK(::chmod(c("script").c_str(), 0755));
  const int status = ::system(a("script").c_str());
  EXPECT_EQ(7, WEXITSTATUS(status));
}

// Locks that only one node knows would be a lie.
TEST_F(PosixTest, LocksAreRefusedNeverSilentlyLocal) {
  ASSERT_EQ(0, put(a("f"), "x"));
  Fd fd = open_at(b("f"), O_RDWR);
  struct flock lock {};
  lock.l_type = F_WRLCK;
  const int posix = error_of(::fcntl(fd.get(), F_SETLK, &lock));
  const int whole = error_of(::flock(fd.get(), LOCK_EX | LOCK_NB));
  if (posix == 0 && whole == 0) {
    // They work: then across nodes.
    Fd other = open_at(c("f"), O_RDWR);
    EXPECT_ERROR(EAGAIN, ::fcntl(other.get(), F_OFD_SETLK, &lock));
    EXPECT_ERROR(EWOULDBLOCK, ::flock(other.get(), LOCK_EX | LOCK_NB));
    return;
  }
  EXPECT_EQ(ENOLCK, posix);
  EXPECT_EQ(ENOLCK, whole);
}

}  // namespace
}  // namespace vremote::live
