#include "coherence/unsynced_files.h"

#include <gtest/gtest.h>

namespace vremote::coherence {
namespace {

FileId file(uint64_t inode) { return {.export_index = 0, .generation = 1, .inode = inode}; }

TEST(UnsyncedFilesTest, ASyncCoversWhatWasChangedBeforeItBegan) {
  UnsyncedFiles files;
  EXPECT_FALSE(files.has(file(1)));
  files.changed(file(1));
  files.changed(file(2));
  EXPECT_TRUE(files.has(file(1)));
  const uint64_t begun = files.sync_begins();
  files.synced(file(1), begun);
  EXPECT_FALSE(files.has(file(1)));
  EXPECT_TRUE(files.has(file(2)));
}

TEST(UnsyncedFilesTest, WhatACallChangedNeedsMoreThanFdatasync) {
  UnsyncedFiles files;
  files.changed(file(1));
  EXPECT_FALSE(files.needs_fsync(file(1)));
  files.changed(file(1), true);
  files.changed(file(1));
  EXPECT_TRUE(files.needs_fsync(file(1)));
  EXPECT_FALSE(files.needs_fsync(file(2)));
  files.synced(file(1), files.sync_begins());
  EXPECT_FALSE(files.needs_fsync(file(1)));
  files.changed(file(1));
  EXPECT_FALSE(files.needs_fsync(file(1))) << "the call's is on the disk";
  files.all_changed();
  EXPECT_TRUE(files.needs_fsync(file(2)));
}

TEST(UnsyncedFilesTest, AChangeDuringASyncIsNotCovered) {
  UnsyncedFiles files;
  files.changed(file(1));
  const uint64_t begun = files.sync_begins();
  files.changed(file(1));
  files.synced(file(1), begun);
  EXPECT_TRUE(files.has(file(1)));
}

TEST(UnsyncedFilesTest, WhenTheyAreTooManyAllCountUntilEverythingIsSynced) {
  UnsyncedFiles files(2);
  for (uint64_t i = 1; i <= 3; ++i) files.changed(file(i));
  EXPECT_TRUE(files.too_many());
  EXPECT_TRUE(files.has(file(9)));
  files.synced(file(9), files.sync_begins());
  EXPECT_TRUE(files.has(file(9)));
  const uint64_t begun = files.sync_begins();
  files.changed(file(4));
  files.all_synced(begun);
  EXPECT_FALSE(files.has(file(9)));
  EXPECT_TRUE(files.has(file(4))) << "changed meanwhile";
}

TEST(UnsyncedFilesTest, TooManyDuringASyncOfEverythingAreNotCovered) {
  UnsyncedFiles files(2);
  const uint64_t begun = files.sync_begins();
  for (uint64_t i = 1; i <= 3; ++i) files.changed(file(i));
  files.all_synced(begun);
  EXPECT_TRUE(files.has(file(9)));
}

}  // namespace
}  // namespace vremote::coherence
