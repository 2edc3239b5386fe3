// The parts of the guardian that need no kernel.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <condition_variable>
#include <mutex>
#include <tuple>

#include "node/guardian_purge.h"
#include "node/guardian_table.h"

namespace vremote::node {
namespace {

TEST(GuardianTableTest, AnotherProcessSeesWhatIsThereNow) {
  auto table = GuardianTable::make();
  ASSERT_TRUE(table) << table.error().what;
  const uint32_t home = table->add_home("node2");
  const uint32_t kept = table->add_inode(7, home, {1, 2, 3});
  const uint32_t gone = table->add_inode(8, home, {1, 2, 4});
  table->remove_inode(gone);
  table->fill_begins(10, 7, 4096, 8192);
  table->fill_begins(12, 7, 0, 4096);
  table->fill_ended(12);
  table->renew(home, 77);
  table->alive({55});
  const pid_t pid = ::fork();
  if (pid == 0) {
    const auto inodes = table->inodes();
    const auto fills = table->fills();
    const bool good =
        inodes.size() == 1 && inodes[0].node == 7 && inodes[0].file == FileId{1, 2, 3} &&
        table->home_name(inodes[0].home) == "node2" && fills.size() == 1 &&
        fills[0].offset == 4096 && fills[0].length == 8192 && table->leases_until(home) == 77 &&
        table->last_alive() == Instant{55} && !table->incomplete();
    ::_exit(good ? 0 : 1);
  }
  int status = 0;
  ::waitpid(pid, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  // A slot is used again.
  EXPECT_EQ(gone, table->add_inode(9, home, {1, 2, 5}));
  EXPECT_NE(kept, gone);
}

TEST(GuardianTableTest, FillsThatFindNoRoomAreNotMistakenForOthers) {
  auto table = GuardianTable::make();
  ASSERT_TRUE(table);
  const uint64_t same_place = 2 * GuardianTable::kFillsMax;
  for (uint64_t i = 1; i <= 20; ++i) table->fill_begins(2 + i * same_place, i, 0, 4096);
  const size_t noted = table->fills().size();
  EXPECT_LT(noted, 20u);
  for (uint64_t i = 1; i <= 20; ++i) table->fill_ended(2 + i * same_place);
  EXPECT_TRUE(table->fills().empty());
}

// A kernel in which some pages are locked.
class Pages {
 public:
  GuardianPurge::Drop drop() {
    return [this](uint64_t node, uint64_t offset, uint64_t length) {
      const uint64_t end = length == 0 ? kEnd : offset + length;
      std::unique_lock lock(mutex_);
      for (uint64_t page = offset; page < end; page += 4096) {
        changed_.wait(lock, [&] { return !locked_.contains({node, page}); });
        dropped_.insert({node, page});
        changed_.notify_all();
      }
    };
  }
  void lock_page(uint64_t node, uint64_t page) {
    std::lock_guard lock(mutex_);
    locked_.insert({node, page});
  }
  void unlock_all() {
    std::lock_guard lock(mutex_);
    locked_.clear();
    changed_.notify_all();
  }
  bool drops(uint64_t node, uint64_t page) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::minutes(1), [&] {
      return dropped_.contains({node, page});
    });
  }
  static constexpr uint64_t kEnd = 16 * 4096;

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::set<std::pair<uint64_t, uint64_t>> locked_, dropped_;
};

TEST(GuardianPurgeTest, GoesRoundFillsThatAreKnown) {
  Pages pages;
  pages.lock_page(1, 8 * 4096);
  GuardianPurge purge(pages.drop());
  purge.fill(1, 8 * 4096, 4096);
  purge.start({1});
  EXPECT_TRUE(pages.drops(1, 0));
  EXPECT_TRUE(pages.drops(1, 7 * 4096));
  EXPECT_TRUE(pages.drops(1, 9 * 4096));
  EXPECT_TRUE(pages.drops(1, 15 * 4096));
  pages.unlock_all();
}

TEST(GuardianPurgeTest, AFillThatComesLaterDoesNotSaveThePagesBehindIt) {
  Pages pages;
  pages.lock_page(1, 4096);
  GuardianPurge purge(pages.drop());
  purge.start({1});
  ASSERT_TRUE(pages.drops(1, 0));  // it hangs now, or will
  purge.fill(1, 4096, 4096);
  EXPECT_TRUE(pages.drops(1, 15 * 4096));
  pages.unlock_all();
}

TEST(GuardianPurgeTest, InodesWhosePurgeHangsDoNotHoldUpOthers) {
  Pages pages;
  std::vector<uint64_t> nodes;
  for (uint64_t node = 1; node <= 40; ++node) {
    nodes.push_back(node);
    if (node < 40) pages.lock_page(node, 0);
  }
  GuardianPurge purge(pages.drop());
  purge.start(nodes);
  std::atomic<bool> reached{false};
  std::thread looker([&] { reached = pages.drops(40, 0); });
  for (int i = 0; i < 60'000 && !reached; ++i) {
    purge.help();
    ::usleep(1000);
  }
  looker.join();
  EXPECT_TRUE(reached);
  pages.unlock_all();
}

}  // namespace
}  // namespace vremote::node
