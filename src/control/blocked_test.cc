#include "control/blocked.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace vremote::control {
namespace {

using ::testing::HasSubstr;

Blocked sample() {
  Blocked blocked;
  blocked.node = "node1";
  blocked.entries = {{.side = "home",
                      .what = "lock",
                      .export_name = "data",
                      .path = "/srv/data/f",
                      .inode = 17,
                      .range = BlockedEntry::Range{0, INT64_MAX},
                      .who = {"node2", 40, ""},
                      .waits_for = {{"node3", 50, ""}, {"node1", 60, "cat"}},
                      .why = "",
                      .for_ms = 61'000},
                     {.side = "agent",
                      .what = "read",
                      .export_name = "data",
                      .path = "",
                      .inode = uint64_t{1} << 60 | 1,
                      .range = BlockedEntry::Range{4096, 8191},
                      .who = {"node1", 7, "cp"},
                      .waits_for = {{"node2", 0, ""}},
                      .why = "not connected for 12.0 s",
                      .for_ms = 12'000}};
  return blocked;
}

TEST(BlockedTest, JsonBringsEverythingAcross) {
  const std::string json = to_json(sample());
  EXPECT_EQ(json.find('\n'), std::string::npos);
  auto back = blocked_from_json(json);
  ASSERT_TRUE(back) << back.error().what;
  EXPECT_EQ(back->node, "node1");
  EXPECT_EQ(back->entries, sample().entries);
  EXPECT_FALSE(blocked_from_json("[]"));
  EXPECT_FALSE(blocked_from_json("nonsense"));
}

TEST(BlockedTest, TheTableNamesFileRangeNodeProcessAndTime) {
  const std::string text = blocked_table(sample());
  EXPECT_THAT(text, HasSubstr("/srv/data/f"));
  EXPECT_THAT(text, HasSubstr("0-end"));
  EXPECT_THAT(text, HasSubstr("node2 pid 40"));
  EXPECT_THAT(text, HasSubstr("node3 pid 50, node1 pid 60 (cat)"));
  EXPECT_THAT(text, HasSubstr("1 min 1 s"));
  EXPECT_THAT(text, HasSubstr("4096-8191"));
  EXPECT_THAT(text, HasSubstr("data: inode 1152921504606846977"));
  EXPECT_EQ(blocked_table({.node = "node1", .entries = {}}), "nobody waits at node1\n");
}

}  // namespace
}  // namespace vremote::control
