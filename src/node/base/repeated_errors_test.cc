#include "node/base/repeated_errors.h"

#include <gtest/gtest.h>

#include <cerrno>

namespace vremote::node {
namespace {

using Tell = RepeatedErrors::Tell;

constexpr FileId kFile{.export_index = 1, .generation = 2, .inode = 3};
constexpr Instant kNow{1'000};
const Instant kLater = kNow + RepeatedErrors::kQuietNs;

TEST(RepeatedErrorsTest, EachIsToldOnceUntilTheFileHasHadASuccess) {
  RepeatedErrors errors;
  EXPECT_EQ(errors.failed(kNow, kFile, ENOSPC), Tell::It);
  EXPECT_EQ(errors.failed(kNow, kFile, ENOSPC), Tell::Nothing);
  EXPECT_EQ(errors.failed(kNow, kFile, ENOSPC), Tell::Nothing);
  EXPECT_EQ(errors.failed(kNow, kFile, EIO), Tell::It) << "another error";
  FileId other = kFile;
  other.inode = 4;
  EXPECT_EQ(errors.failed(kNow, other, ENOSPC), Tell::It) << "another file";
  EXPECT_EQ(errors.succeeded(kFile), 2u);
  EXPECT_EQ(errors.succeeded(kFile), 0u);
  EXPECT_EQ(errors.failed(kNow, kFile, ENOSPC), Tell::It);
  EXPECT_EQ(errors.failed(kNow, other, ENOSPC), Tell::Nothing);
}

TEST(RepeatedErrorsTest, AfterAQuietMinuteItIsNews) {
  RepeatedErrors errors;
  EXPECT_EQ(errors.failed(kNow, kFile, ENOSPC), Tell::It);
  EXPECT_EQ(errors.failed(kLater, kFile, ENOSPC), Tell::It);
}

TEST(RepeatedErrorsTest, NoMoreAreRememberedThanTheBoundAndOldOnesMakeRoom) {
  RepeatedErrors errors;
  FileId file = kFile;
  for (size_t i = 1; i < RepeatedErrors::kMost; ++i, ++file.inode)
    EXPECT_EQ(errors.failed(kNow, file, ENOSPC), Tell::It);
  EXPECT_EQ(errors.failed(kNow, file, ENOSPC), Tell::ItAndThatOthersAreNot);
  ++file.inode;
  EXPECT_EQ(errors.failed(kNow, file, ENOSPC), Tell::Nothing);
  EXPECT_EQ(errors.failed(kLater, file, ENOSPC), Tell::It);
}

}  // namespace
}  // namespace vremote::node
