#include "node/home/left_behind.h"

#include <gtest/gtest.h>

namespace vremote::node {
namespace {

using Files = std::vector<FileId>;
FileId file(uint64_t inode) { return {0, 1, inode}; }
Instant at(int64_t s) { return {s * 1'000'000'000}; }

TEST(LeftBehindTest, FilesAreKeptUntilNobodyCanComeForThem) {
  LeftBehind left;
  EXPECT_TRUE(left.add(file(1), "n1", false, at(0)));
  EXPECT_TRUE(left.add(file(2), "n2", true, at(0)));
  EXPECT_EQ(left.take_old(at(9)), Files{});
  EXPECT_EQ(left.take_old(at(10)), Files{file(2)}) << "it was there, and did not ask for it";
  EXPECT_EQ(left.take_old(at(59)), Files{});
  EXPECT_EQ(left.take_old(at(60)), Files{file(1)});
  EXPECT_EQ(left.take_old(at(100)), Files{}) << "once";
}

TEST(LeftBehindTest, WhoIsBackHasNotMuchTime) {
  LeftBehind left;
  for (uint64_t i : {1, 2}) {
    EXPECT_TRUE(left.add(file(i), "n1", false, at(0)));
    EXPECT_TRUE(left.add(file(i), "n2", false, at(0)));
  }
  left.came_back("n1", at(5));
  EXPECT_EQ(left.take_old(at(14)), Files{});
  EXPECT_EQ(left.take_old(at(15)), (Files{file(1), file(2)}));
  left.came_back("n2", at(55));
  EXPECT_EQ(left.take_old(at(60)), (Files{file(1), file(2)})) << "never longer than before";
}

TEST(LeftBehindTest, SessionsThatEndOneAfterTheOtherLeaveAFileOnce) {
  LeftBehind left;
  EXPECT_TRUE(left.add(file(1), "n1", false, at(0)));
  EXPECT_FALSE(left.add(file(1), "n1", false, at(30)));
  EXPECT_EQ(left.take_old(at(60)), Files{});
  EXPECT_EQ(left.take_old(at(90)), Files{file(1)});
}

}  // namespace
}  // namespace vremote::node
