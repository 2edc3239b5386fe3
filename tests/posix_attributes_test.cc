// Modes, owners, times and extended attributes through the mounts of several nodes.
#include <fcntl.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <array>
#include <optional>

#include "posix_support.h"

namespace vremote::live {
namespace {

constexpr unsigned kUser = 12345, kGroup = 54321;

int open_error(const std::string& path, int flags) {
  return error_of(::open(path.c_str(), flags | O_CLOEXEC, 0644));
}

TEST_F(PosixTest, ModeAndOwnerChangesAreSeenAtOnce) {
  ASSERT_EQ(0, put(a("f"), ""));
  EXPECT_EQ(0644u, stat_of(b("f")).st_mode & 07777);
  ASSERT_OK(::chmod(c("f").c_str(), 0600));
  EXPECT_EQ(0600u, stat_of(b("f")).st_mode & 07777);
  ASSERT_OK(::chown(b("f").c_str(), kUser, kGroup));
  EXPECT_EQ(kUser, stat_of(c("f")).st_uid);
  EXPECT_EQ(kGroup, stat_of(a("f")).st_gid);
  Fd fd = open_at(a("f"), O_RDWR);
  ASSERT_OK(::fchmod(fd.get(), 0640));
  EXPECT_EQ(0640u, stat_of(c("f")).st_mode & 07777);
}

TEST_F(PosixTest, TimesThatWereSetStay) {
  Fd fd = open_at(b("f"), O_WRONLY | O_CREAT);
  ASSERT_EQ(0, write_at(fd, 0, pattern(100000)));
  // As `cp -p` does: the data may not be at the origin yet.
  const std::array<timespec, 2> times{{{1'000'000'000, 123'456'789}, {1'234'567'890, 987'654'321}}};
  ASSERT_OK(::futimens(fd.get(), times.data()));
  fd.reset();
  auto expect = [&](const std::string& path) {
    const struct stat st = stat_of(path);
    EXPECT_EQ(times[0].tv_sec, st.st_atim.tv_sec) << path;
    EXPECT_EQ(times[1].tv_sec, st.st_mtim.tv_sec) << path;
    EXPECT_EQ(times[1].tv_nsec, st.st_mtim.tv_nsec) << path;
  };
  for (const std::string& path : {a("f"), b("f"), c("f")}) expect(path);
  Fd again = open_at(c("f"), O_RDWR);
  ASSERT_OK(::fsync(again.get()));
  Fd at_b = open_at(b("f"), O_RDWR);
  ASSERT_OK(::fsync(at_b.get()));
  for (const std::string& path : {a("f"), b("f"), c("f"), disk("f")}) expect(path);
  ASSERT_EQ(0, write_at(again, 0, "x"));
  EXPECT_GT(stat_of(a("f")).st_mtim.tv_sec, times[1].tv_sec) << "a later write counts again";
}

// A file with bytes and without blocks is one without data to programs that look for holes (tar
// -S).
TEST_F(PosixTest, WhatHasBytesHasBlocks) {
  for (const size_t size : {size_t{6}, size_t{5000}, size_t{100'000}, size_t{6'000'000}}) {
    for (const bool first_on_origin : {true, false}) {
      const std::string name = std::to_string(size) + (first_on_origin ? "a" : "b");
      Fd fd = open_at(first_on_origin ? a(name) : b(name), O_RDWR | O_CREAT);
      ASSERT_EQ(0, write_at(fd, 0, pattern(size)));
      for (const std::string& path : {a(name), b(name), c(name)})
        EXPECT_LT(0, stat_of(path).st_blocks) << path;
      ASSERT_OK(::fsync(fd.get()));
      EXPECT_EQ(stat_of(disk(name)).st_blocks,
                stat_of(first_on_origin ? a(name) : b(name)).st_blocks)
          << "what was written is not guessed at any more";
      if (size > 1'000'000) continue;  // of that, only a part was sent when the others looked
      for (const std::string& path : {a(name), b(name), c(name)})
        EXPECT_LE(size / 512, static_cast<uint64_t>(stat_of(path).st_blocks)) << path;
    }
  }
  Fd sparse = open_at(b("sparse"), O_RDWR | O_CREAT);
  ASSERT_OK(::ftruncate(sparse.get(), 1 << 30));
  EXPECT_GT(100, stat_of(b("sparse")).st_blocks);
  EXPECT_GT(100, stat_of(c("sparse")).st_blocks);
}

TEST_F(PosixTest, PermissionsHoldForOtherUsers) {
  ASSERT_EQ(0, put(a("secret"), "root's"));
  ASSERT_OK(::chmod(a("secret").c_str(), 0600));
  ASSERT_EQ(0, put(a("open"), "everybody's"));
  ASSERT_OK(::mkdir(a("closed").c_str(), 0700));
  ASSERT_EQ(0, put(a("closed/f"), ""));
  for (const std::string& dir : {a(), b()}) {
    EXPECT_EQ(0, as_user(kUser, kGroup,
                         [&] { return read_all(dir + "/open") == "everybody's" ? 0 : 1; }));
    EXPECT_EQ(EACCES,
              as_user(kUser, kGroup, [&] { return open_error(dir + "/secret", O_RDONLY); }));
    EXPECT_EQ(EACCES, as_user(kUser, kGroup, [&] { return open_error(dir + "/open", O_WRONLY); }));
    EXPECT_EQ(EACCES,
              as_user(kUser, kGroup, [&] { return open_error(dir + "/closed/f", O_RDONLY); }));
    EXPECT_EQ(EPERM, as_user(kUser, kGroup,
                             [&] { return error_of(::chmod((dir + "/open").c_str(), 0777)); }));
  }
  ASSERT_OK(::chmod(c("secret").c_str(), 0644));
  EXPECT_EQ(0, as_user(kUser, kGroup, [&] { return open_error(b("secret"), O_RDONLY); }))
      << "as soon as it is allowed";
  ASSERT_OK(::chmod(b("secret").c_str(), 0600));
  EXPECT_EQ(EACCES, as_user(kUser, kGroup, [&] { return open_error(c("secret"), O_RDONLY); }))
      << "as soon as it is not";
}

TEST_F(PosixTest, NewFilesBelongToTheirMaker) {
  EXPECT_EQ(0, as_user(kUser, kGroup, [&] { return put(b("mine"), "x"); }));
  EXPECT_EQ(kUser, stat_of(a("mine")).st_uid);
  EXPECT_EQ(kGroup, stat_of(c("mine")).st_gid);
  EXPECT_EQ(kUser, stat_of(disk("mine")).st_uid);
  ASSERT_OK(::mkdir(a("team").c_str(), 0777));
  ASSERT_OK(::chown(a("team").c_str(), 0, 777));
  ASSERT_OK(::chmod(a("team").c_str(), 02777));
  EXPECT_EQ(0, as_user(kUser, kGroup, [&] { return put(b("team/f"), "x"); }));
  EXPECT_EQ(777u, stat_of(c("team/f")).st_gid) << "a set-group-ID directory gives its group";
}

TEST_F(PosixTest, TheStickyBitGuardsOthersFiles) {
  ASSERT_OK(::mkdir(a("tmp").c_str(), 0777));
  ASSERT_OK(::chmod(a("tmp").c_str(), 01777));
  ASSERT_EQ(0, put(a("tmp/roots"), ""));
  EXPECT_EQ(EPERM,
            as_user(kUser, kGroup, [&] { return error_of(::unlink(b("tmp/roots").c_str())); }));
  EXPECT_EQ(0, as_user(kUser, kGroup, [&] { return put(b("tmp/mine"), ""); }));
  EXPECT_EQ(0, as_user(kUser, kGroup, [&] { return error_of(::unlink(c("tmp/mine").c_str())); }));
}

TEST_F(PosixTest, WritingTakesTheSetUidBitAway) {
  for (const std::string& path : {a("on-origin"), b("elsewhere")}) {
    ASSERT_EQ(0, put(path, "program"));
    ASSERT_OK(::chmod(path.c_str(), 06777));
    EXPECT_EQ(06777u, stat_of(path).st_mode & 07777);
    EXPECT_EQ(0, as_user(kUser, kGroup, [&] {
                Fd fd = open_at(path, O_WRONLY);
                return fd.valid() ? write_at(fd, 0, "X") : errno;
              }));
    EXPECT_EQ(0777u, stat_of(path).st_mode & 07777);
    EXPECT_EQ("Xrogram", read_all(path));
  }
}

TEST_F(PosixTest, ExtendedAttributesAreSharedBetweenNodes) {
  ASSERT_EQ(0, put(a("f"), ""));
  const std::string value = pattern(3000);
  if (::setxattr(b("f").c_str(), "user.one", value.data(), value.size(), 0) != 0 &&
      errno == EOPNOTSUPP)
    GTEST_SKIP() << "the file system below has no user attributes";
  std::string got(4000, '\0');
  EXPECT_EQ(3000, ::getxattr(c("f").c_str(), "user.one", nullptr, 0));
  EXPECT_EQ(3000, ::getxattr(c("f").c_str(), "user.one", got.data(), got.size()));
  EXPECT_EQ(value, got.substr(0, 3000));
  EXPECT_ERROR(ERANGE, ::getxattr(c("f").c_str(), "user.one", got.data(), 10));
  EXPECT_ERROR(ENODATA, ::getxattr(a("f").c_str(), "user.two", got.data(), got.size()));
  EXPECT_ERROR(EEXIST, ::setxattr(a("f").c_str(), "user.one", "x", 1, XATTR_CREATE));
  EXPECT_ERROR(ENODATA, ::setxattr(a("f").c_str(), "user.two", "x", 1, XATTR_REPLACE));
  ASSERT_OK(::setxattr(a("f").c_str(), "user.two", "2", 1, XATTR_CREATE));
  EXPECT_EQ(18, ::listxattr(b("f").c_str(), got.data(), got.size()));
  ASSERT_OK(::removexattr(c("f").c_str(), "user.one"));
  EXPECT_ERROR(ENODATA, ::getxattr(b("f").c_str(), "user.one", got.data(), got.size()));
  EXPECT_EQ(1, ::getxattr(b("f").c_str(), "user.two", got.data(), got.size()));
}

// As setfacl(1) writes it: version 2, then (tag, permissions, id) of each entry
// (linux/posix_acl_xattr.h).
std::string access_list(std::optional<uint32_t> denied_user) {
  std::string acl("\2\0\0\0", 4);
  const auto add = [&](uint16_t tag, uint16_t permissions, uint32_t id) {
    for (int i = 0; i < 2; ++i) acl += static_cast<char>(tag >> 8 * i);
    for (int i = 0; i < 2; ++i) acl += static_cast<char>(permissions >> 8 * i);
    for (int i = 0; i < 4; ++i) acl += static_cast<char>(id >> 8 * i);
  };
  add(0x01, 6, ~0u);                            // user::rw-
  if (denied_user) add(0x02, 0, *denied_user);  // user:ID:---
  add(0x04, 4, ~0u);                            // group::r--
  add(0x10, 4, ~0u);                            // mask::r--
  add(0x20, 0, ~0u);                            // other::---
  return acl;
}

TEST_F(PosixTest, AccessControlListsAreObeyedOnEveryNode) {
  constexpr unsigned kDenied = kUser, kOther = 12346;
  ASSERT_EQ(0, put(a("f"), "secret"));
  ASSERT_OK(::chown(a("f").c_str(), 0, kGroup));
  ASSERT_OK(::chmod(a("f").c_str(), 0640));
  const auto opens = [&](const std::string& path, unsigned user) {
    return as_user(user, kGroup, [&] { return open_at(path, O_RDONLY).valid() ? 0 : errno; });
  };
  for (const std::string& path : {a("f"), b("f"), c("f")}) EXPECT_EQ(0, opens(path, kDenied));
  const std::string with = access_list(kDenied), without = access_list(std::nullopt);
  if (::setxattr(b("f").c_str(), "system.posix_acl_access", with.data(), with.size(), 0) != 0 &&
      errno == EOPNOTSUPP)
    GTEST_SKIP() << "the file system below has no access control lists";
  for (const std::string& path : {a("f"), b("f"), c("f")}) {
    EXPECT_EQ(EACCES, opens(path, kDenied)) << path;
    EXPECT_EQ(0, opens(path, kOther)) << path;
  }
  ASSERT_OK(
      ::setxattr(a("f").c_str(), "system.posix_acl_access", without.data(), without.size(), 0));
  for (const std::string& path : {a("f"), b("f"), c("f")})
    EXPECT_EQ(0, opens(path, kDenied)) << path << ": the list of before is remembered";
}

TEST_F(PosixTest, SpecialFilesAreLocalKindsWithSharedNames) {
  ASSERT_OK(::mkfifo(b("fifo").c_str(), 0644));
  EXPECT_TRUE(S_ISFIFO(stat_of(c("fifo")).st_mode));
  ASSERT_OK(::unlink(a("fifo").c_str()));
  EXPECT_FALSE(exists(b("fifo")));
}

}  // namespace
}  // namespace vremote::live
