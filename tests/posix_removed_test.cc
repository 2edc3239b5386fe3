// What is left of directories and files that have lost their last name, for those who still refer
// to them without having them open for their content.
#include <dirent.h>
#include <fcntl.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <functional>
#include <set>
#include <utility>

#include "posix_support.h"

namespace vremote::live {
namespace {

// All of them, from the beginning.
std::set<std::string> names_of(const Fd& fd) {
  std::set<std::string> names;
  DIR* dir = ::fdopendir(::fcntl(fd.get(), F_DUPFD_CLOEXEC, 0));
  if (dir == nullptr) return {strerror(errno)};
  ::rewinddir(dir);
  while (const dirent* entry = ::readdir(dir)) names.insert(entry->d_name);
  ::closedir(dir);
  names.erase(".");
  names.erase("..");
  return names;
}

// As on a local disk, whoever removes it: the node itself, or another.
TEST_F(PosixTest, ARemovedDirectoryIsEmptyAndHasNoLinks) {
  using Path = std::function<std::string(const std::string&)>;
  const Path on_a = [&](const std::string& name) { return a(name); };
  const Path on_b = [&](const std::string& name) { return b(name); };
  int number = 0;
  for (const auto& [holder, remover] : {std::pair{on_a, on_b}, std::pair{on_b, on_a},
                                        std::pair{on_a, on_a}, std::pair{on_b, on_b}}) {
    const std::string name = "d" + std::to_string(number++);
    SCOPED_TRACE(holder(name) + ", removed as " + remover(name));
    ASSERT_OK(::mkdir(holder(name).c_str(), 0750));
    ASSERT_OK(::chmod(holder(name).c_str(), 01751));
    ASSERT_EQ(0, put(holder(name + "/f"), ""));
    const Fd dir = open_at(holder(name), O_RDONLY | O_DIRECTORY);
    const Fd path = open_at(holder(name), O_PATH);
    const struct stat before = stat_of(holder(name));
    ASSERT_OK(::unlink(remover(name + "/f").c_str()));
    ASSERT_OK(::rmdir(remover(name).c_str()));
    for (const Fd* fd : {&dir, &path}) {
      struct stat st {};
      ASSERT_OK(::fstat(fd->get(), &st));
      EXPECT_EQ(0u, st.st_nlink);
      EXPECT_EQ(before.st_mode, st.st_mode);
      EXPECT_EQ(before.st_ino, st.st_ino);
      EXPECT_ERROR(ENOENT, ::openat(fd->get(), "f", O_RDONLY));
      EXPECT_ERROR(ENOENT, ::openat(fd->get(), "g", O_WRONLY | O_CREAT, 0600));
      EXPECT_ERROR(ENOENT, ::mkdirat(fd->get(), "g", 0700));
      EXPECT_ERROR(ENOENT, ::symlinkat("to", fd->get(), "g"));
      EXPECT_ERROR(ENOENT, ::unlinkat(fd->get(), "f", 0));
      EXPECT_ERROR(ENOENT, ::faccessat(fd->get(), "f", R_OK, 0));
      struct statvfs room {};
      EXPECT_OK(::fstatvfs(fd->get(), &room));
    }
    ASSERT_EQ(0, put(holder("other"), ""));
    EXPECT_ERROR(ENOENT, ::renameat(AT_FDCWD, holder("other").c_str(), dir.get(), "other"));
    EXPECT_ERROR(ENOENT, ::linkat(AT_FDCWD, holder("other").c_str(), dir.get(), "other", 0));
    EXPECT_OK(::fsync(dir.get()));
    EXPECT_TRUE(names_of(dir).empty());
    // A working directory.
    const pid_t child = in_child([&] {
      if (::fchdir(dir.get()) != 0) return 1;
      struct stat st {};
      if (::stat(".", &st) != 0 || st.st_nlink != 0) return 2;
      if (error_of(::open("f", O_WRONLY | O_CREAT | O_CLOEXEC, 0600)) != ENOENT) return 3;
      const Fd again = open_at(".", O_RDONLY | O_DIRECTORY);
      if (!again.valid() || !names_of(again).empty()) return 4;
      if (::chdir("..") != 0 || ::access("other", R_OK) != 0) return 5;
      return 0;
    });
    EXPECT_EQ(0, WEXITSTATUS(status_of(child)));
  }
}

TEST_F(PosixTest, ARemovedFileOpenForItsPathOnlyTellsItsLastAttributes) {
  int number = 0;
  for (const bool replaced : {false, true})
    for (const bool on_a : {false, true}) {
      const std::string name = "f" + std::to_string(number++);
      ASSERT_EQ(0, put(a(name), "content"));
      ASSERT_OK(::chmod(b(name).c_str(), 0640));
      const Fd at_a = open_at(a(name), O_PATH), at_b = open_at(b(name), O_PATH);
      if (replaced) {
        ASSERT_EQ(0, put(a("new"), "new"));
        ASSERT_OK(on_a ? ::rename(a("new").c_str(), a(name).c_str())
                       : ::rename(b("new").c_str(), b(name).c_str()));
      } else {
        ASSERT_OK(::unlink(on_a ? a(name).c_str() : b(name).c_str()));
      }
      for (const Fd* fd : {&at_a, &at_b}) {
        struct stat st {};
        ASSERT_OK(::fstat(fd->get(), &st)) << number;
        EXPECT_EQ(0u, st.st_nlink);
        EXPECT_EQ(7, st.st_size);
        EXPECT_EQ(0640u, st.st_mode & 07777u);
      }
    }
}

}  // namespace
}  // namespace vremote::live
