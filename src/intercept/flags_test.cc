#include "intercept/flags.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include "vremote/fcntl.h"

namespace vremote::intercept {
namespace {

// Every flag a program may or to the others, one by one.
constexpr uint32_t kSingle[] = {
    O_CREAT,    O_EXCL,     O_NOCTTY,          O_TRUNC, O_APPEND,
    O_NONBLOCK, O_DSYNC,    O_SYNC & ~O_DSYNC, O_ASYNC, O_DIRECT,
    0100000,    O_NOATIME,  O_CLOEXEC,         O_PATH,  O_TMPFILE & ~O_DIRECTORY,
    O_NOFOLLOW, O_DIRECTORY};
constexpr size_t kSingles = std::size(kSingle);

uint32_t combination(uint32_t bits) {
  uint32_t flags = 0;
  for (size_t i = 0; i < kSingles; ++i)
    if (bits >> i & 1) flags |= kSingle[i];
  return flags;
}

TEST(FlagsTest, ValuesAreThoseOfThePublicHeader) {
  EXPECT_EQ(kRemoteFlag, static_cast<uint32_t>(O_REMOTE));
  EXPECT_EQ(kOriginFlag, static_cast<uint32_t>(O_ORIGIN));
  EXPECT_EQ(kDecimalOrigin, 0x989680u);
  EXPECT_EQ(kDecimalOrigin & (O_TRUNC | O_APPEND | O_EXCL | O_SYNC),
            static_cast<uint32_t>(O_TRUNC | O_APPEND | O_EXCL | O_SYNC));
}

TEST(FlagsTest, WithoutRemoteNothingIsTouched) {
  for (uint32_t bits = 0; bits < 1u << kSingles; ++bits)
    for (uint32_t extra : {0u, kOriginFlag, kDecimalOrigin}) {
      uint32_t flags = combination(bits) | extra | O_RDWR;
      OpenFlags f = interpret_flags(flags);
      ASSERT_FALSE(f.remote || f.origin || f.decimal) << flags;
      ASSERT_EQ(f.kernel, flags);
    }
}

TEST(FlagsTest, RemoteAndOriginAreRemovedAndTheRestStays) {
  for (uint32_t bits = 0; bits < 1u << kSingles; ++bits)
    for (uint32_t access : {O_RDONLY, O_WRONLY, O_RDWR, O_ACCMODE})
      for (uint32_t origin : {0u, kOriginFlag}) {
        uint32_t flags = combination(bits) | access;
        OpenFlags f = interpret_flags(flags | kRemoteFlag | origin);
        ASSERT_TRUE(f.remote);
        ASSERT_FALSE(f.decimal);  // 0x800000 is no flag, so no combination of flags is the literal
        ASSERT_EQ(f.origin, origin != 0);
        uint32_t want = flags & ~0100000u;
        if (flags & O_PATH) want &= O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
        ASSERT_EQ(f.kernel, want) << std::hex << flags;
      }
}

TEST(FlagsTest, DecimalLiteralMeansOriginAndNothingElse) {
  for (uint32_t bits = 0; bits < 1u << kSingles; ++bits)
    for (uint32_t access : {O_RDONLY, O_WRONLY, O_RDWR}) {
      uint32_t more = combination(bits) | access;
      OpenFlags f = interpret_flags(kDecimalOrigin | kRemoteFlag | more);
      ASSERT_TRUE(f.origin && f.decimal);
      ASSERT_EQ(f.kernel & (O_TRUNC | O_APPEND | O_EXCL | O_SYNC | O_CLOEXEC), 0u)
          << std::hex << more;
      ASSERT_EQ(f.kernel, interpret_flags((more & ~kDecimalOrigin) | kRemoteFlag).kernel);
    }
}

TEST(FlagsTest, AnyBitOfTheLiteralMissingMeansTheOrdinaryFlags) {
  for (int bit = 0; bit < 32; ++bit) {
    if (!(kDecimalOrigin >> bit & 1)) continue;
    uint32_t flags = (kDecimalOrigin & ~(1u << bit)) | kRemoteFlag | O_RDWR;
    OpenFlags f = interpret_flags(flags);
    EXPECT_FALSE(f.origin || f.decimal) << bit;
    EXPECT_EQ(f.kernel & O_TRUNC, bit == 9 ? 0u : O_TRUNC) << bit;
  }
}

TEST(FlagsTest, TheOriginalExampleOpensReadWriteOnly) {
  OpenFlags f = interpret_flags(O_RDWR | 00000020 | 10000000);
  EXPECT_EQ(f, (OpenFlags{true, true, true, O_RDWR}));
}

TEST(FlagsTest, BitsTheKernelDoesNotKnowAreDroppedAsOpenDoes) {
  EXPECT_EQ(interpret_flags(0xffffffff & ~kDecimalOrigin & ~O_PATH).kernel &
                (0xff000000 | 4 | kRemoteFlag | kOriginFlag),
            0u);
}

TEST(FlagsTest, ModeCountsOnlyWhenSomethingIsCreated) {
  EXPECT_EQ(interpret_mode(interpret_flags(kRemoteFlag | O_RDWR), 0644), 0u);
  EXPECT_EQ(interpret_mode(interpret_flags(kRemoteFlag | O_RDWR | O_CREAT), 0100644), 0644u);
  EXPECT_EQ(interpret_mode(interpret_flags(kRemoteFlag | O_RDWR | O_TMPFILE), 0600), 0600u);
  EXPECT_EQ(interpret_mode(interpret_flags(kRemoteFlag | O_PATH | O_CREAT), 0600), 0u);
  EXPECT_EQ(interpret_mode(interpret_flags(kRemoteFlag | O_DIRECTORY), 0600), 0u);
}

TEST(FlagsTest, TheLastLinkIsFollowedUnlessToldOtherwise) {
  EXPECT_TRUE(interpret_flags(kRemoteFlag | O_CREAT).follows_last());
  EXPECT_TRUE(interpret_flags(kRemoteFlag | O_EXCL).follows_last());
  EXPECT_FALSE(interpret_flags(kRemoteFlag | O_CREAT | O_EXCL).follows_last());
  EXPECT_FALSE(interpret_flags(kRemoteFlag | O_NOFOLLOW).follows_last());
}

}  // namespace
}  // namespace vremote::intercept
