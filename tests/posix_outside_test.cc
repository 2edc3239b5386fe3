// What a program does in the exported directory itself reaches every node within a second
// (docs/promise.md).
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <thread>

#include "posix_support.h"

namespace vremote::live {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

// The promised second, and another for a busy machine.
constexpr milliseconds kSoon{2000};

bool soon(const std::function<bool()>& holds) {
  const auto deadline = steady_clock::now() + kSoon;
  while (!holds()) {
    if (steady_clock::now() > deadline) return holds();
    std::this_thread::sleep_for(milliseconds(5));
  }
  return true;
}

class OutsideTest : public PosixTest {
 protected:
  void SetUp() override {
    PosixTest::SetUp();
    const auto status = nlohmann::json::parse(cluster->status(0), nullptr, false);
    ASSERT_TRUE(status.is_object());
    if (!status["exports"][0]["watched"].get<bool>())
      GTEST_SKIP() << "not watched: " << status["exports"][0]["why_not_watched"];
  }
  // On the origin's disk for certain, and read by every node.
  void make(const std::string& name, std::string_view content) {
    ASSERT_EQ(0, put(a(name), content));
    Fd fd = open_at(a(name), O_RDONLY);
    ASSERT_OK(::fsync(fd.get()));
    for (const std::string& path : {a(name), b(name), c(name)}) ASSERT_EQ(content, read_all(path));
  }
  // All nodes, their own mounts.
  bool everywhere(const std::string& name, const std::function<bool(const std::string&)>& holds) {
    return soon([&] { return holds(a(name)) && holds(b(name)) && holds(c(name)); });
  }
  bool reads(const std::string& name, std::string_view content) {
    return everywhere(name, [&](const std::string& path) { return read_all(path) == content; });
  }
  uint64_t recalls_for_outside() {
    const auto status = nlohmann::json::parse(cluster->status(0), nullptr, false);
    return status["counters"]["outside_changes"].get<uint64_t>();
  }
};

TEST_F(OutsideTest, BytesWrittenOnTheOriginReachEveryNode) {
  make("f", std::string(9000, 'o'));
  Fd there = open_at(disk("f"), O_RDWR);
  ASSERT_EQ(0, write_at(there, 5000, "new"));
  std::string now = std::string(5000, 'o') + "new" + std::string(3997, 'o');
  EXPECT_TRUE(reads("f", now));
  ASSERT_EQ(0, write_at(there, 9000, "longer"));
  EXPECT_TRUE(reads("f", now + "longer"));
  ASSERT_OK(::ftruncate(there.get(), 10));
  EXPECT_TRUE(reads("f", std::string(10, 'o')));
  ASSERT_OK(::ftruncate(there.get(), 12));
  EXPECT_TRUE(reads("f", std::string(10, 'o') + std::string(2, '\0')));
}

TEST_F(OutsideTest, OpenFilesAndMappingsSeeThemToo) {
  make("f", std::string(8192, 'o'));
  Fd on_a = open_at(a("f"), O_RDONLY), on_b = open_at(b("f"), O_RDONLY),
     on_c = open_at(c("f"), O_RDWR);
  auto map = [](const Fd& fd, int protection) {
    void* at = ::mmap(nullptr, 8192, protection, MAP_SHARED, fd.get(), 0);
    return at == MAP_FAILED ? nullptr : static_cast<const volatile char*>(at);
  };
  const volatile char* mapped_b = map(on_b, PROT_READ);
  const volatile char* mapped_c = map(on_c, PROT_READ | PROT_WRITE);
  ASSERT_NE(mapped_b, nullptr);
  EXPECT_EQ('o', mapped_b[4100]);
  if (mapped_c != nullptr) {
    EXPECT_EQ('o', mapped_c[4100]);
  }
  Fd there = open_at(disk("f"), O_WRONLY);
  ASSERT_EQ(0, write_at(there, 4100, "n"));
  EXPECT_TRUE(soon([&] { return mapped_b[4100] == 'n'; }));
  EXPECT_TRUE(soon([&] { return mapped_c == nullptr || mapped_c[4100] == 'n'; }));
  for (const Fd* fd : {&on_a, &on_b, &on_c})
    EXPECT_TRUE(soon([&] { return read_at(*fd, 4100, 1) == "n"; }));
  ASSERT_EQ(0, write_at(there, 8192, "behind"));
  for (const Fd* fd : {&on_a, &on_b, &on_c}) {
    EXPECT_TRUE(soon([&] { return read_at(*fd, 8192, 100) == "behind"; }));
    struct stat st {};
    ASSERT_OK(::fstat(fd->get(), &st));
    EXPECT_EQ(8198, st.st_size);
  }
  ::munmap(const_cast<char*>(mapped_b), 8192);
  if (mapped_c != nullptr) ::munmap(const_cast<char*>(mapped_c), 8192);
}

TEST_F(OutsideTest, NamesMadeAndTakenOnTheOriginAreSeen) {
  make("f", "f");
  auto there = [](const std::string& path) { return exists(path); };
  auto gone = [](const std::string& path) { return !exists(path); };
  ASSERT_TRUE(everywhere("g", gone)) << "and now every node knows that it is not there";
  ASSERT_EQ(0, put(disk("g"), "g"));
  EXPECT_TRUE(reads("g", "g"));
  ASSERT_OK(::rename(disk("g").c_str(), disk("h").c_str()));
  EXPECT_TRUE(everywhere("g", gone));
  EXPECT_TRUE(reads("h", "g"));
  ASSERT_OK(::unlink(disk("h").c_str()));
  EXPECT_TRUE(everywhere("h", gone));
  ASSERT_OK(::mkdir(disk("d").c_str(), 0755));
  ASSERT_EQ(0, put(disk("d/x"), "x"));
  EXPECT_TRUE(reads("d/x", "x"));
  auto lists = [&](const std::string& name) {
    return everywhere("d", [&](const std::string& path) {
      std::string all;
      for (const auto& entry : std::filesystem::directory_iterator(path))
        all += entry.path().filename().string();
      return all == name;
    });
  };
  EXPECT_TRUE(lists("x"));
  ASSERT_OK(::rename(disk("d/x").c_str(), disk("d/y").c_str()));
  EXPECT_TRUE(lists("y"));
  ASSERT_OK(::unlink(disk("d/y").c_str()));
  ASSERT_OK(::rmdir(disk("d").c_str()));
  EXPECT_TRUE(everywhere("d", gone));
  EXPECT_TRUE(everywhere("f", there));
}

TEST_F(OutsideTest, AFileReplacedByAnEditorIsTheNewOne) {
  make("f", "old");
  ASSERT_EQ(0, put(disk("f.tmp"), "saved by an editor"));
  ASSERT_OK(::rename(disk("f.tmp").c_str(), disk("f").c_str()));
  EXPECT_TRUE(reads("f", "saved by an editor"));
  EXPECT_TRUE(everywhere("f.tmp", [](const std::string& path) { return !exists(path); }));
}

TEST_F(OutsideTest, ModesTimesLinksAndExtendedAttributesAreSeen) {
  make("f", "f");
  ASSERT_OK(::chmod(disk("f").c_str(), 0640));
  EXPECT_TRUE(everywhere(
      "f", [](const std::string& path) { return (stat_of(path).st_mode & 07777) == 0640; }));
  const timespec times[2] = {{1000, 0}, {2000, 0}};
  ASSERT_OK(::utimensat(AT_FDCWD, disk("f").c_str(), times, 0));
  EXPECT_TRUE(
      everywhere("f", [](const std::string& path) { return stat_of(path).st_mtime == 2000; }));
  ASSERT_OK(::link(disk("f").c_str(), disk("g").c_str()));
  EXPECT_TRUE(everywhere("f", [](const std::string& path) { return stat_of(path).st_nlink == 2; }));
  ASSERT_OK(::unlink(disk("f").c_str()));
  EXPECT_TRUE(everywhere("g", [](const std::string& path) { return stat_of(path).st_nlink == 1; }));
  if (::setxattr(disk("g").c_str(), "user.tag", "v", 1, 0) != 0) GTEST_SKIP() << "no user xattrs";
  EXPECT_TRUE(everywhere("g", [](const std::string& path) {
    char value[8];
    return ::getxattr(path.c_str(), "user.tag", value, sizeof value) == 1;
  }));
}

// Counts of the whole node: a case of its own program, which runs one after the other.
TEST_F(OutsideTest, WhatGoesThroughTheMountsIsNotTakenForAChangeFromOutside) {
  make("f", "f");
  const uint64_t before = recalls_for_outside();
  for (int i = 0; i < 20; ++i) {
    ASSERT_EQ(0, put(b("f"), pattern(5000, i)));
    ASSERT_EQ(0, put(c("g" + std::to_string(i)), "x"));
    ASSERT_OK(::rename(b("g" + std::to_string(i)).c_str(), b("h").c_str()));
    ASSERT_OK(::chmod(a("h").c_str(), 0600 + i));
    ASSERT_EQ(pattern(5000, i), read_all(a("f")));
  }
  // Were they events, they would be there by now: what comes last is told after them.
  ASSERT_EQ(0, put(disk("f"), "last"));
  EXPECT_TRUE(reads("f", "last"));
  EXPECT_LE(recalls_for_outside() - before, 4u) << "those of `f` itself, and no others";
}

TEST_F(OutsideTest, ABusyProgramOnTheOriginCostsTheClusterAFewRecallsASecond) {
  make("f", std::string(8192, '0'));
  const uint64_t before = recalls_for_outside();
  Fd there = open_at(disk("f"), O_WRONLY);
  const auto start = steady_clock::now();
  std::string last;
  uint64_t writes = 0;
  while (steady_clock::now() - start < milliseconds(1000)) {
    last = std::to_string(1'000'000 + ++writes);
    ASSERT_EQ(0, write_at(there, 4000, last));
    if (writes % 64 == 0) {
      (void)read_all(b("f"));
    }
  }
  EXPECT_TRUE(everywhere("f", [&](const std::string& path) {
    return read_all(path).substr(4000, last.size()) == last;
  }));
  EXPECT_GT(writes, 500u);
  const auto seconds = std::chrono::duration<double>(steady_clock::now() - start).count();
  EXPECT_LE(recalls_for_outside() - before, 12 * seconds + 3) << writes << " writes";
}

}  // namespace
}  // namespace vremote::live
