#include "coherence/file_errors.h"

#include <gtest/gtest.h>

#include <cerrno>

namespace vremote::coherence {
namespace {

constexpr uint64_t kAt = 10, kLater = 11;
Opener opener(uint64_t handle, uint64_t next = 100) { return {handle, next}; }

TEST(FileErrorsTest, EachOpenFileHearsOnce) {
  FileErrors e;
  EXPECT_EQ(e.tell(opener(1), kLater), 0);
  e.add(ENOSPC, kAt);
  for (const uint64_t handle : {1, 2, 3}) {
    EXPECT_EQ(e.tell(opener(handle), kLater), ENOSPC) << handle;
    EXPECT_EQ(e.tell(opener(handle), kLater), 0) << handle;
  }
}

TEST(FileErrorsTest, AFileOpenedAfterItWasToldHearsNothing) {
  FileErrors e;
  e.add(EIO, kAt);
  EXPECT_EQ(e.tell(opener(1, 5), kLater), EIO);
  EXPECT_EQ(e.tell(opener(5, 6), kLater), 0);
  EXPECT_EQ(e.tell(opener(4, 6), kLater), EIO);
}

TEST(FileErrorsTest, AFileOpenedBeforeAnybodyWasToldHears) {
  FileErrors e;
  e.add(EIO, kAt);
  e.closed(1, false);
  EXPECT_EQ(e.tell(opener(7, 8), kLater), EIO);
}

TEST(FileErrorsTest, EveryFsyncUnderWayHearsAlsoOfOneOpenFile) {
  FileErrors e;
  e.add(EIO, kAt);
  EXPECT_EQ(e.tell(opener(1), kAt - 1), EIO);
  EXPECT_EQ(e.tell(opener(1), kAt - 2), EIO);
  EXPECT_EQ(e.tell(opener(1), kAt), 0);
}

TEST(FileErrorsTest, ANewErrorIsNewsToAll) {
  FileErrors e;
  e.add(EIO, kAt);
  EXPECT_EQ(e.tell(opener(1), kLater), EIO);
  e.add(ENOSPC, kLater);
  EXPECT_EQ(e.tell(opener(1), kLater + 1), ENOSPC);
  EXPECT_EQ(e.tell(opener(1), kLater + 1), 0);
}

TEST(FileErrorsTest, NothingIsOwedWhenAllHaveHeardOrClosed) {
  FileErrors e;
  EXPECT_FALSE(e.owes(2));
  e.add(EIO, kAt);
  EXPECT_TRUE(e.owes(0)) << "whoever opens it first";
  (void)e.tell(opener(1), kLater);
  EXPECT_TRUE(e.owes(2));
  (void)e.tell(opener(2), kLater);
  EXPECT_FALSE(e.owes(2));
  e.closed(1, true);
  EXPECT_FALSE(e.owes(1));
  EXPECT_FALSE(e.empty());
  e.closed(2, false);
  EXPECT_TRUE(e.empty());
}

}  // namespace
}  // namespace vremote::coherence
