#include "coherence/name_cache.h"

#include <gtest/gtest.h>

namespace vremote::coherence {
namespace {

const FileId kDir{0, 1, 10};
const FileId kFile{0, 1, 11};

TEST(NameCacheTest, RemembersNamesAndTheirAbsence) {
  NameCache names;
  EXPECT_FALSE(names.find(kDir, "a").known);
  names.remember(kDir, "a", kFile, names.changes());
  names.remember(kDir, "b", std::nullopt, names.changes());
  EXPECT_EQ(names.find(kDir, "a").file, kFile);
  EXPECT_TRUE(names.find(kDir, "b").known);
  EXPECT_FALSE(names.find(kDir, "b").file.has_value());
  EXPECT_EQ(names.entries(), 2u);
}

TEST(NameCacheTest, NothingIsKnownOfADirectoryThatIsBeingChanged) {
  NameCache names;
  names.remember(kDir, "a", kFile, names.changes());
  names.remember(kDir, "b", kFile, names.changes());
  names.begin_change(kDir);
  EXPECT_FALSE(names.find(kDir, "b").known);
  names.remember(kDir, "c", kFile, names.changes());
  names.end_change(kDir, "a");
  EXPECT_FALSE(names.find(kDir, "a").known);
  EXPECT_TRUE(names.find(kDir, "b").known);
  EXPECT_FALSE(names.find(kDir, "c").known);
}

TEST(NameCacheTest, ALostLeaseTakesAllNames) {
  NameCache names;
  names.remember(kDir, "a", kFile, names.changes());
  names.begin_change(kDir);
  names.lost(kDir);
  names.end_change(kDir, "x");
  EXPECT_FALSE(names.find(kDir, "a").known);
  EXPECT_EQ(names.entries(), 0u);
}

TEST(NameCacheTest, AnAnswerOvertakenByAChangeIsNotRemembered) {
  NameCache names;
  const uint64_t asked = names.changes();
  names.begin_change(kDir);
  names.end_change(kDir, "a");
  names.remember(kDir, "a", std::nullopt, asked);  // was true before the change
  EXPECT_FALSE(names.find(kDir, "a").known);
  names.remember(kDir, "a", kFile, names.changes());
  EXPECT_EQ(names.find(kDir, "a").file, kFile);
}

TEST(NameCacheTest, AForgottenNameIsAskedForAgain) {
  NameCache names;
  names.remember(kDir, "a", kFile, names.changes());
  names.forget(kDir, "a");
  EXPECT_FALSE(names.find(kDir, "a").known);
  EXPECT_EQ(names.entries(), 0u);
}

}  // namespace
}  // namespace vremote::coherence
