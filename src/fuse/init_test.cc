#include "fuse/init.h"

#include <gtest/gtest.h>

#include <cerrno>

namespace vremote::fuse {
namespace {

// A kernel that offers everything, as 6.18 does and more.
Init everything() {
  return {.major = 7, .minor = 45, .max_readahead = 131072, .flags = ~uint64_t{0}};
}

uint64_t chosen(const Negotiation& n) { return n.reply.flags | uint64_t{n.reply.flags2} << 32; }

TEST(InitTest, TakesExactlyTheFlagsOfTheDesign) {
  const auto n = negotiate(everything(), {});
  ASSERT_TRUE(n);
  EXPECT_EQ(chosen(*n), FUSE_ASYNC_READ | FUSE_BIG_WRITES | FUSE_MAX_PAGES | FUSE_PARALLEL_DIROPS |
                            FUSE_DO_READDIRPLUS | FUSE_READDIRPLUS_AUTO | FUSE_EXPLICIT_INVAL_DATA |
                            FUSE_INIT_EXT | kInitDirectIoAllowMmap | FUSE_ATOMIC_O_TRUNC |
                            FUSE_POSIX_LOCKS | FUSE_FLOCK_LOCKS | FUSE_HANDLE_KILLPRIV_V2 |
                            kInitHasResend | kInitHasExpireOnly | FUSE_ABORT_ERROR |
                            FUSE_POSIX_ACL);
  EXPECT_TRUE(n->lacks.empty());
  EXPECT_FALSE(n->again);
}

TEST(InitTest, LimitsLeaveRoomForWriteBacksAndWholeReadaheads) {
  const auto n = negotiate(everything(), {});
  ASSERT_TRUE(n);
  EXPECT_EQ(n->reply.major, 7u);
  EXPECT_EQ(n->reply.minor, 45u);
  EXPECT_EQ(n->reply.max_background, 65535);
  EXPECT_EQ(n->reply.congestion_threshold, 65535);
  EXPECT_EQ(n->reply.max_pages, 256);
  EXPECT_EQ(n->reply.max_write, 1u << 20);
  EXPECT_EQ(n->reply.max_readahead, 1u << 20);
  EXPECT_EQ(n->capabilities.max_read_ahead, 1u << 20);
}

TEST(InitTest, ALowerPageLimitLowersWritesAndReadaheadWithIt) {
  InitOptions options;
  options.max_pages_limit = 32;
  const auto n = negotiate(everything(), options);
  ASSERT_TRUE(n);
  EXPECT_EQ(n->reply.max_pages, 32);
  EXPECT_EQ(n->reply.max_write, 32u * 4096);
  EXPECT_EQ(n->capabilities.max_read_ahead, 32u * 4096);
  EXPECT_EQ(n->lacks.size(), 1u);
  options.max_pages_limit = 65535;
  EXPECT_EQ(negotiate(everything(), options)->reply.max_pages, 256);
}

TEST(InitTest, MmapOfDirectHandlesOnlyWhenAllowed) {
  const auto n = negotiate(everything(), {.allow_mmap = false});
  ASSERT_TRUE(n);
  EXPECT_EQ(chosen(*n) & kInitDirectIoAllowMmap, 0u);
  EXPECT_FALSE(n->capabilities.direct_io_allow_mmap);
  ASSERT_EQ(n->lacks.size(), 1u);
  EXPECT_NE(n->lacks[0].find("6.16"), std::string::npos);
}

TEST(InitTest, NeverAsksForWhatWasNotOffered) {
  Init old = everything();
  old.minor = 34;  // Linux 5.15
  old.flags = 0x3fff'ffff;
  const auto n = negotiate(old, {});
  ASSERT_TRUE(n);
  EXPECT_EQ(chosen(*n) & ~old.flags, 0u);
  EXPECT_EQ(n->reply.minor, 34u);
  EXPECT_EQ(n->reply.flags2, 0u);
  const Capabilities& can = n->capabilities;
  EXPECT_FALSE(can.resend || can.expire_only || can.inc_epoch || can.direct_io_allow_mmap);
  EXPECT_TRUE(can.handle_killpriv_v2);
  EXPECT_EQ(n->lacks.size(), 4u);  // mmap, resend, expire, epoch
}

TEST(InitTest, TheHighFlagsNeedInitExt) {
  Init odd = everything();
  odd.flags &= ~uint64_t{FUSE_INIT_EXT};
  const auto n = negotiate(odd, {});
  ASSERT_TRUE(n);
  EXPECT_EQ(n->reply.flags2, 0u);
  EXPECT_FALSE(n->capabilities.resend);
}

TEST(InitTest, ANewerMajorIsAskedToTryAgain) {
  Init future = everything();
  future.major = 8;
  future.minor = 0;
  const auto n = negotiate(future, {});
  ASSERT_TRUE(n);
  EXPECT_TRUE(n->again);
  EXPECT_EQ(n->reply.major, 7u);
}

TEST(InitTest, AKernelThatCannotBeCoherentIsRefused) {
  Init old = everything();
  old.minor = 30;
  EXPECT_EQ(negotiate(old, {}).error().code, EPROTO);
  Init piecemeal = everything();
  piecemeal.flags &= ~uint64_t{FUSE_ASYNC_READ};
  EXPECT_EQ(negotiate(piecemeal, {}).error().code, EPROTO);
  Init ancient = everything();
  ancient.major = 6;
  EXPECT_EQ(negotiate(ancient, {}).error().code, EPROTO);
}

TEST(InitTest, NewerMinorsAreAnsweredWithOurs) {
  Init newer = everything();
  newer.minor = 99;
  EXPECT_EQ(negotiate(newer, {})->reply.minor, kProtocolMinor);
}

}  // namespace
}  // namespace vremote::fuse
