#include "node/home/disk_life.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>

namespace vremote::node {
namespace {

class DiskLifeTest : public testing::Test {
 protected:
  DiskLifeTest() {
    char name[] = "/tmp/vremote-disk-life-XXXXXX";
    dir = ::mkdtemp(name);
  }
  ~DiskLifeTest() override { std::filesystem::remove_all(dir); }
  // What nodes are told by a daemon that begins in this start of the machine.
  uint64_t begins(const std::string& boot) {
    auto life = begin_disk_life(path(), boot, ++fresh);
    EXPECT_TRUE(life) << life.error().what;
    if (!life) return 0;
    last = *life;
    return last.number;
  }
  void ends() { ASSERT_TRUE(end_disk_life(path(), last)); }
  std::string path() const { return dir + "/disk"; }

  std::string dir;
  DiskLife last;
  uint64_t fresh = 100;
};

TEST_F(DiskLifeTest, GoesOnWhileTheMachineRuns) {
  const uint64_t first = begins("a");
  EXPECT_NE(first, 0u);
  EXPECT_EQ(begins("a"), first) << "the daemon was killed";
  ends();
  EXPECT_EQ(begins("a"), first);
}

TEST_F(DiskLifeTest, IsAnotherWhenTheDiskHadRefusedSomething) {
  const uint64_t first = begins("a");
  ASSERT_TRUE(break_disk_life(path(), last, ++fresh));
  const uint64_t second = begins("a");
  EXPECT_NE(second, first);
  EXPECT_FALSE(last.synced);
  EXPECT_EQ(begins("a"), second);
}

TEST_F(DiskLifeTest, IsAnotherAfterAPowerFailure) {
  const uint64_t first = begins("a");
  const uint64_t second = begins("b");
  EXPECT_NE(second, first);
  EXPECT_EQ(begins("b"), second);
}

TEST_F(DiskLifeTest, GoesOnWhenAllWasSyncedBeforeTheMachineWasStartedAnew) {
  const uint64_t first = begins("a");
  ends();
  EXPECT_EQ(begins("b"), first);
  EXPECT_NE(begins("c"), first) << "it was used since";
}

TEST_F(DiskLifeTest, OnlyAfterADaemonThatWasKilledMayOldBytesStillBeLost) {
  begins("a");
  EXPECT_TRUE(last.synced);
  begins("a");
  EXPECT_FALSE(last.synced);
  begins("b");
  EXPECT_TRUE(last.synced) << "what the power failure has left is on the disk";
  ends();
  begins("b");
  EXPECT_TRUE(last.synced);
}

TEST_F(DiskLifeTest, WhereNobodyKnowsTheStartEachDaemonsIsAnother) {
  const uint64_t first = begins("");
  EXPECT_NE(begins(""), first);
}

TEST_F(DiskLifeTest, WhatIsDamagedBeginsAnew) {
  const uint64_t first = begins("a");
  std::ofstream(path()) << "vremote disk 1\na 5";
  EXPECT_NE(begins("a"), first);
  for (const char* text :
       {"", "vremote disk 1\n", "vremote disk 1\na 0 used\nend\n", "vremote disk 1\n 7 used\nend\n",
        "vremote disk 1\na 7 used\n", "vremote disk 1\na 7 maybe\nend\n",
        "vremote disk 1\na 7 used\nend\nx", "vremote disk 2\na 7 used\nend\n"})
    EXPECT_FALSE(parse_disk_life(text)) << text;
  const auto good = parse_disk_life("vremote disk 1\na-b 7 synced\nend\n");
  ASSERT_TRUE(good);
  EXPECT_EQ(good->boot, "a-b");
  EXPECT_EQ(good->number, 7u);
  EXPECT_TRUE(good->synced);
}

TEST_F(DiskLifeTest, ThisMachineTellsItsStart) {
  EXPECT_FALSE(boot_id().empty());
  EXPECT_EQ(boot_id(), boot_id());
}

}  // namespace
}  // namespace vremote::node
