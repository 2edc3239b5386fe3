// Mappings and the kernel's page cache through the mounts of several nodes.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstring>

#include "posix_mapping.h"
#include "posix_support.h"

namespace vremote::live {
namespace {

TEST_F(PosixTest, SharedMappingsOfTwoNodesAreOneMemory) {
  ASSERT_EQ(0, put(a("f"), std::string(16384, '\0')));
  Fd on_a = open_at(a("f"), O_RDWR), on_b = open_at(b("f"), O_RDWR),
     on_c = open_at(c("f"), O_RDONLY);
  Mapping map_a(on_a, 16384, kBoth), map_b(on_b, 16384, kBoth), map_c(on_c, 16384, PROT_READ);
  ASSERT_TRUE(map_a.valid() && map_b.valid() && map_c.valid());
  for (uint64_t i = 1; i <= 300; ++i) {
    const size_t place = i % 4 * 512 + i % 2;
    (i % 2 == 0 ? map_a : map_b).word(place).store(i);
    ASSERT_EQ(i, (i % 2 == 0 ? map_b : map_a).word(place).load()) << i;
    if (i % 10 != 0) continue;
    ASSERT_EQ(i, map_c.word(place).load()) << i;
  }
}

TEST_F(PosixTest, AStoreIsANewTimeForAllWhenMsyncReturns) {
  ASSERT_EQ(0, put(a("f"), std::string(8192, '.')));
  Fd writer = open_at(b("f"), O_RDWR);
  Mapping map(writer, 8192, kBoth);
  ASSERT_TRUE(map.valid());
  for (const bool by_fsync : {false, true, false}) {
    const int64_t before = mtime_ns(stat_of(c("f")));
    ASSERT_EQ(before, mtime_ns(stat_of(a("f"))));  // both keep the attributes now
    ::usleep(20'000);                              // longer than a tick of the clock
    ++*map.at();
    ASSERT_OK(by_fsync ? ::fsync(writer.get()) : ::msync(map.at(), 4096, MS_SYNC));
    EXPECT_LT(before, mtime_ns(stat_of(c("f"))));
    EXPECT_EQ(mtime_ns(stat_of(c("f"))), mtime_ns(stat_of(a("f"))));
    EXPECT_EQ(mtime_ns(stat_of(c("f"))), mtime_ns(stat_of(b("f"))));
  }
}

TEST_F(PosixTest, StoresAreSeenByReadsAndWritesByLoads) {
  ASSERT_EQ(0, put(a("f"), std::string(8192, '.')));
  Fd writer = open_at(b("f"), O_RDWR), reader = open_at(c("f"), O_RDONLY);
  Mapping map(writer, 8192, kBoth);
  ASSERT_TRUE(map.valid());
  for (int i = 0; i < 50; ++i) {
    const std::string text = std::to_string(1000 + i);
    std::memcpy(map.at() + 5000, text.data(), 4);
    ASSERT_EQ(text, read_at(reader, 5000, 4));
    ASSERT_EQ(text, read_at(writer, 5000, 4));
    Fd third = open_at(a("f"), O_WRONLY);
    ASSERT_EQ(0, write_at(third, 5001, "xy"));
    ASSERT_EQ(0, std::memcmp(map.at() + 5001, "xy", 2));
  }
  ASSERT_OK(::msync(map.at(), 8192, MS_SYNC));
  EXPECT_EQ("xy", read_all(disk("f")).substr(5001, 2));
}

TEST_F(PosixTest, AMappingOutlivesItsHandleAndItsName) {
  ASSERT_EQ(0, put(a("f"), std::string(4096, '.')));
  Fd on_b = open_at(b("f"), O_RDWR), on_a = open_at(a("f"), O_RDONLY);
  Mapping map(on_b, 4096, kBoth);
  ASSERT_TRUE(map.valid());
  on_b.reset();
  std::memcpy(map.at(), "after close", 11);
  EXPECT_EQ("after close", read_all(c("f")).substr(0, 11));
  ASSERT_OK(::unlink(a("f").c_str()));
  std::memcpy(map.at(), "AFTER unlink", 12);
  EXPECT_EQ("AFTER unlink", read_at(on_a, 0, 12));
}

TEST_F(PosixTest, PrivateMappingsReadSharedPagesAndKeepTheirOwn) {
  ASSERT_EQ(0, put(a("f"), std::string(8192, 'o')));
  Fd fd = open_at(b("f"), O_RDONLY);
  Mapping map(fd, 8192, kBoth, 0, MAP_PRIVATE);
  ASSERT_TRUE(map.valid());
  EXPECT_EQ('o', map.at()[5000]);
  map.at()[0] = 'p';
  Fd writer = open_at(c("f"), O_WRONLY);
  ASSERT_EQ(0, write_at(writer, 0, std::string(8192, 'n')));
  EXPECT_EQ('p', map.at()[0]) << "written here: a page of its own";
  EXPECT_EQ('n', map.at()[5000]) << "never written here: still the file's";
  EXPECT_EQ(std::string(8192, 'n'), read_all(a("f")));
}

struct CachestatRange {
  uint64_t offset, length;
};
struct Cachestat {
  uint64_t cached, dirty, writeback, evicted, recently_evicted;
};
constexpr long kCachestat = 451;  // since Linux 6.5; the C library does not know it yet

TEST_F(PosixTest, PagesReadStayInTheKernelUntilAnotherNodeWritesThem) {
  ASSERT_EQ(0, put(a("f"), pattern(64 * 4096)));
  Fd reader = open_at(b("f"), O_RDONLY);
  auto cached = [&](uint64_t first, uint64_t pages) {
    CachestatRange range{first * 4096, pages * 4096};
    Cachestat out{};
    return ::syscall(kCachestat, reader.get(), &range, &out, 0) == 0
               ? static_cast<int64_t>(out.cached)
               : -1;
  };
  if (cached(0, 1) < 0) GTEST_SKIP() << "no cachestat(2)";
  ASSERT_TRUE(pattern(64 * 4096) == read_at(reader, 0, 64 * 4096));
  EXPECT_EQ(64, cached(0, 64));
  Fd writer = open_at(c("f"), O_WRONLY);
  ASSERT_EQ(0, write_at(writer, 10 * 4096 + 5, "!"));
  EXPECT_EQ(0, cached(10, 1)) << "no copy of a page another node writes";
  EXPECT_GE(cached(0, 64), 32) << "the pages around may stay";
  EXPECT_EQ("!", read_at(reader, 10 * 4096 + 5, 1));
}

TEST_F(PosixTest, ReadsOfCachedPagesAskNobody) {
  ASSERT_EQ(0, put(a("f"), pattern(4096)));
  Fd reader = open_at(b("f"), O_RDONLY);
  EXPECT_EQ(4096u, read_at(reader, 0, 4096).size());
  auto upcalls = [&] {
    const std::string status = cluster->status(1);
    const size_t at = status.find("\"upcalls\":");
    return at == std::string::npos ? uint64_t{0}
                                   : std::strtoull(status.c_str() + at + 10, nullptr, 10);
  };
  const uint64_t before = upcalls();
  ASSERT_GT(before, 0u);
  for (int i = 0; i < 1000; ++i) ASSERT_EQ(4096u, read_at(reader, 0, 4096).size());
  EXPECT_LT(upcalls() - before, 100u);
}

// POSIX: what lies behind the end in its page is no part of the file, and zero when it becomes one.
TEST_F(PosixTest, WhatWasStoredBehindTheEndIsNothingWhenTheFileGrows) {
  for (int round = 0; round < 60; ++round) {
    const std::string name = "tail" + std::to_string(round);
    const Fd file = open_at(round % 2 == 0 ? b(name) : a(name), O_RDWR | O_CREAT);
    ASSERT_EQ(0, write_at(file, 0, "i"));
    Mapping map(file, 4096, kBoth);
    ASSERT_TRUE(map.valid());
    map.at()[100] = 0x77;
    if (round % 4 >= 2) ::usleep(3000);
    if (round % 3 == 0) {
      ASSERT_EQ(0, write_at(file, 12288, "far"));
    } else {
      ASSERT_EQ(0, ::ftruncate(file.get(), round % 3 == 1 ? 200 : 12288));
    }
    EXPECT_EQ(0, map.at()[100]) << "round " << round;
    map.at()[150] = 0x33;  // inside now
    for (const std::string& where : {a(name), b(name), c(name)}) {
      const std::string all = read_all(where);
      ASSERT_GE(all.size(), 200u);
      EXPECT_EQ('i', all[0]);
      EXPECT_EQ(0, all[100]) << "round " << round << " at " << where;
      EXPECT_EQ(0x33, all[150]) << "round " << round << " at " << where;
    }
    ASSERT_EQ(0, ::fsync(file.get()));
    EXPECT_EQ(0, read_all(c(name))[100]);
  }
}

TEST_F(PosixTest, AProgramSeesItsMappingGrowWithTheFile) {
  ASSERT_EQ(0, put(a("f"), std::string(4096, '1')));
  Fd on_b = open_at(b("f"), O_RDWR);
  Mapping map(on_b, 8192, kBoth);
  ASSERT_TRUE(map.valid());
  EXPECT_EQ('1', map.at()[4095]);
  ASSERT_EQ(0, write_at(on_b, 4096, std::string(4096, '2')));
  EXPECT_EQ('2', map.at()[8191]);
  EXPECT_EQ('2', read_all(c("f")).back());
}

}  // namespace
}  // namespace vremote::live
