#include "node/home/outside_changes.h"

#include <gtest/gtest.h>

namespace vremote::node {
namespace {

using coherence::OutsideChange;
constexpr FileId kFile{0, 1, 10}, kOther{0, 1, 20};
constexpr int64_t kApart = OutsideChanges::kApart;
constexpr OutsideChange kMode{.attributes = true}, kBytes{.attributes = true, .data = true};
constexpr Instant kStart{};

TEST(OutsideChangesTest, TheFirstChangeOfAFileIsDueAtOnce) {
  OutsideChanges changes;
  EXPECT_EQ(changes.next(), std::nullopt);
  changes.note(kStart, kFile, kMode);
  changes.note(kStart, kFile, kBytes);
  EXPECT_EQ(changes.take_due(kStart), (OutsideChanges::Due{{kFile, kBytes}}));
  EXPECT_TRUE(changes.take_due(kStart).empty());
}

TEST(OutsideChangesTest, ABusyFileIsDueOncePerIntervalAndNeverLater) {
  OutsideChanges changes;
  int64_t told = 0;
  Instant oldest_untold = kStart;
  for (int64_t at = 0; at < 10 * kApart; at += kApart / 50) {
    const Instant now = kStart + at;
    if (changes.take_due(now).size() == 1) {
      ++told;
      EXPECT_LE(now - oldest_untold, kApart);
      oldest_untold = now;
    }
    changes.note(now, kFile, kMode);
  }
  EXPECT_LE(told, 10);
  EXPECT_GE(told, 9);
}

TEST(OutsideChangesTest, FilesDoNotWaitForOneAnother) {
  OutsideChanges changes;
  changes.note(kStart, kFile, kMode);
  changes.take_due(kStart);
  changes.note(kStart + 1, kFile, kMode);
  changes.note(kStart + 1, kOther, kBytes);
  EXPECT_EQ(changes.take_due(kStart + 1), (OutsideChanges::Due{{kOther, kBytes}}));
  EXPECT_EQ(changes.take_due(kStart + kApart), (OutsideChanges::Due{{kFile, kMode}}));
}

TEST(OutsideChangesTest, AQuietFileIsForgotten) {
  OutsideChanges changes;
  changes.note(kStart, kFile, kMode);
  changes.take_due(kStart);
  EXPECT_EQ(changes.next(), kStart + kApart);
  EXPECT_TRUE(changes.take_due(kStart + kApart).empty());
  EXPECT_EQ(changes.size(), 0u);
  EXPECT_EQ(changes.next(), std::nullopt);
}

}  // namespace
}  // namespace vremote::node
