#include "fuse/mountinfo.h"

#include <gtest/gtest.h>

namespace vremote::fuse {
namespace {

TEST(MountInfoTest, TakesTheDocumentedForm) {
  const auto entry = parse_mount_entry(
      "36 35 98:5 /mnt1 /mnt2 rw,noatime master:1 shared:7 - fuse.vremote vremote rw,max_read=1");
  ASSERT_TRUE(entry);
  EXPECT_EQ(entry->id, 36u);
  EXPECT_EQ(entry->major, 98u);
  EXPECT_EQ(entry->minor, 5u);
  EXPECT_EQ(entry->point, "/mnt2");
  EXPECT_EQ(entry->type, "fuse.vremote");
  EXPECT_EQ(entry->source, "vremote");
}

TEST(MountInfoTest, OptionalFieldsMayBeMissing) {
  const auto entry = parse_mount_entry("1 2 0:40 / /a rw - tmpfs none rw");
  ASSERT_TRUE(entry);
  EXPECT_EQ(entry->type, "tmpfs");
}

TEST(MountInfoTest, EscapesAreUndone) {
  const auto entry = parse_mount_entry("1 2 0:40 / /with\\040space\\134and\\04 rw - tmpfs none rw");
  ASSERT_TRUE(entry);
  EXPECT_EQ(entry->point, "/with space\\and\\04");
}

TEST(MountInfoTest, OtherFormsAreNotGuessedAt) {
  for (const char* line :
       {"", "x", "1 2", "1 2 0:40", "1 2 040 / /a rw - tmpfs none rw",
        "1 2 0:4x / /a rw - tmpfs none rw", "1 2 0:40 / /a rw master:1 tmpfs none rw",
        "-1 2 0:40 / /a rw - tmpfs none rw"}) {
    EXPECT_FALSE(parse_mount_entry(line)) << line;
  }
}

TEST(MountInfoTest, TheRootIsMountedSomewhereAndAnUnusedPathIsNot) {
  const auto root = mounted_at("/");
  ASSERT_TRUE(root) << root.error().what;
  EXPECT_TRUE(root->has_value());
  const auto none = mounted_at("/no such mount point/anywhere");
  ASSERT_TRUE(none);
  EXPECT_FALSE(none->has_value());
}

}  // namespace
}  // namespace vremote::fuse
