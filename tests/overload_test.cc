// Much of everything at once: files, locks that wait, nodes, writers that outrun the origin's disk.
// Nobody is refused, nobody who is not concerned waits, memory stays bounded.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <fstream>
#include <future>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <thread>
#include <vector>

#include "support/files.h"
#include "support/nodes.h"
#include "support/playground.h"

namespace vremote::live {
namespace {

// A sanitizer's own memory is many times ours.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

class OverloadTest : public ::testing::Test {
 protected:
  Playground& nodes(unsigned count) {
    auto started = Playground::start({.program = VREMOTE_PROGRAM, .nodes = count, .seconds = 400});
    if (!started) {
      ADD_FAILURE() << started.error().what;
      throw std::runtime_error("no playground");
    }
    playground_ = std::move(*started);
    return *playground_;
  }
  void TearDown() override {
    if (!playground_) return;
    EXPECT_EQ("", playground_->stop());
  }

  nlohmann::json status(size_t node) const {
    return nlohmann::json::parse(playground_->status(node), nullptr, false);
  }
  uint64_t resident_mib(size_t node) const {
    std::ifstream file("/proc/" + std::to_string(status(node)["pid"].get<int>()) + "/status");
    for (std::string line; std::getline(file, line);)
      if (line.starts_with("VmRSS:")) return std::stoull(line.substr(6)) / 1024;
    return 0;
  }

