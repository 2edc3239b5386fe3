// Set-ID bits, groups, umask, times, security attributes and access control lists, as several nodes
// see them.
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#include "posix_support.h"

namespace vremote::live {
namespace {

constexpr unsigned kUser = 12345, kGroup = 54321;

// As a user with further groups.
int as_member(unsigned uid, unsigned gid, const std::vector<gid_t>& groups,
              const std::function<int()>& body) {
  const pid_t pid = in_child([&] {
    if (::setgroups(groups.size(), groups.data()) != 0 || ::setgid(gid) != 0 || ::setuid(uid) != 0)
      return 255;
    return body();
  });
  const int status = status_of(pid);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

unsigned mode_of(const std::string& path) { return stat_of(path).st_mode & 07777; }

TEST_F(PosixTest, ChangesByOthersThanRootTakeTheSetIdBitsAway) {
  const auto programs = [&](const std::string& name, unsigned mode) {
    ASSERT_EQ(0, put(a(name), pattern(9000)));
    ASSERT_OK(::chown(a(name).c_str(), kUser, kGroup));
    ASSERT_OK(::chmod(a(name).c_str(), mode));
  };
  const auto changed = [&](const std::string& name, const std::function<int()>& change) {
    EXPECT_EQ(0, as_member(kUser, kGroup, {777}, change)) << name;
    EXPECT_EQ(0755u, mode_of(c(name))) << name;
    EXPECT_EQ(0755u, mode_of(disk(name))) << name;
  };
  programs("truncated", 06755);
  changed("truncated", [&] { return error_of(::truncate(b("truncated").c_str(), 100)); });
  programs("emptied", 06755);
  changed("emptied", [&] { return open_at(b("emptied"), O_WRONLY | O_TRUNC).valid() ? 0 : errno; });
  programs("given", 06755);
  changed("given", [&] { return error_of(::chown(b("given").c_str(), -1u, 777)); });
  programs("allocated", 06755);
  changed("allocated", [&] {
    return error_of(::fallocate(open_at(b("allocated"), O_RDWR).get(), 0, 0, 20'000));
  });
  programs("not given", 06755);
  changed("not given", [&] { return error_of(::chown(b("not given").c_str(), -1u, -1u)); });
  programs("appended", 06755);
  changed("appended", [&] {
    Fd fd = open_at(b("appended"), O_WRONLY | O_APPEND);
    return ::write(fd.get(), "x", 1) == 1 ? 0 : errno;
  });
  // Without the group's execute bit set-group-ID means something else, and stays; but only the
  // group's members can leave it.
  programs("locking", 02666);
  EXPECT_EQ(0, as_user(kUser, kGroup, [&] { return put(b("locking"), "x"); }));
  EXPECT_EQ(02666u, mode_of(c("locking")));
  EXPECT_EQ(0, as_user(kUser, kGroup + 1,
                       [&] { return write_at(open_at(b("locking"), O_WRONLY), 0, "x"); }));
  EXPECT_EQ(0666u, mode_of(c("locking")));
  programs("cut", 02666);
  EXPECT_EQ(0, as_member(kUser + 1, kGroup + 1, {kGroup},
                         [&] { return error_of(::truncate(b("cut").c_str(), 100)); }));
  EXPECT_EQ(02666u, mode_of(c("cut")));
  // The owner gives it away from a group that is not theirs to one that is.
  programs("passed on", 02666);
  ASSERT_OK(::chown(a("passed on").c_str(), kUser, kGroup + 1));
  ASSERT_OK(::chmod(a("passed on").c_str(), 02666));
  EXPECT_EQ(0, as_member(kUser, kGroup, {777},
                         [&] { return error_of(::chown(b("passed on").c_str(), -1u, 777)); }));
  EXPECT_EQ(0666u, mode_of(c("passed on")));
  programs("kept", 02666);
  EXPECT_EQ(0, as_member(kUser, kGroup, {777},
                         [&] { return error_of(::chown(b("kept").c_str(), -1u, 777)); }));
  EXPECT_EQ(02666u, mode_of(c("kept")));
  // Root's writes leave them, root's chown does not.
  programs("roots", 06755);
  EXPECT_EQ(0, write_at(open_at(b("roots"), O_WRONLY), 0, "x"));
  EXPECT_EQ(06755u, mode_of(c("roots")));
  EXPECT_TRUE(open_at(b("roots"), O_WRONLY | O_TRUNC).valid());
  EXPECT_EQ(06755u, mode_of(c("roots")));
  EXPECT_TRUE(open_at(b("roots"), O_RDWR | O_CREAT | O_TRUNC, 0600).valid());
  EXPECT_EQ(06755u, mode_of(c("roots")));
  ASSERT_OK(::chown(b("roots").c_str(), 1, 1));
  EXPECT_EQ(0755u, mode_of(c("roots")));
  // Who is not of the file's group cannot set its bit.
  ASSERT_OK(::chown(a("given").c_str(), kUser, 888));
  EXPECT_EQ(0,
            as_user(kUser, kGroup, [&] { return error_of(::chmod(b("given").c_str(), 02755)); }));
  EXPECT_EQ(0755u, mode_of(c("given")));
}

TEST_F(PosixTest, FurtherGroupsOfTheCallerCount) {
  ASSERT_OK(::mkdir(a("team").c_str(), 0700));
  ASSERT_OK(::chown(a("team").c_str(), 0, 777));
  ASSERT_OK(::chmod(a("team").c_str(), 02770));
  for (const std::string& dir : {a("team"), b("team")}) {
    EXPECT_EQ(EACCES, as_user(kUser, kGroup, [&] { return put(dir + "/f", "x"); }));
    EXPECT_EQ(0, as_member(kUser, kGroup, {5, 777}, [&] { return put(dir + "/f", "x"); }));
    EXPECT_EQ(777u, stat_of(dir + "/f").st_gid);
    EXPECT_EQ(0, as_member(kUser, kGroup, {5, 777}, [&] {
                return error_of(::mkdir((dir + "/d").c_str(), 0777)) +
                       error_of(::chown((dir + "/f").c_str(), -1u, 5));
              }));
    EXPECT_EQ(02755u, mode_of(dir + "/d")) << "a directory inherits the bit";
    EXPECT_EQ(5u, stat_of(c("team/f")).st_gid);
    EXPECT_EQ(EPERM, as_member(kUser, kGroup, {5, 777},
                               [&] { return error_of(::chown((dir + "/f").c_str(), -1u, 6)); }));
    EXPECT_EQ(EPERM, as_member(kUser, kGroup, {5, 777},
                               [&] { return error_of(::chown((dir + "/f").c_str(), 0, -1u)); }));
    ASSERT_OK(::rmdir((dir + "/d").c_str()));
    ASSERT_OK(::unlink((dir + "/f").c_str()));
  }
}

TEST_F(PosixTest, TheUmaskIsTakenOffOnce) {
  const unsigned before = ::umask(027);
  Fd fd = open_at(b("f"), O_CREAT | O_WRONLY, 0666);
  EXPECT_OK(::mkdir(b("d").c_str(), 0777));
  EXPECT_OK(::mkfifo(b("p").c_str(), 0666));
  ::umask(0);
  Fd all = open_at(b("all"), O_CREAT | O_WRONLY, 0666);
  ::umask(before);
  EXPECT_EQ(0640u, mode_of(c("f")));
  EXPECT_EQ(0750u, mode_of(c("d")));
  EXPECT_EQ(0640u, mode_of(disk("p")));
  EXPECT_EQ(0666u, mode_of(a("all")));
}

TEST_F(PosixTest, TimesAreSetToNowOrLeftAlone) {
  ASSERT_EQ(0, put(a("f"), "x"));
  const std::array<timespec, 2> old{{{1'000'000'000, 1}, {1'000'000'000, 999'999'999}}};
  ASSERT_OK(::utimensat(AT_FDCWD, b("f").c_str(), old.data(), 0));
  EXPECT_EQ(1'000'000'000'999'999'999, mtime_ns(stat_of(c("f"))));
  const std::array<timespec, 2> access_now{{{0, UTIME_NOW}, {0, UTIME_OMIT}}};
  ASSERT_OK(::utimensat(AT_FDCWD, c("f").c_str(), access_now.data(), 0));
  struct stat st = stat_of(b("f"));
  EXPECT_GT(st.st_atim.tv_sec, 1'600'000'000);
  EXPECT_EQ(1'000'000'000'999'999'999, mtime_ns(st));
  EXPECT_GT(st.st_ctim.tv_sec, 1'600'000'000);
  ASSERT_OK(::utimensat(AT_FDCWD, a("f").c_str(), old.data(), 0));
  const std::array<timespec, 2> change_now{{{0, UTIME_OMIT}, {0, UTIME_NOW}}};
  ASSERT_OK(::utimensat(AT_FDCWD, b("f").c_str(), change_now.data(), 0));
  st = stat_of(c("f"));
  EXPECT_EQ(1'000'000'000, st.st_atim.tv_sec);
  EXPECT_EQ(1, st.st_atim.tv_nsec);
  EXPECT_GT(st.st_mtim.tv_sec, 1'600'000'000);
  // Before 1970 and after 2038, as far as the disk can.
  const std::array<timespec, 2> far{{{-86400, 5}, {5'000'000'000, 7}}};
  ASSERT_OK(::utimensat(AT_FDCWD, c("f").c_str(), far.data(), 0));
  ASSERT_OK(::utimensat(AT_FDCWD, disk("f").c_str(), far.data(), 0));
  EXPECT_EQ(stat_of(disk("f")).st_mtim.tv_sec, stat_of(b("f")).st_mtim.tv_sec);
  EXPECT_EQ(stat_of(disk("f")).st_atim.tv_sec, stat_of(b("f")).st_atim.tv_sec);
  // Who may write may say "now", and no other time.
  ASSERT_OK(::chmod(a("f").c_str(), 0666));
  EXPECT_EQ(0, as_user(kUser, kGroup, [&] {
              return error_of(::utimensat(AT_FDCWD, b("f").c_str(), nullptr, 0));
            }));
  EXPECT_EQ(EPERM, as_user(kUser, kGroup, [&] {
              return error_of(::utimensat(AT_FDCWD, b("f").c_str(), old.data(), 0));
            }));
  // A link's own times.
  ASSERT_OK(::symlink("f", b("link").c_str()));
  ASSERT_OK(::utimensat(AT_FDCWD, c("link").c_str(), old.data(), AT_SYMLINK_NOFOLLOW));
  EXPECT_EQ(1'000'000'000, stat_of(a("link")).st_mtim.tv_sec);
  EXPECT_NE(1'000'000'000, stat_of(a("f")).st_mtim.tv_sec);
}

// The kernel throws away what it is told of a mode when an invalidation crosses it (K19), and
// writes elsewhere make many of those.
TEST_F(PosixTest, AChangedModeIsJudgedByAtOnceWhileOthersWrite) {
  ASSERT_EQ(0, put(a("f"), "x"));
  Fd written = open_at(c("f"), O_RDWR);
  std::atomic<bool> done = false;
  std::thread writer([&] {
    while (!done) {
      if (::pwrite(written.get(), "y", 1, 0) != 1) ADD_FAILURE() << std::strerror(errno);
    }
  });
  int wrong = 0;
  for (int i = 0; i < 400; ++i) {
    const bool allowed = i % 2 == 0;
    ASSERT_OK(::chmod(a("f").c_str(), allowed ? 0666 : 0600));
    // Of this thread alone, and without root's capabilities over files.
    ::syscall(SYS_setfsuid, kUser);
    const Fd fd(::open(b("f").c_str(), O_RDONLY));
    ::syscall(SYS_setfsuid, 0);
    if (fd.valid() != allowed) ++wrong;
  }
  done = true;
  writer.join();
  EXPECT_EQ(0, wrong);
}

// By a descriptor a kernel judges by the owner that it has seen last; the origin by the one there
// is.
TEST_F(PosixTest, ADescriptorOfTheFormerOwnerChangesNothing) {
  ASSERT_EQ(0, put(a("f"), "x"));
  ASSERT_OK(::chmod(a("f").c_str(), 0644));
  ASSERT_OK(::chown(a("f").c_str(), kUser, kGroup));
  std::array<int, 2> has_opened{}, given_away{};
  ASSERT_OK(::pipe(has_opened.data()));
  ASSERT_OK(::pipe(given_away.data()));
  const pid_t former = in_child([&] {
    if (::setgroups(0, nullptr) != 0 || ::setgid(kGroup) != 0 || ::setuid(kUser) != 0) return 1;
    const Fd fd = open_at(b("f"), O_RDWR);
    struct stat st {};
    char byte = 0;
    const struct timespec times[2] = {{1, 2}, {3, 4}};
    if (::fchmod(fd.get(), 0600) != 0 || ::futimens(fd.get(), times) != 0) return 2;
    if (::fstat(fd.get(), &st) != 0 || st.st_uid != kUser) return 3;
    if (::write(has_opened[1], &byte, 1) != 1 || ::read(given_away[0], &byte, 1) != 1) return 4;
    if (error_of(::fchmod(fd.get(), 0777)) != EPERM) return 5;
    if (error_of(::futimens(fd.get(), times)) != EPERM) return 6;
    if (error_of(::fchown(fd.get(), -1, kGroup)) != EPERM) return 7;
    return 0;
  });
  char byte = 0;
  ASSERT_EQ(1, ::read(has_opened[0], &byte, 1));
  ASSERT_OK(::chown(a("f").c_str(), kUser + 1, kGroup));
  ASSERT_EQ(1, ::write(given_away[1], &byte, 1));
  EXPECT_EQ(0, WEXITSTATUS(status_of(former)));
  EXPECT_EQ(0600u, mode_of(c("f")));
  for (int fd : {has_opened[0], has_opened[1], given_away[0], given_away[1]}) ::close(fd);
}

// Others than root may have the capability.
TEST_F(PosixTest, WhoHasTheCapabilityActsAsTheOwner) {
  ASSERT_EQ(0, put(a("f"), "x"));
  const pid_t child = in_child([&] {
    // Of this thread alone: the number of a user, and all but the capabilities over files, of which
    // it takes one back.
    ::syscall(SYS_setfsuid, kUser);
    struct __user_cap_header_struct header {
      _LINUX_CAPABILITY_VERSION_3, 0
    };
    struct __user_cap_data_struct data[2] = {};
    if (::syscall(SYS_capget, &header, data) != 0) return 1;
    data[0].effective |= 1u << CAP_FOWNER;
    if (::syscall(SYS_capset, &header, data) != 0) return 2;
    if (error_of(::chmod(b("f").c_str(), 0640)) != 0) return 3;
    data[0].effective &= ~(1u << CAP_FOWNER | 1u << CAP_CHOWN);
    if (::syscall(SYS_capset, &header, data) != 0) return 4;
    return error_of(::chmod(b("f").c_str(), 0777)) == EPERM ? 0 : 5;
  });
  EXPECT_EQ(0, WEXITSTATUS(status_of(child)));
  EXPECT_EQ(0640u, mode_of(c("f")));
}

TEST_F(PosixTest, SecurityAttributesAreRootsAndOfAllNodes) {
  ASSERT_EQ(0, put(a("f"), ""));
  if (::setxattr(b("f").c_str(), "security.test", "secret", 6, 0) != 0 && errno == EOPNOTSUPP)
    GTEST_SKIP() << "the file system below has no security attributes";
  char value[100];
  EXPECT_EQ(6, ::getxattr(c("f").c_str(), "security.test", value, sizeof(value)));
  ASSERT_OK(::setxattr(c("f").c_str(), "trusted.test", "x", 1, 0));
  EXPECT_EQ(1, ::getxattr(b("f").c_str(), "trusted.test", value, sizeof(value)));
  for (const std::string& path : {a("f"), b("f")}) {
    EXPECT_EQ(EPERM, as_user(kUser, kGroup, [&] {
                return error_of(::setxattr(path.c_str(), "security.test", "mine", 4, 0));
              }));
    EXPECT_EQ(ENODATA, as_user(kUser, kGroup, [&] {
                char got[10];
                return error_of(::getxattr(path.c_str(), "trusted.test", got, sizeof(got)));
              }));
    EXPECT_EQ(EACCES,
              as_user(kUser, kGroup,
                      [&] { return error_of(::setxattr(path.c_str(), "user.test", "x", 1, 0)); }))
        << "who may not write the file may not write its attributes";
  }
}

// Or a changed program would keep what the unchanged one was trusted with.
TEST_F(PosixTest, AWriteTakesFileCapabilitiesAway) {
  ASSERT_EQ(0, put(a("program"), pattern(9000)));
  const uint32_t capability[5] = {0x02000001, 1u << 10, 0, 0, 0};  // cap_net_bind_service+ep
  char value[100];
  for (const std::string& writer : {b("program"), c("program")}) {
    if (::setxattr(a("program").c_str(), "security.capability", capability, sizeof(capability),
                   0) != 0)
      GTEST_SKIP() << "the file system below has no capabilities: " << std::strerror(errno);
    EXPECT_EQ(20, ::getxattr(b("program").c_str(), "security.capability", value, sizeof(value)));
    ASSERT_EQ(0, write_at(open_at(writer, O_WRONLY), 5000, "changed"));
    for (const std::string& path : {a("program"), b("program"), c("program")})
      EXPECT_ERROR(ENODATA, ::getxattr(path.c_str(), "security.capability", value, sizeof(value)));
  }
}

// An access control list as the kernel takes it: version, then tag, permissions and id of each
// entry.
struct AclEntry {
  uint16_t tag, permissions;
  uint32_t id;
};
constexpr uint16_t kAclOwner = 1, kAclUser = 2, kAclGroup = 4, kAclMask = 16, kAclOther = 32;
constexpr uint32_t kNoId = ~0u;

std::string acl(const std::vector<AclEntry>& entries) {
  const uint32_t version = 2;
  std::string bytes(reinterpret_cast<const char*>(&version), 4);
  bytes.append(reinterpret_cast<const char*>(entries.data()), entries.size() * sizeof(AclEntry));
  return bytes;
}

std::string xattr_of(const std::string& path, const char* name) {
  std::string value(1000, '\0');
  const ssize_t n = ::getxattr(path.c_str(), name, value.data(), value.size());
  if (n < 0) return std::string("no ") + std::strerror(errno);
  value.resize(static_cast<size_t>(n));
  return value;
}

TEST_F(PosixTest, AccessControlListsAreSharedAndShowInTheMode) {
  const std::string wanted = acl({{kAclOwner, 6, kNoId},
                                  {kAclUser, 6, kUser},
                                  {kAclGroup, 4, kNoId},
                                  {kAclMask, 6, kNoId},
                                  {kAclOther, 0, kNoId}});
  ASSERT_EQ(0, put(a("f"), ""));
  EXPECT_EQ(0644u, mode_of(c("f")));
  if (::setxattr(b("f").c_str(), "system.posix_acl_access", wanted.data(), wanted.size(), 0) != 0 &&
      errno == EOPNOTSUPP)
    GTEST_SKIP() << "the file system below has no access control lists";
  EXPECT_EQ(wanted, xattr_of(c("f"), "system.posix_acl_access"));
  EXPECT_EQ(wanted, xattr_of(disk("f"), "system.posix_acl_access"));
  EXPECT_EQ(0660u, mode_of(c("f"))) << "the group's bits are the mask";
  ASSERT_OK(::chmod(c("f").c_str(), 0640));
  EXPECT_EQ(xattr_of(disk("f"), "system.posix_acl_access"),
            xattr_of(b("f"), "system.posix_acl_access"))
      << "chmod changes the mask";
  ASSERT_OK(::removexattr(a("f").c_str(), "system.posix_acl_access"));
  stat_of(b("f"));  // the kernel keeps a list until it asks for the attributes
  EXPECT_EQ("no No data available", xattr_of(b("f"), "system.posix_acl_access"));
}

TEST_F(PosixTest, DefaultAccessControlListsAreInherited) {
  const std::string wanted = acl({{kAclOwner, 7, kNoId},
                                  {kAclUser, 7, kUser},
                                  {kAclGroup, 7, kNoId},
                                  {kAclMask, 7, kNoId},
                                  {kAclOther, 0, kNoId}});
  ASSERT_OK(::mkdir(a("d").c_str(), 0777));
  if (::setxattr(b("d").c_str(), "system.posix_acl_default", wanted.data(), wanted.size(), 0) !=
          0 &&
      errno == EOPNOTSUPP)
    GTEST_SKIP() << "the file system below has no access control lists";
  EXPECT_TRUE(open_at(c("d/f"), O_CREAT | O_WRONLY, 0666).valid());
  EXPECT_TRUE(open_at(disk("d/local"), O_CREAT | O_WRONLY, 0666).valid());
  EXPECT_OK(::mkdir(c("d/sub").c_str(), 0777));
  EXPECT_EQ(wanted, xattr_of(b("d/sub"), "system.posix_acl_default"));
  // The disk alone would leave the umask out where there is a list; here the kernel takes it off
  // before we are asked.
  EXPECT_EQ(0660u, mode_of(disk("d/local")));
  EXPECT_EQ(0640u, mode_of(a("d/f")));
  EXPECT_EQ(xattr_of(disk("d/f"), "system.posix_acl_access"),
            xattr_of(a("d/f"), "system.posix_acl_access"));
  EXPECT_EQ(wanted.size(), xattr_of(a("d/f"), "system.posix_acl_access").size());
}

}  // namespace
}  // namespace vremote::live
