// The parts of the guardian that need no kernel.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <condition_variable>
#include <functional>
#include <mutex>
#include <set>
#include <tuple>

#include "base/check.h"
#include "node/base/handle.h"
#include "node/guardian/guardian_corpse.h"
#include "node/guardian/guardian_ledger.h"
#include "node/guardian/guardian_process.h"
#include "node/guardian/guardian_purge.h"
#include "node/guardian/guardian_sweep.h"
#include "node/guardian/guardian_table.h"
#include "node/handover/salvage.h"
#include "node/mount/held_ranges.h"

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

TEST(GuardianTableTest, ATruncationIsAnsweredByTheDaemonOrByTheGuardian) {
  auto table = GuardianTable::make();
  ASSERT_TRUE(table);
  table->truncation_begins(10);
  table->truncation_begins(12);
  table->truncation_begins(14);
  EXPECT_FALSE(table->truncation_ended(12)) << "by the daemon";
  const std::vector<uint64_t> taken = table->take_truncations();
  EXPECT_EQ(std::set<uint64_t>(taken.begin(), taken.end()), (std::set<uint64_t>{10, 14}));
  EXPECT_TRUE(table->take_truncations().empty()) << "once";
  EXPECT_TRUE(table->truncation_ended(10)) << "by the guardian";
  EXPECT_FALSE(table->truncation_ended(10)) << "its place is free";
  table->begin_anew();
  EXPECT_FALSE(table->truncation_ended(14));
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

TEST(GuardianTableTest, PurgesThatADeadDaemonMayHangInAreKnown) {
  auto table = GuardianTable::make();
  ASSERT_TRUE(table);
  const size_t first = table->purge_begins(7, 4096, 8192);
  const size_t second = table->purge_begins(7, 0, 0);
  EXPECT_EQ(2u, table->purges().size());
  table->purge_ended(first);
  ASSERT_EQ(1u, table->purges().size());
  EXPECT_EQ(7u, table->purges()[0].node);
  EXPECT_EQ(0u, table->purges()[0].length);
  table->purge_ended(second);
  EXPECT_TRUE(table->purges().empty());
  // Also those that found no room.
  std::vector<size_t> many;
  for (size_t i = 0; i < 2 * GuardianTable::kPurgesMax; ++i)
    many.push_back(table->purge_begins(7, 0, 4096));
  EXPECT_EQ(GuardianTable::kPurgesMax, table->purges().size());
  for (size_t purge : many) table->purge_ended(purge);
  EXPECT_TRUE(table->purges().empty());
  (void)table->purge_begins(7, 0, 4096);
  table->begin_anew();
  EXPECT_TRUE(table->purges().empty());
}

// In milliseconds.
Instant at(int64_t ms) { return {ms * 1'000'000}; }

TEST(GuardianCorpseTest, ReadaheadUnderAPurgeGoesFirstThenThePagesThatAreNeeded) {
  GuardianCorpse corpse(at(0), {{7, 8192, 8192}, {9, 4096, 0}});
  EXPECT_FALSE(corpse.refuses(at(50), 7, 0, 65536)) << "it may go by itself";
  EXPECT_TRUE(corpse.refuses(at(100), 7, 0, 65536));
  EXPECT_FALSE(corpse.refuses(at(350), 7, 8192, 4096));
  EXPECT_TRUE(corpse.refuses(at(400), 7, 8192, 4096));
  EXPECT_TRUE(corpse.refuses(at(400), 7, 12288, 4096)) << "another page";
  EXPECT_FALSE(corpse.refuses(at(450), 7, 8192, 4096)) << "the purge gets the page first";
  EXPECT_TRUE(corpse.refuses(at(600), 7, 8192, 4096));
  EXPECT_TRUE(corpse.refuses(at(1000), 9, 1 << 30, 8192)) << "to the end of the file";
}

TEST(GuardianCorpseTest, WhatNoPurgeWaitsForIsLeftAlone) {
  GuardianCorpse corpse(at(0), {{7, 8192, 8192}});
  for (int64_t ms : {100, 5000, 60'000}) {
    EXPECT_FALSE(corpse.refuses(at(ms), 7, 0, 8192));
    EXPECT_FALSE(corpse.refuses(at(ms), 7, 16384, 4096));
    EXPECT_FALSE(corpse.refuses(at(ms), 8, 8192, 4096));
  }
}

fuse::Capabilities agreed() {
  fuse::Capabilities c;
  c.minor = 40;
  c.max_pages = 256;
  c.resend = true;
  return c;
}

constexpr uint64_t kIdentity = 77;

// A daemon's table as it should be.
GuardianTable table_of_a_daemon() {
  auto table = GuardianTable::make();
  VR_CHECK(table.has_value());
  const uint32_t home = table->add_home("node2");
  const uint32_t slot = table->add_inode(7, home, {0, 2, 3});
  table->set_lookups(slot, 5);
  table->opened(slot, true, true);
  table->opened(slot, true, false);
  table->set_owes(slot, true);
  table->locks().note({8, 7, 99, 1});
  table->set_exports(home, {{"data", home, {0, 2, 2}, true}});
  table->identify(kIdentity, 3);
  table->set_capabilities(agreed());
  return std::move(*table);
}

TEST(SalvageTest, TheNextDaemonFindsWhatThisOneHad) {
  const GuardianTable table = table_of_a_daemon();
  const auto salvage = read_salvage(table, kIdentity);
  ASSERT_TRUE(salvage) << salvage.error().what;
  EXPECT_EQ(3u, salvage->generation);
  ASSERT_EQ(1u, salvage->inodes.size());
  const GuardianTable::Inode& inode = salvage->inodes[0];
  EXPECT_EQ(7u, inode.node);
  EXPECT_EQ(5u, inode.lookups);
  EXPECT_EQ(2u, inode.opens.all);
  EXPECT_EQ(2u, inode.opens.reading);
  EXPECT_EQ(1u, inode.opens.mapping);
  EXPECT_TRUE(inode.owes);
  ASSERT_EQ(1u, salvage->locks.size());
  EXPECT_EQ((GuardianLock{8, 7, 99, 1}), salvage->locks[0]);
  ASSERT_EQ(1u, salvage->exports.size());
  EXPECT_EQ((GuardianTable::Export{"data", 0, {0, 2, 2}, true}), salvage->exports[0]);
  EXPECT_TRUE(salvage->capabilities.resend);
  EXPECT_EQ(256u, salvage->capabilities.max_pages);
}

TEST(SalvageTest, OneThingThatCannotBeAndNothingIsTaken) {
  using Break = std::function<void(GuardianTable&)>;
  const std::vector<std::pair<const char*, Break>> breaks{
      {"another node", [](GuardianTable& t) { t.identify(kIdentity + 1, 3); }},
      {"a generation", [](GuardianTable& t) { t.identify(kIdentity, kGenerationsMax); }},
      {"it dies at once", [](GuardianTable& t) { t.set_early_deaths(kEarlyDeathsMax); }},
      {"the root's number",
       [](GuardianTable& t) {
         t.add_inode(1, 0, {0, 1, 1});
       }},
      {"a number of the next daemon",
       [](GuardianTable& t) {
         t.add_inode(first_number(4), 0, {0, 1, 1});
       }},
      {"no such home",
       [](GuardianTable& t) {
         t.add_inode(9, 5, {0, 1, 1});
       }},
      {"one node twice",
       [](GuardianTable& t) {
         t.add_inode(7, 0, {0, 1, 1});
       }},
      {"one file twice",
       [](GuardianTable& t) {
         t.add_inode(9, 0, {0, 2, 3});
       }},
      {"never looked up",
       [](GuardianTable& t) {
         t.set_lookups(t.add_inode(9, 0, {0, 1, 1}), 0);
       }},
      {"looked up too often",
       [](GuardianTable& t) {
         t.set_lookups(t.add_inode(9, 0, {0, 1, 1}), UINT64_MAX);
       }},
      {"a kind of lock",
       [](GuardianTable& t) {
         t.locks().note({8, 7, 1, 2});
       }},
      {"a handle of the next daemon",
       [](GuardianTable& t) {
         t.locks().note({first_number(4) << kHandleShift, 7, 1, 0});
       }},
      {"an export of no home",
       [](GuardianTable& t) {
         t.set_exports(9, {{"x", 9, {0, 1, 1}, false}});
       }},
      {"an export's name",
       [](GuardianTable& t) {
         t.set_exports(0, {{"a/b", 0, {0, 1, 1}, false}});
       }},
      {"a kernel that cannot",
       [](GuardianTable& t) {
         fuse::Capabilities c = agreed();
         c.resend = false;
         t.set_capabilities(c);
       }},
  };
  for (const auto& [what, how] : breaks) {
    GuardianTable table = table_of_a_daemon();
    how(table);
    EXPECT_FALSE(read_salvage(table, kIdentity)) << what;
  }
}

TEST(SalvageTest, MoreLocksThanCanBeNotedAreNotTakenForFewer) {
  GuardianTable table = table_of_a_daemon();
  for (uint64_t i = 0; i < GuardianTable::kLocksMax; ++i) table.locks().note({12, 7, i, 0});
  EXPECT_FALSE(read_salvage(table, kIdentity));
  // The one that had no room has the place of the one that goes.
  table.locks().drop(7, 0, 3);
  const auto salvage = read_salvage(table, kIdentity);
  ASSERT_TRUE(salvage) << salvage.error().what;
  EXPECT_EQ(GuardianTable::kLocksMax, salvage->locks.size());
}

TEST(GuardianLocksTest, WhatHadNoRoomAndIsGoneIsForgotten) {
  auto table = GuardianTable::make();
  ASSERT_TRUE(table);
  GuardianLocks& locks = table->locks();
  for (uint64_t i = 0; i < GuardianLocks::kMax; ++i) locks.note({8, 7, i, 0});
  locks.note({16, 9, 1, 1});
  locks.note({16, 9, 1, 1});
  locks.note({24, 9, 1, 1});
  EXPECT_FALSE(locks.all());
  locks.drop(16);
  EXPECT_FALSE(locks.all());
  locks.drop(9, 1, 1);
  ASSERT_TRUE(locks.all());
  EXPECT_EQ(GuardianLocks::kMax, locks.all()->size());
  locks.drop(8);
  ASSERT_TRUE(locks.all());
  EXPECT_TRUE(locks.all()->empty());
}

TEST(GuardianLocksTest, TheNextDaemonOfTheTableFindsThemToo) {
  auto table = GuardianTable::make();
  ASSERT_TRUE(table);
  for (uint64_t i = 0; i < GuardianLocks::kMax; ++i) table->locks().note({8, 7, i, 0});
  table->locks().note({16, 9, 1, 1});
  auto next = GuardianTable::take_over(Fd(::dup(table->descriptor())));
  ASSERT_TRUE(next) << next.error().what;
  next->begin_anew();
  GuardianLocks& locks = next->locks();
  locks.drop(8);
  EXPECT_FALSE(locks.all()) << "one of them had no room, and nobody says which";
  // Of it the inode is not known.
  const std::vector<GuardianLock> held{{8, 0, 5, 0}, {16, 0, 1, 1}};
  locks.learn_all(held);
  EXPECT_FALSE(locks.all());
  locks.drop(9, 1, 1);
  EXPECT_FALSE(locks.all());
  locks.drop(16);
  locks.drop(8);
  ASSERT_TRUE(locks.all());
  EXPECT_TRUE(locks.all()->empty());
}

TEST(GuardianTableTest, WhatIsCountedOffTwiceIsNotLessThanNothing) {
  GuardianTable table = table_of_a_daemon();
  const uint32_t slot = table.slots().at(7);
  for (int i = 0; i < 5; ++i) table.closed(slot, true, true);
  const auto inode = table.inodes().at(0);
  EXPECT_EQ(0u, inode.opens.all + inode.opens.reading + inode.opens.mapping);
  // Nothing happens to an inode without a slot.
  table.opened(GuardianTable::kNoSlot, true, true);
  table.set_owes(GuardianTable::kNoSlot, true);
}

TEST(GuardianTableTest, ASlotThatIsUsedAgainHasNothingOfTheOneBefore) {
  GuardianTable table = table_of_a_daemon();
  table.remove_inode(table.slots().at(7));
  table.add_inode(8, 0, {0, 2, 4});
  const auto inode = table.inodes().at(0);
  EXPECT_EQ(1u, inode.lookups);
  EXPECT_EQ(0u, inode.opens.all);
  EXPECT_FALSE(inode.owes);
}

fuse::Request request(uint64_t node, decltype(fuse::Request::body) body) {
  fuse::Request r;
  r.header.node = node;
  r.body = std::move(body);
  return r;
}

TEST(GuardianLedgerTest, WhatTheGuardianAnswersIsInTheTable) {
  GuardianTable table = table_of_a_daemon();
  table.locks().note({8, 7, 50, 0});
  table.set_owes(table.slots().at(7), false);
  GuardianLedger ledger(table);
  ledger.note(request(7, fuse::Write{.write_back = false}));
  EXPECT_FALSE(table.inodes()[0].owes);
  ledger.note(request(7, fuse::Write{.write_back = true}));
  EXPECT_TRUE(table.inodes()[0].owes);
  ledger.note(request(7, fuse::Flush{.fh = 8, .lock_owner = 50}));
  EXPECT_EQ(1u, table.locks().all()->size());
  ledger.note(request(7, fuse::Release{.fh = 8 | kHandleReads | kHandleMayMap}));
  EXPECT_EQ(1u, table.inodes()[0].opens.all);
  EXPECT_EQ(0u, table.inodes()[0].opens.mapping);
  EXPECT_EQ(1u, table.locks().all()->size()) << "of another handle";
  ledger.note(request(7, fuse::Release{.fh = 8}));
  EXPECT_TRUE(table.locks().all()->empty());
  ledger.note(request(7, fuse::Forget{.lookups = 4}));
  EXPECT_EQ(1u, table.inodes()[0].lookups);
  ledger.note(request(0, fuse::BatchForget{{{7, 1}, {9, 1}}}));
  EXPECT_TRUE(table.inodes().empty());
  ledger.note(request(7, fuse::Release{.fh = 8}));
}

TEST(HeldRangesTest, SaysWhenNothingIsLeft) {
  const HeldRanges::Owner a{1, coherence::LockKind::Range, 5}, b{1, coherence::LockKind::Range, 6};
  HeldRanges held;
  EXPECT_TRUE(held.given_up(a, 0, INT64_MAX));
  held.granted(a, 0, 9);
  held.granted(a, 20, 29);
  held.granted(b, 0, 9);
  EXPECT_FALSE(held.given_up(a, 5, 24));
  EXPECT_FALSE(held.given_up(a, 0, 4));
  EXPECT_TRUE(held.given_up(a, 25, 29));
  EXPECT_EQ(1u, held.owners());
  held.granted(a, 0, INT64_MAX);
  held.granted(a, 5, 5);  // another kind of lock on a part
  EXPECT_FALSE(held.given_up(a, 5, 5));
  EXPECT_FALSE(held.given_up(a, 6, INT64_MAX));
  EXPECT_TRUE(held.given_up(a, 0, 4));
  for (uint64_t i = 0; i < 100; ++i) held.granted(a, i, i);
  EXPECT_FALSE(held.given_up(a, 0, 98));
  EXPECT_TRUE(held.given_up(a, 99, 99));
  held.gone(b);
  EXPECT_EQ(0u, held.owners());
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

TEST(GuardianSweepTest, IsDoneWhenAllButTheFillsIsGone) {
  Pages pages;
  pages.lock_page(1, 8 * 4096);  // known before
  pages.lock_page(2, 4096);      // comes later
  GuardianSweep sweep(pages.drop());
  sweep.fill(1, 8 * 4096, 4096);
  EXPECT_FALSE(sweep.done());
  sweep.start({1, 2, 3});
  EXPECT_TRUE(pages.drops(1, 15 * 4096));
  EXPECT_TRUE(pages.drops(2, 0));  // it hangs now, or will
  for (int i = 0; i < 20; ++i) {
    sweep.help();
    ::usleep(1000);
  }
  EXPECT_FALSE(sweep.done()) << "nobody knows what is behind";
  sweep.fill(2, 4096, 4096);
  for (int i = 0; i < 60'000 && !sweep.done(); ++i) {
    sweep.help();
    ::usleep(1000);
  }
  EXPECT_TRUE(sweep.done());
  EXPECT_TRUE(pages.drops(2, 15 * 4096));
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

TEST(IsACorpseTest, ADaemonThatHasYetToTakeASignalIsNotDead) {
  const auto corpse = [](std::string_view state, uint64_t pending, int dumps = 0) {
    return is_a_corpse(
        fmt::format("Name:\tvremote\nState:\t{}\nCoreDumping:\t{}\n"
                    "SigPnd:\t{:016x}\nShdPnd:\t{:016x}\nSigBlk:\t0000000000000000\n",
                    state, dumps, 0, pending));
  };
  EXPECT_FALSE(corpse("S (sleeping)", 0));
  for (int signal : {SIGUSR1, SIGUSR2, SIGTERM, SIGINT, SIGHUP})
    EXPECT_FALSE(corpse("R (running)", uint64_t{1} << (signal - 1))) << signal;
  EXPECT_TRUE(corpse("D (disk sleep)", uint64_t{1} << (SIGKILL - 1)));
  EXPECT_TRUE(corpse("Z (zombie)", 0));
  EXPECT_TRUE(corpse("D (disk sleep)", 0, 1));
}

}  // namespace
}  // namespace vremote::node
