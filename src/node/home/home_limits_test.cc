#include "node/home/home_limits.h"

#include <gtest/gtest.h>

namespace vremote::node {
namespace {

constexpr uint64_t kGiB = uint64_t{1} << 30;

TEST(HomeLimitsTest, LeasesGoByTheMemoryUnlessSaid) {
  EXPECT_EQ(home_limits({.memory = 16 * kGiB, .descriptors = 1 << 20}, 0).leases.in_all, 1u << 20);
  EXPECT_EQ(home_limits({.memory = kGiB / 4, .descriptors = 1 << 20}, 0).leases.in_all, 64u << 10);
  const auto said = home_limits({.memory = 16 * kGiB, .descriptors = 1 << 20}, 5000).leases;
  EXPECT_EQ(said.in_all, 5000u);
  EXPECT_EQ(said.of_node, 2500u);
}

TEST(HomeLimitsTest, OpenFilesLeaveDescriptorsForEverythingElse) {
  for (uint64_t descriptors : {1024u, 65536u, 1u << 20}) {
    const auto limits = home_limits({.memory = kGiB, .descriptors = descriptors}, 0);
    EXPECT_LE(limits.opens_in_all * 3, descriptors);
    EXPECT_LT(limits.opens_of_node, limits.opens_in_all);
  }
}

TEST(HomeLimitsTest, MoreFilesAreRememberedThanNodesMayHaveLeasesOf) {
  for (uint64_t gib : {1u, 16u, 256u}) {
    const Machine machine{.memory = gib * kGiB, .descriptors = 1 << 20};
    EXPECT_GT(files_remembered(machine), home_limits(machine, 0).leases.in_all);
  }
  EXPECT_GT(this_machine().memory, 0u);
  EXPECT_GT(this_machine().descriptors, 0u);
}

}  // namespace
}  // namespace vremote::node
