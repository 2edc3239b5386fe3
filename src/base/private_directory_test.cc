#include "base/private_directory.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <thread>

namespace vremote {
namespace {

namespace fs = std::filesystem;

constexpr uid_t kStranger = 12345;

class PrivateDirectoryTest : public ::testing::Test {
 protected:
  PrivateDirectoryTest() {
    char path[] = "/tmp/vremote-private-XXXXXX";
    EXPECT_NE(::mkdtemp(path), nullptr);
    root_ = path;
  }
  ~PrivateDirectoryTest() override { fs::remove_all(root_); }

  static mode_t mode_of(const fs::path& path) {
    struct stat st {};
    EXPECT_EQ(::stat(path.c_str(), &st), 0);
    return st.st_mode & 07777;
  }
  static int make(const fs::path& path) {
    const Status made = make_private_directory(path);
    return made ? 0 : made.error().code;
  }
  static int check(const fs::path& path) {
    const Status fit = check_private_directory(path);
    return fit ? 0 : fit.error().code;
  }
  static void give_away(const fs::path& path) {
    ASSERT_EQ(::lchown(path.c_str(), kStranger, kStranger), 0);
  }

  fs::path root_;
};

TEST_F(PrivateDirectoryTest, IsMadeWithItsParents) {
  EXPECT_EQ(check(root_ / "a/b/c"), 0);
  EXPECT_EQ(make(root_ / "a/b/c/"), 0);
  EXPECT_EQ(mode_of(root_ / "a/b/c"), 0700u);
  EXPECT_EQ(make(root_ / "a/b/c"), 0) << "again";
}

TEST_F(PrivateDirectoryTest, OthersCannotWriteToTheParentsThatAreMade) {
  for (const mode_t umask : {0, 002, 077}) {
    const mode_t before = ::umask(umask);
    const fs::path made = root_ / fmt::format("of{}", umask);
    EXPECT_EQ(make(made / "b/c"), 0);
    ::umask(before);
    EXPECT_EQ(mode_of(made), 0711u);
    EXPECT_EQ(mode_of(made / "b"), 0711u);
    EXPECT_EQ(check(made / "b"), 0) << "the next time";
  }
}

TEST_F(PrivateDirectoryTest, OneOfOursIsTakenAndClosed) {
  fs::create_directory(root_ / "a");
  ASSERT_EQ(::chmod((root_ / "a").c_str(), 0777), 0);
  EXPECT_EQ(check(root_ / "a"), EPERM);
  EXPECT_EQ(make(root_ / "a"), 0);
  EXPECT_EQ(mode_of(root_ / "a"), 0700u);
  EXPECT_EQ(check(root_ / "a"), 0);
  fs::create_directory_symlink(root_ / "a", root_ / "link");
  EXPECT_EQ(check(root_ / "link"), 0) << "of our own";
  EXPECT_EQ(make(root_ / "link"), 0);
}

TEST_F(PrivateDirectoryTest, WhatIsNoDirectoryIsRefused) {
  ASSERT_EQ(::symlink("nowhere", (root_ / "broken").c_str()), 0);
  EXPECT_NE(make(root_ / "broken"), 0);
  EXPECT_EQ(check("/dev/null"), ENOTDIR);
  EXPECT_EQ(make("/dev/null"), ENOTDIR);
}

class StrangersDirectoryTest : public PrivateDirectoryTest {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root, to make files of other users";
    fs::create_directory(root_ / "victim");
    ASSERT_EQ(::chmod((root_ / "victim").c_str(), 0755), 0);
  }
};

TEST_F(StrangersDirectoryTest, IsRefused) {
  give_away(root_ / "victim");
  EXPECT_EQ(check(root_ / "victim"), EPERM);
  EXPECT_EQ(make(root_ / "victim"), EPERM);
  EXPECT_EQ(check(root_ / "victim/in/it"), EPERM);
  EXPECT_EQ(make(root_ / "victim/in/it"), EPERM);
  EXPECT_EQ(mode_of(root_ / "victim"), 0755u);
  EXPECT_FALSE(fs::exists(root_ / "victim/in"));
}

TEST_F(StrangersDirectoryTest, NorAreItsFilesOursWhenOnlyTheDirectoryIs) {
  const auto check_files = [&](const char* name) {
    const Status fit = check_private_files(root_ / name);
    return fit ? 0 : fit.error().code;
  };
  EXPECT_EQ(check_files("nowhere"), 0);
  EXPECT_EQ(check_files("victim"), 0);
  fs::create_directory_symlink("/", root_ / "victim/link");
  EXPECT_EQ(check_files("victim"), 0);
  give_away(root_ / "victim/link");
  EXPECT_EQ(check_files("victim"), EPERM);
}

TEST_F(StrangersDirectoryTest, AStrangersLinkIsNotFollowed) {
  fs::create_directory_symlink(root_ / "victim", root_ / "link");
  give_away(root_ / "link");
  EXPECT_EQ(check(root_ / "link"), EPERM);
  EXPECT_EQ(make(root_ / "link"), EPERM);
  EXPECT_EQ(mode_of(root_ / "victim"), 0755u);
}

// Its owner may have changed it for a link since it was looked at.
TEST_F(StrangersDirectoryTest, NorIsALinkThatComesInItsPlace) {
  const fs::path place = root_ / "place", link = root_ / "link";
  ASSERT_EQ(::chmod(root_.c_str(), 01777), 0);
  fs::create_directory(place);
  give_away(place);
  fs::create_directory_symlink(root_ / "victim", link);
  give_away(link);
  std::atomic<bool> over = false;
  std::thread stranger([&] {
    while (!over)
      (void)::renameat2(AT_FDCWD, place.c_str(), AT_FDCWD, link.c_str(), RENAME_EXCHANGE);
  });
  int taken = 0;
  for (int i = 0; i < 20'000 && taken == 0; ++i) taken += make(place) == 0;
  over = true;
  stranger.join();
  EXPECT_EQ(taken, 0);
  EXPECT_EQ(mode_of(root_ / "victim"), 0755u);
}

TEST_F(StrangersDirectoryTest, NorIsOneThatEverybodyCouldPutThere) {
  ASSERT_EQ(::chmod((root_ / "victim").c_str(), 0777), 0);
  EXPECT_EQ(check(root_ / "victim/state"), EPERM);
  EXPECT_EQ(make(root_ / "victim/state"), EPERM);
  ASSERT_EQ(::chmod((root_ / "victim").c_str(), 01777), 0);
  EXPECT_EQ(check(root_ / "victim/state"), 0) << "as in /tmp";
  EXPECT_EQ(make(root_ / "victim/state"), 0);
}

}  // namespace
}  // namespace vremote