  std::unique_ptr<Playground> playground_;
};

int lock_byte(const Fd& fd, int command, short type, off_t byte = 0) {
  struct flock lock {};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;
  lock.l_start = byte;
  lock.l_len = 1;
  return ::fcntl(fd.get(), command, &lock) == 0 ? 0 : errno;
}

TEST_F(OverloadTest, TenThousandFilesAreOpen) {
  constexpr size_t kFiles = 10'000;
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  if (limit.rlim_max < kFiles + 100) GTEST_SKIP() << "only " << limit.rlim_max << " descriptors";
  limit.rlim_cur = kFiles + 100;
  ASSERT_EQ(0, ::setrlimit(RLIMIT_NOFILE, &limit));
  Playground& two = nodes(2);
  ASSERT_EQ(0, ::mkdir(two.path(1, 0, "many").c_str(), 0755));
  const auto path = [&](size_t node, size_t i) {
    return two.path(node, 0, "many/" + std::to_string(i));
  };
  std::vector<Fd> files;
  for (size_t i = 0; i < kFiles; ++i) {
    files.push_back(open_at(path(1, i), O_RDWR | O_CREAT));
    ASSERT_GE(files.back().get(), 0) << i << ": " << std::strerror(errno);
    ASSERT_EQ(0, write_at(files.back(), 0, std::to_string(i)));
    ASSERT_EQ(0, lock_byte(files.back(), F_SETLK, F_WRLCK, 5)) << i;
  }
  for (size_t i = 0; i < kFiles; i += 101) {
    EXPECT_EQ(std::to_string(i), read_all(path(0, i)));
    const Fd other = open_at(path(0, i), O_RDWR);
    EXPECT_EQ(EAGAIN, lock_byte(other, F_OFD_SETLK, F_WRLCK, 5));
  }
  if (!kSanitized) {
    EXPECT_LT(resident_mib(0), 256u);
    EXPECT_LT(resident_mib(1), 256u);
  }
  files.clear();  // and with them their locks
  const Fd other = open_at(path(0, 101), O_RDWR);
  EXPECT_TRUE(eventually([&] { return lock_byte(other, F_OFD_SETLK, F_WRLCK, 5) == 0; }));
}

TEST_F(OverloadTest, AThousandLocksWaitAndOthersGoOn) {
  constexpr size_t kWaiters = 1000;
  Playground& two = nodes(2);
  const std::string file = "lock";
  ASSERT_EQ(0, put(two.path(0, 0, file), "x"));
  const Fd holder = open_at(two.path(0, 0, file), O_RDWR);
  ASSERT_EQ(0, lock_byte(holder, F_OFD_SETLK, F_WRLCK));
  std::atomic<size_t> granted = 0, inside = 0, together = 0, failed = 0;
  std::vector<std::thread> waiters;
  for (size_t i = 0; i < kWaiters; ++i)
    waiters.emplace_back([&, i] {
      const Fd fd = open_at(two.path(i % 2, 0, file), O_RDWR);
      if (lock_byte(fd, F_OFD_SETLKW, F_WRLCK) != 0) ++failed;
      if (++inside != 1) ++together;
      ++granted;
      --inside;
      if (lock_byte(fd, F_OFD_SETLK, F_UNLCK) != 0) ++failed;
    });
  const bool all_wait = eventually([&] {
    const auto all = status(0);
    return all.contains("counters") &&
           all["counters"].value("home_locks_waiting", size_t{0}) == kWaiters;
  });
  EXPECT_TRUE(all_wait) << status(0)["counters"];
  // Who does not want that lock is not held up by those who do.
  for (size_t i = 0; i < 20; ++i) {
    EXPECT_EQ(0, put(two.path(i % 2, 0, "other" + std::to_string(i)), "y"));
    const Fd fd = open_at(two.path(i % 2, 0, file), O_RDWR);
    EXPECT_EQ(0, lock_byte(fd, F_OFD_SETLKW, F_WRLCK, 100));
  }
  EXPECT_EQ(0u, granted);
  ASSERT_EQ(0, lock_byte(holder, F_OFD_SETLK, F_UNLCK));
  for (std::thread& waiter : waiters) waiter.join();
  EXPECT_EQ(kWaiters, granted);
  EXPECT_EQ(0u, together);
  EXPECT_EQ(0u, failed);
}

TEST_F(OverloadTest, SixtyFourNodesShareAFile) {
  constexpr size_t kNodes = kSanitized ? 12 : 64;
  Playground& many = nodes(kNodes);
  ASSERT_EQ(0, put(many.path(0, 0, "shared"), "0"));
  for (size_t round = 1; round <= 5; ++round) {
    const std::string text = std::to_string(round);
    const size_t writer = round * 13 % kNodes;
    ASSERT_EQ(0, write_at(open_at(many.path(writer, 0, "shared"), O_WRONLY), 0, text));
    for (size_t node = 0; node < kNodes; ++node)
      ASSERT_EQ(text, read_all(many.path(node, 0, "shared"))) << "on node " << node + 1;
  }
  constexpr size_t kRecords = 10;
  std::vector<std::thread> writers;
  for (size_t node = 0; node < kNodes; ++node)
    writers.emplace_back([&, node] {
      const Fd fd = open_at(many.path(node, 0, "log"), O_WRONLY | O_APPEND | O_CREAT);
      for (size_t i = 0; i < kRecords; ++i) {
        const std::string record = std::to_string(node) + "." + std::to_string(i) + "\n";
        EXPECT_EQ(static_cast<ssize_t>(record.size()),
                  ::write(fd.get(), record.data(), record.size()));
      }
    });
  for (std::thread& writer : writers) writer.join();
  std::set<std::string> records;
  size_t lines = 0;
  std::istringstream log(read_all(many.path(kNodes - 1, 0, "log")));
  for (std::string line; std::getline(log, line); ++lines) records.insert(line);
  EXPECT_EQ(kNodes * kRecords, lines);
  EXPECT_EQ(kNodes * kRecords, records.size());
}

TEST_F(OverloadTest, WritersThatOutrunTheOriginWait) {
  Playground& two = nodes(2);
  constexpr size_t kWriters = 6, kMegabytes = 100;
  const std::string block(1 << 20, 'w');
  std::atomic<size_t> at_work = kWriters;
  std::vector<std::thread> writers;
  for (size_t i = 0; i < kWriters; ++i)
    writers.emplace_back([&, i] {
      const Fd fd = open_at(two.path(1, 0, "big" + std::to_string(i)), O_WRONLY | O_CREAT);
      for (size_t n = 0; n < kMegabytes; ++n) EXPECT_EQ(0, write_at(fd, n * block.size(), block));
      --at_work;
    });
  uint64_t dirty = 0, resident = 0;
  while (at_work > 0) {
    dirty = std::max(dirty, status(1).value("dirty_bytes", uint64_t{0}));
    resident = std::max(resident, resident_mib(1));
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  for (std::thread& writer : writers) writer.join();
  // cache.dirty_max_mib, and the writes under way.
  EXPECT_LE(dirty, uint64_t{256 + 2 * kWriters} << 20);
  if (!kSanitized) {
    EXPECT_LT(resident, 1024u);
  }
  for (size_t i = 0; i < kWriters; ++i) {
    const std::string name = "big" + std::to_string(i);
    EXPECT_EQ(0, ::fsync(open_at(two.path(1, 0, name), O_WRONLY).get()));
    const std::string all = read_all(two.disk(0, name));
    EXPECT_EQ(kMegabytes * block.size(), all.size());
    EXPECT_EQ(std::string::npos, all.find_first_not_of('w'));
  }
}

}  // namespace
}  // namespace vremote::live

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  if (const std::string reason = vremote::live::why_no_mounts(); !reason.empty()) {
    std::printf("skipped: %s\n", reason.c_str());
    return vremote::live::kSkipped;
  }
  // The playgrounds' own guards end everything when the time is over.
  return RUN_ALL_TESTS();
}
