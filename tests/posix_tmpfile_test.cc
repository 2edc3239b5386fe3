// Files without a name (O_TMPFILE, linkat), from every node. They need Linux 6.2.
#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <set>
#include <thread>

#include "posix_support.h"

namespace vremote::live {
namespace {

class TmpFileTest : public PosixTest {
 protected:
  void SetUp() override {
    PosixTest::SetUp();
    utsname name{};
    ::uname(&name);
    int major = 0, minor = 0;
    if (std::sscanf(name.release, "%d.%d", &major, &minor) != 2 || major < 6 ||
        (major == 6 && minor < 2))
      GTEST_SKIP() << "this kernel asks FUSE for no files without a name (Linux 6.2)";
  }
};

std::set<std::string> names_in(const std::string& dir) {
  std::set<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(dir))
    names.insert(entry.path().filename());
  return names;
}

int link_by_number(const Fd& fd, const std::string& name) {
  return ::linkat(AT_FDCWD, ("/proc/self/fd/" + std::to_string(fd.get())).c_str(), AT_FDCWD,
                  name.c_str(), AT_SYMLINK_FOLLOW);
}

TEST_F(TmpFileTest, AFileWithoutANameIsAFileLikeOthers) {
  for (const std::string& dir : {a(), b()}) {
    SCOPED_TRACE(dir);
    const Fd fd = open_at(dir, O_TMPFILE | O_RDWR, 0640);
    ASSERT_TRUE(fd.valid()) << strerror(errno);
    struct stat st {};
    ASSERT_OK(::fstat(fd.get(), &st));
    EXPECT_EQ(0u, st.st_nlink);
    EXPECT_EQ(S_IFREG | 0640u, st.st_mode);
    EXPECT_EQ(0, st.st_size);
    const std::string text = pattern(300'000);
    EXPECT_EQ(0, write_at(fd, 0, text));
    EXPECT_EQ(text, read_at(fd, 0, text.size() + 1));
    for (const std::string& everywhere : {a(), b(), c()}) EXPECT_TRUE(names_in(everywhere).empty());
    EXPECT_OK(::fsync(fd.get()));
    EXPECT_OK(::fchmod(fd.get(), 0600));
    EXPECT_OK(::ftruncate(fd.get(), 250'000));
    EXPECT_OK(::flock(fd.get(), LOCK_EX | LOCK_NB));
    EXPECT_OK(::fsetxattr(fd.get(), "user.x", "y", 1, 0));
    void* at = ::mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
    if (at != MAP_FAILED) {  // Linux 6.16
      EXPECT_EQ(0, std::memcmp(at, text.data(), 8192));
      static_cast<char*>(at)[1] = '#';
      EXPECT_EQ("#", read_at(fd, 1, 1));
      ::munmap(at, 8192);
    }
    // By its number, as any open file.
    const Fd again = open_at("/proc/self/fd/" + std::to_string(fd.get()), O_RDONLY);
    ASSERT_TRUE(again.valid()) << strerror(errno);
    EXPECT_EQ(text.substr(100'000, 150'000), read_at(again, 100'000, 200'000));
    ASSERT_OK(::fstat(again.get(), &st));
    EXPECT_EQ(0u, st.st_nlink);
    EXPECT_EQ(S_IFREG | 0600u, st.st_mode);
    EXPECT_EQ(250'000, st.st_size);
  }
}

TEST_F(TmpFileTest, ItBecomesANameThatEveryNodeSees) {
  int number = 0;
  for (const std::string& dir : {a(), b()})
    for (const bool by_descriptor : {false, true}) {
      const std::string name = "f" + std::to_string(number++);
      SCOPED_TRACE(dir + " " + name);
      EXPECT_FALSE(exists(a(name)));
      EXPECT_FALSE(exists(c(name)));
      Fd fd = open_at(dir, O_TMPFILE | O_WRONLY, 0644);
      ASSERT_TRUE(fd.valid()) << strerror(errno);
      EXPECT_EQ(0, write_at(fd, 0, "made in silence"));
      ASSERT_OK(by_descriptor
                    ? ::linkat(fd.get(), "", AT_FDCWD, (dir + "/" + name).c_str(), AT_EMPTY_PATH)
                    : link_by_number(fd, dir + "/" + name));
      for (const std::string& path : {a(name), b(name), c(name)}) {
        EXPECT_EQ("made in silence", read_all(path));
        EXPECT_EQ(1u, stat_of(path).st_nlink);
        EXPECT_EQ(1u, names_in(std::filesystem::path(path).parent_path()).count(name));
      }
      struct stat st {};
      ASSERT_OK(::fstat(fd.get(), &st));
      EXPECT_EQ(1u, st.st_nlink);
      EXPECT_EQ(st.st_ino, stat_of(c(name)).st_ino);
      EXPECT_EQ(0, write_at(fd, 5, "by hand!!!"));
      fd = Fd();
      EXPECT_EQ("made by hand!!!", read_all(c(name)));
      // Names that are there are not replaced.
      const Fd other = open_at(dir, O_TMPFILE | O_WRONLY, 0644);
      EXPECT_ERROR(EEXIST, link_by_number(other, dir + "/" + name));
      EXPECT_OK(link_by_number(other, dir + "/" + name + "x"));
      EXPECT_OK(link_by_number(other, dir + "/" + name + "y"));
      EXPECT_EQ(2u, stat_of(c(name + "y")).st_nlink);
      // What had names and lost them gets none again, whoever took them.
      ASSERT_OK(::unlink(c(name + "x").c_str()));
      ASSERT_OK(::unlink(b(name + "y").c_str()));
      EXPECT_ERROR(ENOENT, link_by_number(other, dir + "/" + name + "x"));
    }
}

TEST_F(TmpFileTest, WithExclNobodyCanNameIt) {
  for (const std::string& dir : {a(), b()}) {
    const Fd fd = open_at(dir, O_TMPFILE | O_EXCL | O_RDWR, 0644);
    ASSERT_TRUE(fd.valid()) << strerror(errno);
    EXPECT_ERROR(ENOENT, link_by_number(fd, dir + "/f"));
    EXPECT_ERROR(ENOENT, ::linkat(fd.get(), "", AT_FDCWD, (dir + "/f").c_str(), AT_EMPTY_PATH));
    EXPECT_FALSE(exists(c("f")));
    EXPECT_EQ(0, write_at(fd, 0, "x"));
    EXPECT_EQ("x", read_at(fd, 0, 2));
  }
}

TEST_F(TmpFileTest, OwnerModeAndInheritanceAreThoseOfAFileThatIsMadeThere) {
  constexpr unsigned kUser = 12345, kGroup = 54321, kDirGroup = 777;
  ASSERT_OK(::mkdir(a("d").c_str(), 0777));
  ASSERT_OK(::chown(a("d").c_str(), 0, kDirGroup));
  ASSERT_OK(::chmod(a("d").c_str(), 02777));
  for (const std::string& dir : {a("d"), b("d")}) {
    EXPECT_EQ(0, as_user(kUser, kGroup,
                         [&] {
                           ::umask(026);
                           const Fd fd = open_at(dir, O_TMPFILE | O_RDWR, 0666);
                           struct stat st {};
                           if (!fd.valid() || ::fstat(fd.get(), &st) != 0) return errno;
                           if (st.st_uid != kUser || st.st_gid != kDirGroup) return 201;
                           if ((st.st_mode & 07777) != 0640) return 202;
                           return link_by_number(fd, dir + "/f") == 0 ? 0 : errno;
                         }))
        << dir;
    EXPECT_EQ(kUser, stat_of(c("d/f")).st_uid);
    EXPECT_EQ(0640u, stat_of(c("d/f")).st_mode & 07777u);
    ASSERT_OK(::unlink(c("d/f").c_str()));
    // A mode that forbids its maker everything does not count for what is open already.
    EXPECT_EQ(0, as_user(kUser, kGroup,
                         [&] {
                           const Fd fd = open_at(dir, O_TMPFILE | O_RDWR, 0);
                           if (!fd.valid()) return errno;
                           const int wrote = write_at(fd, 0, "x");
                           return wrote != 0 ? wrote : read_at(fd, 0, 2) == "x" ? 0 : 203;
                         }))
        << dir;
  }
  // Nobody who may not make a file there.
  ASSERT_OK(::chmod(a("d").c_str(), 0755));
  EXPECT_EQ(EACCES, as_user(kUser, kGroup, [&] {
              return error_of(::open(b("d").c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
            }));
}

// user::rwx, user:1000:rwx, group::r-x, mask::rwx, other::---
std::string default_list() {
  struct Entry {
    uint16_t tag, permissions;
    uint32_t id;
  };
  const Entry entries[] = {
      {0x01, 7, ~0u}, {0x02, 7, 1000}, {0x04, 5, ~0u}, {0x10, 7, ~0u}, {0x20, 0, ~0u}};
  std::string list("\2\0\0\0", 4);
  list.append(reinterpret_cast<const char*>(entries), sizeof entries);
  return list;
}

TEST_F(TmpFileTest, ADefaultAccessControlListIsInherited) {
  const std::string list = default_list();
  if (::setxattr(a().c_str(), "system.posix_acl_default", list.data(), list.size(), 0) != 0)
    GTEST_SKIP() << "no access control lists here: " << strerror(errno);
  for (const std::string& dir : {a(), b()}) {
    const Fd fd = open_at(dir, O_TMPFILE | O_RDWR, 0666);
    ASSERT_TRUE(fd.valid()) << strerror(errno);
    char value[256];
    EXPECT_GT(::fgetxattr(fd.get(), "system.posix_acl_access", value, sizeof value), 0);
    const Fd named = open_at(dir + "/f", O_CREAT | O_EXCL | O_RDWR, 0666);
    struct stat here {
    }, there{};
    ASSERT_OK(::fstat(fd.get(), &here));
    ASSERT_OK(::fstat(named.get(), &there));
    EXPECT_EQ(there.st_mode, here.st_mode);
    ASSERT_OK(::unlink((dir + "/f").c_str()));
  }
}

TEST_F(TmpFileTest, WhatCannotBeIsRefusedAsOnALocalDisk) {
  ASSERT_EQ(0, put(a("f"), ""));
  EXPECT_ERROR(EINVAL, ::open(b().c_str(), O_TMPFILE | O_RDONLY | O_CLOEXEC, 0600));
  EXPECT_ERROR(ENOTDIR, ::open(b("f").c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  EXPECT_ERROR(ENOENT, ::open(b("none").c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
}

// Descriptors of the origin's daemon for files of this size that have no name.
size_t held_by_origin(off_t size) {
  size_t held = 0;
  std::error_code none;
  for (const auto& process : std::filesystem::directory_iterator("/proc", none)) {
    std::error_code hidden;
    if (std::filesystem::read_symlink(process.path() / "exe", hidden).filename() != "vremote")
      continue;
    for (const auto& fd : std::filesystem::directory_iterator(process.path() / "fd", hidden)) {
      struct stat st {};
      if (::stat(fd.path().c_str(), &st) == 0 && S_ISREG(st.st_mode) && st.st_nlink == 0 &&
          st.st_size == size)
        ++held;
    }
  }
  return held;
}

TEST_F(TmpFileTest, ItIsGoneWithItsLastClose) {
  constexpr off_t kSize = 1'234'567;  // of no other file
  std::vector<Fd> files;
  for (const std::string& dir : {a(), b(), c()}) {
    files.push_back(open_at(dir, O_TMPFILE | O_RDWR, 0600));
    ASSERT_TRUE(files.back().valid()) << strerror(errno);
    ASSERT_OK(::ftruncate(files.back().get(), kSize));
  }
  // And of one who is killed.
  int ends[2];
  ASSERT_OK(::pipe2(ends, O_CLOEXEC));
  const Fd ready(ends[0]);
  Fd told(ends[1]);
  const pid_t child = in_child([&] {
    const Fd fd = open_at(b(), O_TMPFILE | O_RDWR, 0600);
    if (!fd.valid() || ::ftruncate(fd.get(), kSize) != 0) return 1;
    (void)!::write(told.get(), "x", 1);
    ::pause();
    return 0;
  });
  told = Fd();
  char byte = 0;
  ASSERT_EQ(1, ::read(ready.get(), &byte, 1));
  EXPECT_GE(held_by_origin(kSize), 4u);
  ::kill(child, SIGKILL);
  status_of(child);
  files.clear();
  size_t left = 1;
  for (int i = 0; i < 600 && left > 0; ++i) {
    if (i > 0) ::usleep(100'000);
    left = held_by_origin(kSize);
  }
  EXPECT_EQ(0u, left);
}

TEST_F(TmpFileTest, ManyAreMadeAndNamedAtOnce) {
  std::vector<std::thread> threads;
  for (size_t t = 0; t < 3; ++t)
    threads.emplace_back([&, t] {
      const std::string dir = t == 0 ? a() : t == 1 ? b() : c();
      for (int i = 0; i < 60; ++i) {
        const Fd fd = open_at(dir, O_TMPFILE | O_WRONLY, 0644);
        ASSERT_TRUE(fd.valid()) << strerror(errno);
        EXPECT_EQ(0, write_at(fd, 0, dir));
        // One of the three wins.
        const int error = error_of(link_by_number(fd, dir + "/f" + std::to_string(i)));
        EXPECT_TRUE(error == 0 || error == EEXIST) << strerror(error);
        EXPECT_OK(link_by_number(fd, dir + "/own" + std::to_string(t) + "." + std::to_string(i)));
      }
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(60u * 4, names_in(c()).size());
  size_t links = 0;
  for (const std::string& name : names_in(a())) {
    EXPECT_EQ(read_all(a(name)), read_all(b(name)));
    links += stat_of(b(name)).st_nlink;
  }
  EXPECT_EQ(60u * 2 * 2 + 60u * 2, links);
}

}  // namespace
}  // namespace vremote::live
