#include "node/home/sync_refusals.h"

#include <gtest/gtest.h>

#include <cerrno>

namespace vremote::node {
namespace {

constexpr FileId kFile{0, 1, 7}, kOther{0, 1, 8};
constexpr NodeId kOwn{0}, kOne{1}, kTwo{2}, kLater{3};

TEST(SyncRefusalsTest, EachNodeThatMayHaveWrittenHearsOnce) {
  SyncRefusals r;
  for (const NodeId node : {kOwn, kOne, kTwo}) r.seen(node);
  EXPECT_EQ(r.tell(kFile, kOne, 0), 0);
  EXPECT_EQ(r.tell(kFile, kOne, EIO), EIO);
  EXPECT_EQ(r.tell(kFile, kOne, 0), 0) << "told";
  EXPECT_EQ(r.tell(kOther, kTwo, 0), 0);
  EXPECT_EQ(r.tell(kFile, kTwo, 0), EIO);
  EXPECT_EQ(r.tell(kFile, kTwo, 0), 0);
  EXPECT_EQ(r.tell(kFile, kOwn, 0), EIO);
}

TEST(SyncRefusalsTest, ASessionThatBeginsLaterHasLostNothing) {
  SyncRefusals r;
  r.seen(kTwo);
  EXPECT_EQ(r.tell(kFile, kOne, ENOSPC), ENOSPC);
  r.seen(kLater);
  EXPECT_EQ(r.tell(kFile, kLater, 0), 0);
  EXPECT_EQ(r.tell(kFile, kTwo, 0), ENOSPC);
}

TEST(SyncRefusalsTest, AFileThatNobodyHasIsForgotten) {
  SyncRefusals r;
  r.seen(kTwo);
  EXPECT_EQ(r.tell(kFile, kOne, EIO), EIO);
  r.forget(kFile);
  EXPECT_EQ(r.tell(kFile, kTwo, 0), 0);
}

}  // namespace
}  // namespace vremote::node
