#include "node/home/undone_work.h"

#include <gtest/gtest.h>

#include <string>

namespace vremote::node {
namespace {

constexpr NodeId kOne{1}, kTwo{2};

TEST(UndoneWorkTest, ANodeIsStoppedAboveTheLimitAndGoesOnAtHalfOfIt) {
  std::string told;
  UndoneWork work(
      [&](NodeId node, bool stop) {
        told += std::to_string(node.value) + (stop ? " stops " : " goes on ");
      },
      100);
  work.begin(kOne, 60);
  work.begin(kTwo, 100);
  EXPECT_EQ(told, "") << "each node has a limit of its own";
  work.begin(kOne, 60);
  work.begin(kOne, 10);
  EXPECT_EQ(told, "1 stops ") << "told once";
  work.end(kOne, 60);
  EXPECT_EQ(told, "1 stops ");
  work.end(kOne, 60);
  EXPECT_EQ(told, "1 stops 1 goes on ");
  work.end(kOne, 10);
  work.end(kTwo, 100);
  EXPECT_EQ(told, "1 stops 1 goes on ");
}

TEST(UndoneWorkTest, OnePieceAboveTheLimitDoesNotStopANodeForEver) {
  int stopped = 0;
  UndoneWork work([&](NodeId, bool stop) { stopped += stop ? 1 : -1; }, 100);
  work.begin(kOne, 1000);
  EXPECT_EQ(stopped, 1);
  work.end(kOne, 1000);
  EXPECT_EQ(stopped, 0);
}

}  // namespace
}  // namespace vremote::node
