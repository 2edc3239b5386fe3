// Names and directories through the mounts of several nodes.
#include <dirent.h>
#include <fcntl.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <set>
#include <thread>
#include <utility>

#include "posix_support.h"

namespace vremote::live {
namespace {

std::set<std::string> names_in(const std::string& path) {
  std::set<std::string> names;
  DIR* dir = ::opendir(path.c_str());
  if (dir == nullptr) {
    ADD_FAILURE() << path << ": " << strerror(errno);
    return names;
  }
  while (const dirent* entry = ::readdir(dir)) {
    const std::string name = entry->d_name;
    if (name == "." || name == "..") continue;
    EXPECT_TRUE(names.insert(name).second) << name << " is listed twice";
  }
  ::closedir(dir);
  return names;
}

// The wrapper in the C library is younger than some distributions.
int rename2(const std::string& from, const std::string& to, unsigned flags) {
  return static_cast<int>(
      ::syscall(SYS_renameat2, AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), flags));
}
constexpr unsigned kNoReplace = 1, kExchange = 2;

// A file that two nodes replace by rename() all the time is there for everybody, and whole: who has
// looked the name up gets a file, however often it has been replaced before the open.
TEST_F(PosixTest, AFileThatIsReplacedIsReadWhole) {
  constexpr size_t kLength = 20'000;
  ASSERT_EQ(0, put(a("f"), std::string(kLength, 'x')));
  std::atomic<int> writing = 2;
  std::atomic<uint64_t> opened = 0;
  std::vector<std::thread> threads;
  std::mutex mutex;
  std::string wrong;
  const auto went_wrong = [&](const std::string& path, int64_t n) {
    const int error = errno;
    std::lock_guard lock(mutex);
    wrong += path + ": " + std::to_string(n) + " " + strerror(error) + " after " +
             std::to_string(opened) + "\n";
  };
  for (const std::string& path : {a("f"), b("f"), b("f"), c("f")})
    threads.emplace_back([&, path] {
      std::vector<char> buffer(kLength);
      while (writing > 0) {
        struct stat st {};
        if (::stat(path.c_str(), &st) != 0) went_wrong(path + " stat", -1);
        const Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
        const ssize_t n = fd.valid() ? ::read(fd.get(), buffer.data(), buffer.size()) : -1;
        if (n != static_cast<ssize_t>(kLength)) went_wrong(path, n);
        ++opened;
      }
    });
  for (const auto& [fresh, path] : {std::pair{a("t1"), a("f")}, std::pair{b("t2"), b("f")}})
    threads.emplace_back([&, fresh, path] {
      for (int i = 0; i < 500; ++i) {
        EXPECT_EQ(0, put(fresh, std::string(kLength, static_cast<char>('a' + i % 26))));
        EXPECT_OK(::rename(fresh.c_str(), path.c_str()));
      }
      --writing;
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, "");
}

// Whoever has looked a name up may open it although it has lost its name since, as on a local disk,
// where the entry that was found holds the file.
TEST_F(PosixTest, AFileThatLosesItsNameBetweenLookupAndOpenIsOpened) {
  for (const std::string& remover : {a("f"), b("f")})
    for (const std::string& path : {a("f"), b("f"), c("f")}) {
      SCOPED_TRACE(path + ", removed as " + remover);
      ASSERT_EQ(0, put(a("f"), "content"));
      const Fd found = open_at(path, O_PATH);  // a lookup, and no open
      ASSERT_TRUE(found.valid());
      ASSERT_OK(::unlink(remover.c_str()));
      const std::string by_number = "/proc/self/fd/" + std::to_string(found.get());
      Fd fd = open_at(by_number, O_RDWR);
      ASSERT_TRUE(fd.valid()) << strerror(errno);
      EXPECT_EQ("content", read_at(fd, 0, 100));
      EXPECT_EQ(0, write_at(fd, 3, "ent and more"));
      Fd again = open_at(by_number, O_RDONLY);
      ASSERT_TRUE(again.valid()) << strerror(errno);
      EXPECT_EQ("conent and more", read_at(again, 0, 100));
      fd = Fd();
      EXPECT_EQ("conent and more", read_at(again, 0, 100));
      EXPECT_ERROR(ENOENT, ::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    }
}

// The kernel of the node that renames has the directory where it was, and somebody there uses it.
TEST_F(PosixTest, ADirectoryThatAnotherNodeHasMovedIsMovedOn) {
  int number = 0;
  for (const bool in_use : {false, true})
    for (const bool made_here : {false, true})
      for (const bool as_target : {false, true}) {
        const std::string n = std::to_string(number++);
        SCOPED_TRACE(n);
        for (const char* dir : {"x", "y", "z"}) ASSERT_OK(::mkdir(a(dir + n).c_str(), 0777));
        ASSERT_OK(::mkdir((made_here ? b("x" + n + "/d") : a("x" + n + "/d")).c_str(), 0777));
        if (!as_target) {
          ASSERT_OK(::mkdir(a("x" + n + "/d/sub").c_str(), 0777));
          ASSERT_EQ(0, put(a("x" + n + "/d/sub/f"), "content"));
        }
        ASSERT_OK(::access(b("x" + n + (as_target ? "/d" : "/d/sub/f")).c_str(), F_OK));
        const Fd held = in_use ? open_at(b("x" + n + "/d"), O_RDONLY | O_DIRECTORY) : Fd();
        const Fd below = in_use && !as_target ? open_at(b("x" + n + "/d/sub/f"), O_RDWR) : Fd();
        ASSERT_OK(::rename(a("x" + n + "/d").c_str(), a("y" + n + "/d").c_str()));
        if (as_target) {
          ASSERT_OK(::mkdir(b("z" + n + "/new").c_str(), 0777));
          ASSERT_OK(::rename(b("z" + n + "/new").c_str(), b("y" + n + "/d").c_str()));
          EXPECT_FALSE(exists(c("z" + n + "/new")));
          continue;
        }
        ASSERT_OK(::rename(b("y" + n + "/d").c_str(), b("z" + n + "/e").c_str()));
        EXPECT_EQ("content", read_all(b("z" + n + "/e/sub/f")));
        EXPECT_EQ("content", read_all(c("z" + n + "/e/sub/f")));
        EXPECT_FALSE(exists(b("x" + n + "/d")));
        EXPECT_FALSE(exists(b("y" + n + "/d")));
        if (!in_use) continue;
        EXPECT_EQ("content", read_at(below, 0, 100));
        const Fd sub(::openat(held.get(), "sub/f", O_RDONLY | O_CLOEXEC));
        EXPECT_EQ("content", read_at(sub, 0, 100));
        EXPECT_EQ(stat_of(c("z" + n)).st_ino, [&] {
          struct stat st {};
          return ::fstatat(held.get(), "..", &st, 0) == 0 ? st.st_ino : 0;
        }());
      }
}

TEST_F(PosixTest, RenameIsSeenAtOnceEverywhere) {
  ASSERT_EQ(0, put(a("old"), "content"));
  EXPECT_TRUE(exists(b("old")));
  EXPECT_FALSE(exists(b("new")));
  ASSERT_OK(::rename(c("old").c_str(), c("new").c_str()));
  for (const std::string& dir : {a(), b(), c()}) {
    EXPECT_FALSE(exists(dir + "/old"));
    EXPECT_EQ("content", read_all(dir + "/new"));
  }
}

TEST_F(PosixTest, RenameReplacesAndTheOldFileStaysUsableWhereItIsOpen) {
  ASSERT_EQ(0, put(a("f"), "the old one"));
  ASSERT_EQ(0, put(a("g"), "the new one"));
  Fd on_a = open_at(a("f"), O_RDONLY), on_b = open_at(b("f"), O_RDWR),
     on_c = open_at(c("f"), O_RDONLY);
  ASSERT_OK(::rename(b("g").c_str(), b("f").c_str()));
  EXPECT_EQ("the new one", read_all(a("f")));
  EXPECT_EQ("the new one", read_all(c("f")));
  EXPECT_EQ("the old one", read_at(on_a, 0, 100));
  EXPECT_EQ("the old one", read_at(on_c, 0, 100));
  EXPECT_EQ(0, write_at(on_b, 0, "THE"));
  EXPECT_EQ("THE old one", read_at(on_a, 0, 100));
  EXPECT_EQ("THE old one", read_at(on_c, 0, 100));
}

TEST_F(PosixTest, RenameFlagsAreHonoured) {
  ASSERT_EQ(0, put(a("x"), "X"));
  ASSERT_EQ(0, put(a("y"), "Y"));
  EXPECT_ERROR(EEXIST, rename2(b("x"), b("y"), kNoReplace));
  EXPECT_OK(rename2(b("x"), b("y"), kExchange));
  EXPECT_EQ("Y", read_all(c("x")));
  EXPECT_EQ("X", read_all(c("y")));
  EXPECT_OK(rename2(c("x"), c("z"), kNoReplace));
  EXPECT_EQ("Y", read_all(a("z")));
  EXPECT_ERROR(ENOENT, rename2(a("x"), a("y"), kExchange));
}

TEST_F(PosixTest, DirectoriesAreRenamedWithWhatIsInThem) {
  ASSERT_OK(::mkdir(a("d").c_str(), 0755));
  ASSERT_OK(::mkdir(a("e").c_str(), 0755));
  ASSERT_EQ(0, put(b("d/f"), "inside"));
  EXPECT_EQ("inside", read_all(c("d/f")));
  ASSERT_OK(::rename(c("d").c_str(), c("e/d").c_str()));
  EXPECT_EQ("inside", read_all(a("e/d/f")));
  EXPECT_EQ("inside", read_all(b("e/d/f")));
  EXPECT_FALSE(exists(b("d")));
  EXPECT_ERROR(EINVAL, ::rename(b("e").c_str(), b("e/d/e").c_str())) << "into itself";
  EXPECT_ERROR(ENOTEMPTY, ::rmdir(a("e").c_str()));
}

TEST_F(PosixTest, AnUnlinkedFileStaysUsableOnAllNodesThatHaveItOpen) {
  ASSERT_EQ(0, put(a("f"), "still here"));
  Fd on_a = open_at(a("f"), O_RDONLY), on_b = open_at(b("f"), O_RDWR),
     on_c = open_at(c("f"), O_RDONLY);
  ASSERT_OK(::unlink(c("f").c_str()));
  for (const std::string& dir : {a(), b(), c()}) {
    EXPECT_FALSE(exists(dir + "/f"));
    EXPECT_TRUE(names_in(dir).empty());
  }
  EXPECT_EQ("still here", read_at(on_a, 0, 100));
  ASSERT_EQ(0, write_at(on_b, 0, "STILL"));
  EXPECT_EQ("STILL here", read_at(on_c, 0, 100));
  EXPECT_EQ("STILL here", read_at(on_a, 0, 100));
  struct stat st {};
  ASSERT_OK(::fstat(on_c.get(), &st));
  EXPECT_EQ(0u, st.st_nlink);
  EXPECT_OK(::fsync(on_b.get()));
}

TEST_F(PosixTest, AMissingNameAppearsWhenAnotherNodeMakesIt) {
  for (int i = 0; i < 20; ++i) {
    const std::string name = "n" + std::to_string(i);
    ASSERT_FALSE(exists(a(name)));
    ASSERT_FALSE(exists(c(name)));
    ASSERT_EQ(0, put(b(name), name));
    ASSERT_EQ(name, read_all(a(name)));
    ASSERT_EQ(name, read_all(c(name)));
    ASSERT_OK(::unlink(c(name).c_str()));
    ASSERT_FALSE(exists(a(name)));
    ASSERT_FALSE(exists(b(name)));
  }
}

TEST_F(PosixTest, AListingGoesOnFromEachPlaceThatWasTold) {
  for (int i = 0; i < 5; ++i) ASSERT_EQ(0, put(a("f" + std::to_string(i)), ""));
  for (const std::string& path : {a(), b()}) {
    DIR* dir = ::opendir(path.c_str());
    ASSERT_NE(nullptr, dir);
    std::vector<long> places{::telldir(dir)};
    std::vector<std::string> names;
    while (const dirent* entry = ::readdir(dir)) {
      names.emplace_back(entry->d_name);
      places.push_back(::telldir(dir));
    }
    ASSERT_EQ(7u, names.size());
    for (size_t i = 0; i < names.size(); ++i) {
      ::seekdir(dir, places[i]);
      const dirent* entry = ::readdir(dir);
      ASSERT_NE(nullptr, entry) << i;
      EXPECT_EQ(names[i], entry->d_name) << i;
      EXPECT_EQ(places[i], ::lseek(::dirfd(dir), places[i], SEEK_SET)) << "of " << names[i];
    }
    ::closedir(dir);
  }
}

TEST_F(PosixTest, ListingsShowTheOtherNodesChanges) {
  for (int i = 0; i < 30; ++i)
    ASSERT_EQ(0, put((i % 2 == 0 ? a() : b()) + "/f" + std::to_string(i), ""));
  EXPECT_EQ(30u, names_in(c()).size());
  ASSERT_OK(::unlink(b("f7").c_str()));
  ASSERT_OK(::rename(a("f8").c_str(), a("g8").c_str()));
  for (const std::string& dir : {a(), b(), c()}) {
    const auto names = names_in(dir);
    EXPECT_EQ(29u, names.size());
    EXPECT_FALSE(names.contains("f7"));
    EXPECT_FALSE(names.contains("f8"));
    EXPECT_TRUE(names.contains("g8"));
  }
}

TEST_F(PosixTest, ARewoundListingIsFresh) {
  ASSERT_EQ(0, put(a("one"), ""));
  DIR* dir = ::opendir(b().c_str());
  ASSERT_NE(nullptr, dir);
  auto count = [&] {
    int n = 0;
    while (::readdir(dir) != nullptr) ++n;
    return n;
  };
  EXPECT_EQ(3, count());
  ASSERT_EQ(0, put(c("two"), ""));
  ::rewinddir(dir);
  EXPECT_EQ(4, count());
  ::closedir(dir);
}

// Made behind the mounts, before anybody looks: making them through the mount is another matter.
TEST_F(PosixTest, ABigDirectoryIsListedCompletelyAndOnce) {
  constexpr unsigned kNames = 20'000;
  ASSERT_OK(::mkdir(disk("big").c_str(), 0755));
  for (unsigned i = 0; i < kNames; ++i)
    ASSERT_EQ(0, put(disk("big/file-with-a-name-" + std::to_string(i)), ""));
  EXPECT_EQ(kNames, names_in(b("big")).size());
  EXPECT_EQ(kNames, names_in(a("big")).size());
  // Emptied while it is read, as `rm -r` does.
  DIR* dir = ::opendir(c("big").c_str());
  ASSERT_NE(nullptr, dir);
  unsigned removed = 0;
  while (const dirent* entry = ::readdir(dir)) {
    if (entry->d_name[0] == '.') continue;
    if (removed % 10 == 0) {
      EXPECT_OK(::unlink(c("big/" + std::string(entry->d_name)).c_str()));
    } else {
      EXPECT_OK(::unlink(
          disk("big/" + std::string(entry->d_name)).c_str()));  // faster, and behind its back
    }
    ++removed;
  }
  ::closedir(dir);
  EXPECT_EQ(kNames, removed);
}

TEST_F(PosixTest, NamesOfAllBytesAndLengthsWork) {
  std::string odd;
  for (int ch = 1; ch < 256; ++ch)
    if (ch != '/') odd += static_cast<char>(ch);
  odd += "/";
  odd.pop_back();
  for (const std::string& name : {std::string(255, 'n'), odd, std::string("\xff\xfe not UTF-8"),
                                  std::string("new\nline"), std::string(" "), std::string("...")}) {
    ASSERT_EQ(0, put(b(name), "odd")) << name.size();
    EXPECT_EQ("odd", read_all(a(name)));
    EXPECT_TRUE(names_in(c()).contains(name));
  }
  EXPECT_ERROR(ENAMETOOLONG, ::open(b(std::string(256, 'n')).c_str(), O_CREAT | O_WRONLY, 0644));
  EXPECT_ERROR(ENAMETOOLONG, ::mkdir(a(std::string(256, 'n')).c_str(), 0755));
}

TEST_F(PosixTest, HardLinksAreOneFile) {
  ASSERT_EQ(0, put(a("f"), "one"));
  ASSERT_OK(::link(b("f").c_str(), b("g").c_str()));
  EXPECT_EQ(2u, stat_of(c("f")).st_nlink);
  EXPECT_EQ(stat_of(c("f")).st_ino, stat_of(a("g")).st_ino);
  ASSERT_EQ(0, put(c("g"), "two"));
  EXPECT_EQ("two", read_all(a("f")));
  EXPECT_ERROR(EEXIST, ::link(a("f").c_str(), a("g").c_str()));
  ASSERT_OK(::unlink(c("f").c_str()));
  EXPECT_EQ(1u, stat_of(b("g")).st_nlink);
  EXPECT_EQ("two", read_all(b("g")));
}

TEST_F(PosixTest, SymbolicLinksAreReadAndFollowed) {
  ASSERT_EQ(0, put(a("f"), "target"));
  ASSERT_OK(::symlink("f", b("link").c_str()));
  ASSERT_OK(::symlink(std::string(4000, 's').c_str(), b("long").c_str()));
  std::string target(5000, '\0');
  EXPECT_EQ(1, ::readlink(c("link").c_str(), target.data(), target.size()));
  EXPECT_EQ(4000, ::readlink(a("long").c_str(), target.data(), target.size()));
  EXPECT_EQ("target", read_all(c("link")));
  EXPECT_EQ("target", read_all(a("link")));
  EXPECT_TRUE(S_ISLNK(stat_of(c("link")).st_mode));
  EXPECT_ERROR(ELOOP, ::open(c("link").c_str(), O_RDONLY | O_NOFOLLOW));
}

TEST_F(PosixTest, DirectoriesAreMadeAndRemoved) {
  ASSERT_OK(::mkdir(a("d").c_str(), 0750));
  EXPECT_EQ(0750u, stat_of(b("d")).st_mode & 07777);
  EXPECT_ERROR(EEXIST, ::mkdir(b("d").c_str(), 0755));
  EXPECT_EQ(2u, stat_of(c("d")).st_nlink);
  ASSERT_OK(::mkdir(b("d/e").c_str(), 0755));
  EXPECT_EQ(3u, stat_of(c("d")).st_nlink);
  EXPECT_ERROR(ENOTEMPTY, ::rmdir(c("d").c_str()));
  EXPECT_ERROR(ENOTDIR, ::rmdir((put(a("f"), ""), a("f")).c_str()));
  EXPECT_ERROR(EISDIR, ::unlink(a("d").c_str()));
  ASSERT_OK(::rmdir(a("d/e").c_str()));
  ASSERT_OK(::rmdir(c("d").c_str()));
  EXPECT_FALSE(exists(b("d")));
}

TEST_F(PosixTest, AFileHasOneNumberOnAllNodes) {
  ASSERT_EQ(0, put(b("f"), ""));
  ASSERT_OK(::mkdir(c("d").c_str(), 0755));
  for (const std::string name : {"f", "d"}) {
    const ino_t number = stat_of(a(name)).st_ino;
    EXPECT_EQ(number, stat_of(b(name)).st_ino);
    EXPECT_EQ(number, stat_of(c(name)).st_ino);
  }
  // And readdir tells the same.
  DIR* dir = ::opendir(c().c_str());
  ASSERT_NE(nullptr, dir);
  while (const dirent* entry = ::readdir(dir)) {
    if (entry->d_name[0] == '.') continue;
    EXPECT_EQ(stat_of(b(entry->d_name)).st_ino, entry->d_ino);
  }
  ::closedir(dir);
}

TEST_F(PosixTest, NamesDoNotMoveBetweenExports) {
  ASSERT_EQ(0, put(a("f"), ""));
  EXPECT_ERROR(EXDEV, ::rename(a("f").c_str(), cluster->path(0, 1, "f").c_str()));
  EXPECT_ERROR(EXDEV, ::link(a("f").c_str(), cluster->path(0, 1, "f").c_str()));
}

TEST_F(PosixTest, EveryNodesExportIsThereOnEveryNode) {
  for (size_t origin = 0; origin < 3; ++origin) {
    const std::string name = "on-" + std::to_string(origin);
    ASSERT_EQ(0, put(cluster->path((origin + 1) % 3, origin, name), name));
    for (size_t node = 0; node < 3; ++node)
      EXPECT_EQ(name, read_all(cluster->path(node, origin, name)));
    EXPECT_TRUE(exists(cluster->disk(origin, name)));
  }
}

TEST_F(PosixTest, TheFileSystemTellsItsRoom) {
  struct statvfs here {
  }, there{};
  ASSERT_OK(::statvfs(b().c_str(), &here));
  ASSERT_OK(::statvfs(disk().c_str(), &there));
  EXPECT_EQ(there.f_blocks * there.f_frsize, here.f_blocks * here.f_frsize);
  EXPECT_EQ(255u, here.f_namemax);
}

}  // namespace
}  // namespace vremote::live
