// Names: every operation on them, and what must not be a name.
#include <dirent.h>
#include <sys/sysmacros.h>

#include "store/test_support.h"

namespace vremote::store::test {
namespace {

using namespace coherence;

class NamesTest : public StoreTest {
 protected:
  struct stat seen(const std::string& name) {
    struct stat st {};
    EXPECT_EQ(::lstat((dir / name).c_str(), &st), 0) << name;
    return st;
  }
  bool exists(const std::string& name) {
    return ::faccessat(AT_FDCWD, (dir / name).c_str(), F_OK, AT_SYMLINK_NOFOLLOW) == 0;
  }
};
INSTANTIATE_TEST_SUITE_P(, NamesTest, testing::Bool(), how);

TEST_P(NamesTest, LookupFindsWhatIsThere) {
  ASSERT_EQ(::mkdir((dir / "d").c_str(), 0750), 0);
  auto found = lookup("d");
  ASSERT_TRUE(found);
  EXPECT_EQ(found->attributes.mode, mode_t{S_IFDIR | 0750});
  EXPECT_EQ(found->attributes.inode, found->file.inode);
  EXPECT_EQ(code(lookup("e")), ENOENT);
  FileId file = make("f");
  EXPECT_EQ(code(run(LookupCall{file, "x"})), ENOTDIR);
}

TEST_P(NamesTest, OnlySingleComponentsAreNames) {
  ASSERT_EQ(::mkdir((dir / "d").c_str(), 0755), 0);
  make("f");
  FileId root = store->root(), f = lookup("f")->file;
  struct Bad {
    std::string name;
    int code;
  } bad[] = {{"", ENOENT},
             {".", EINVAL},
             {"..", EINVAL},
             {"d/x", EINVAL},
             {"/etc", EINVAL},
             {"d/..", EINVAL},
             {"/", EINVAL},
             {std::string("f\0", 2), EINVAL},
             {std::string(256, 'x'), ENAMETOOLONG}};
  for (auto& [name, expected] : bad) {
    EXPECT_EQ(code(run(LookupCall{root, name})), expected) << name;
    EXPECT_EQ(code(run(CreateCall{root, name, S_IFREG | 0644, 0, false})), expected) << name;
    EXPECT_EQ(code(run(CreateCall{root, name, S_IFDIR | 0755, 0, true})), expected) << name;
    EXPECT_EQ(code(run(SymlinkCall{root, name, "t"})), expected) << name;
    EXPECT_EQ(code(run(LinkCall{f, root, name})), expected) << name;
    EXPECT_EQ(code(run(RemoveCall{root, name, false})), expected) << name;
    EXPECT_EQ(code(run(RemoveCall{root, name, true})), expected) << name;
    EXPECT_EQ(code(run(RenameCall{root, "f", root, name, 0})), expected) << name;
    EXPECT_EQ(code(run(RenameCall{root, name, root, "g", 0})), expected) << name;
  }
  EXPECT_TRUE(exists("f"));
}

TEST_P(NamesTest, NamesAreAnyBytes) {
  std::string all;
  for (int c = 1; c < 256; ++c)
    if (c != '/') all.push_back(static_cast<char>(c));
  for (const std::string& name : {all, std::string(255, 'n'), std::string("\xff\xfe"),
                                  std::string("..."), std::string(" \n")}) {
    FileId file = make(name, "x");
    EXPECT_EQ(lookup(name)->file, file);
    EXPECT_TRUE(exists(name));
    ASSERT_EQ(remove(name), 0);
    EXPECT_FALSE(exists(name));
  }
}

TEST_P(NamesTest, SymbolicLinksAreNotFollowed) {
  TempDir outside;
  ASSERT_EQ(::mkdir((outside / "d").c_str(), 0755), 0);
  ASSERT_EQ(::symlink((outside / "d").c_str(), (dir / "way").c_str()), 0);
  auto link = lookup("way");
  ASSERT_TRUE(link);
  EXPECT_EQ(link->attributes.mode & S_IFMT, mode_t{S_IFLNK});
  EXPECT_EQ(code(run(LookupCall{link->file, "x"})), ENOTDIR);
  EXPECT_EQ(code(run(CreateCall{link->file, "x", S_IFREG | 0644, 0, true})), ENOTDIR);
  EXPECT_EQ(code(run(ReadDirectoryCall{link->file, 0, 0})), ENOTDIR);
  EXPECT_EQ(code(store->read(link->file, 0, 1)), EINVAL);
  EXPECT_EQ(code(store->pin(link->file)), 0);
  EXPECT_EQ(put(link->file, 0, "x"), EINVAL);
  // A dangling link is not a way to make its target.
  ASSERT_EQ(::symlink((outside / "made").c_str(), (dir / "dangling").c_str()), 0);
  EXPECT_EQ(create("dangling", S_IFREG | 0644, false)->attributes.mode & S_IFMT, mode_t{S_IFLNK});
  EXPECT_NE(::access((outside / "made").c_str(), F_OK), 0);
}

TEST_P(NamesTest, ADirectoryReplacedByALinkDoesNotLeadOut) {
  FileId d = create("d", S_IFDIR | 0755)->file;
  ASSERT_EQ(::rename((dir / "d").c_str(), (dir / "moved").c_str()), 0);
  ASSERT_EQ(::symlink("/", (dir / "d").c_str()), 0);
  ASSERT_TRUE(node(CreateCall{d, "x", S_IFREG | 0644, 0, true}));
  EXPECT_TRUE(exists("moved/x"));
}

TEST_P(NamesTest, CreateMakesEveryType) {
  struct Kind {
    const char* name;
    uint32_t mode, rdev;
  } kinds[] = {{"file", S_IFREG | 0640, 0},
               {"bare", 0600, 0},
               {"dir", S_IFDIR | 01777, 0},
               {"fifo", S_IFIFO | 0622, 0},
               {"sock", S_IFSOCK | 0777, 0},
               {"suid", S_IFREG | 06755, 0},
               {"char", S_IFCHR | 0666, static_cast<uint32_t>(makedev(1, 3))}};
  for (auto& [name, mode, rdev] : kinds) {
    auto made = node(CreateCall{store->root(), name, mode, rdev, true});
    if (!made && S_ISCHR(mode) && made.error().code == EPERM) continue;  // no CAP_MKNOD
    ASSERT_TRUE(made) << name << std::strerror(code(made));
    uint32_t expected = (mode & S_IFMT) != 0 ? mode : mode | S_IFREG;
    EXPECT_EQ(made->attributes.mode, expected) << name;  // no umask
    EXPECT_EQ(made->attributes.rdev, rdev);
    EXPECT_EQ(lookup(name)->file, made->file);
  }
  EXPECT_EQ(code(create("odd", S_IFLNK | 0777)), EINVAL);
  EXPECT_EQ(code(create("odd", 0150000 | 0777)), EINVAL);
}

TEST_P(NamesTest, ADeviceIsNeverOpened) {
  auto made = node(CreateCall{store->root(), "null", S_IFCHR | 0666,
                              static_cast<uint32_t>(makedev(1, 3)), true});
  auto fifo = create("fifo", S_IFIFO | 0666);  // opening one would block
  for (auto* special : {&made, &fifo}) {
    if (!*special) continue;
    EXPECT_EQ(code(store->read((*special)->file, 0, 1)), EINVAL);
    EXPECT_EQ(put((*special)->file, 0, "x"), EINVAL);
    EXPECT_EQ(code(run(SyncCall{(*special)->file, false})), EINVAL);
  }
}

TEST_P(NamesTest, ExclusiveCreateFailsWhereOthersFindTheFile) {
  FileId a = make("a", "content");
  EXPECT_EQ(code(create("a")), EEXIST);
  auto again = create("a", S_IFREG | 0600, false);
  ASSERT_TRUE(again);
  EXPECT_EQ(again->file, a);
  EXPECT_EQ(again->attributes.mode, mode_t{S_IFREG | 0644});
  EXPECT_EQ(content(a), "content");
  EXPECT_EQ(code(create("a", S_IFDIR | 0755)), EEXIST);
}

TEST_P(NamesTest, NewFilesBelongToTheCaller) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root";
  ASSERT_EQ(::chmod(dir.path().c_str(), 0777), 0);
  caller = {.uid = 1001, .gid = 1002, .groups = {1003}};
  EXPECT_EQ(create("f")->attributes.uid, 1001u);
  EXPECT_EQ(lookup("f")->attributes.gid, 1002u);
  EXPECT_EQ(create("d", S_IFDIR | 0755)->attributes.uid, 1001u);
  EXPECT_EQ(create("p", S_IFIFO | 0644)->attributes.gid, 1002u);
  EXPECT_EQ(node(SymlinkCall{store->root(), "l", "t"})->attributes.uid, 1001u);
  CreateCall device{store->root(), "null", S_IFCHR | 0666, static_cast<uint32_t>(makedev(1, 3)),
                    true};
  EXPECT_EQ(code(run(device)), EPERM);
  // A set-group-ID directory gives its group, and directories in it the bit too.
  ASSERT_EQ(::mkdir((dir / "g").c_str(), 0), 0);
  ASSERT_EQ(::chown((dir / "g").c_str(), 0, 1003), 0);
  ASSERT_EQ(::chmod((dir / "g").c_str(), 02770), 0);
  FileId g = lookup("g")->file;
  EXPECT_EQ(node(CreateCall{g, "f", S_IFREG | 0644, 0, true})->attributes.gid, 1003u);
  EXPECT_EQ(node(CreateCall{g, "d", S_IFDIR | 0755, 0, true})->attributes.mode,
            mode_t{S_IFDIR | 02755});
  caller.groups.clear();  // no longer a member: may not write there
  EXPECT_EQ(code(run(CreateCall{g, "x", S_IFREG | 0644, 0, true})), EACCES);
  caller = {};
  EXPECT_EQ(create("mine")->attributes.uid, 0u);  // the thread is itself again
}

TEST_P(NamesTest, SymlinksAreMadeAndRead) {
  std::string target(4095, 't');
  for (const std::string& t : {std::string("../../etc/passwd"), target, std::string("\xff x")}) {
    auto made = node(SymlinkCall{store->root(), "l", t});
    ASSERT_TRUE(made) << std::strerror(code(made));
    EXPECT_EQ(made->attributes.size, t.size());
    auto read = run(ReadLinkCall{made->file});
    ASSERT_TRUE(read);
    EXPECT_EQ(text(std::get<Text>(*read).bytes), t);
    ASSERT_EQ(remove("l"), 0);
  }
  EXPECT_EQ(code(run(SymlinkCall{store->root(), "l", target + "t"})), ENAMETOOLONG);
  EXPECT_EQ(code(run(SymlinkCall{store->root(), "l", std::string("a\0b", 3)})), EINVAL);
  EXPECT_EQ(code(run(SymlinkCall{store->root(), "l", ""})), ENOENT);
  EXPECT_EQ(code(run(ReadLinkCall{store->root()})), EINVAL);
}

TEST_P(NamesTest, LinkNamesTheFileItself) {
  FileId link = node(SymlinkCall{store->root(), "l", "nowhere"})->file;
  ASSERT_TRUE(node(LinkCall{link, store->root(), "m"}));
  EXPECT_EQ(lookup("m")->file, link);
  EXPECT_EQ(seen("m").st_mode & S_IFMT, mode_t{S_IFLNK});
  FileId d = create("d", S_IFDIR | 0755)->file;
  EXPECT_EQ(code(run(LinkCall{d, store->root(), "e"})), EPERM);
  FileId f = make("f");
  EXPECT_EQ(code(run(LinkCall{f, store->root(), "l"})), EEXIST);
  EXPECT_EQ(code(run(LinkCall{f, f, "x"})), ENOTDIR);
}

TEST_P(NamesTest, RemoveTellsFilesFromDirectories) {
  make("f");
  FileId d = create("d", S_IFDIR | 0755)->file;
  EXPECT_EQ(remove("f", true), ENOTDIR);
  EXPECT_EQ(remove("d", false), EISDIR);
  ASSERT_TRUE(node(CreateCall{d, "x", S_IFREG | 0644, 0, true}));
  EXPECT_EQ(remove("d", true), ENOTEMPTY);
  EXPECT_EQ(code(run(RemoveCall{d, "x", false})), 0);
  EXPECT_EQ(remove("d", true), 0);
  EXPECT_EQ(remove("f"), 0);
  EXPECT_EQ(remove("f"), ENOENT);
}

TEST_P(NamesTest, RenameWithEveryFlag) {
  FileId a = make("a", "a"), b = make("b", "b");
  EXPECT_EQ(rename("a", "b", RENAME_NOREPLACE), EEXIST);
  EXPECT_EQ(rename("a", "c", RENAME_NOREPLACE), 0);
  EXPECT_EQ(rename("b", "c", RENAME_EXCHANGE), 0);
  EXPECT_EQ(lookup("b")->file, a);
  EXPECT_EQ(lookup("c")->file, b);
  EXPECT_EQ(content(a), "a");
  EXPECT_EQ(rename("b", "missing", RENAME_EXCHANGE), ENOENT);
  EXPECT_EQ(rename("b", "x", RENAME_WHITEOUT), EINVAL);
  EXPECT_EQ(rename("b", "x", 0x80), EINVAL);
  EXPECT_EQ(rename("b", "c", RENAME_EXCHANGE | RENAME_NOREPLACE), EINVAL);
  EXPECT_EQ(rename("missing", "x"), ENOENT);
  EXPECT_EQ(rename("b", "c"), 0);
  EXPECT_EQ(lookup("c")->file, a);
  EXPECT_FALSE(exists("b"));
}

TEST_P(NamesTest, RenameBetweenHardLinksOfOneFileKeepsBoth) {
  FileId a = make("a", "x");
  ASSERT_TRUE(node(LinkCall{a, store->root(), "b"}));
  EXPECT_EQ(rename("a", "b"), 0);
  EXPECT_TRUE(exists("a"));
  EXPECT_EQ(content(a), "x");
}

TEST_P(NamesTest, RenameMovesDirectories) {
  FileId d = create("d", S_IFDIR | 0755)->file, e = create("e", S_IFDIR | 0755)->file;
  EXPECT_EQ(code(run(RenameCall{store->root(), "d", e, "inner", 0})), 0);
  EXPECT_EQ(node(LookupCall{e, "inner"})->file, d);
  EXPECT_EQ(code(run(RenameCall{store->root(), "e", d, "loop", 0})), EINVAL);
  EXPECT_EQ(code(run(RenameCall{e, "inner", store->root(), "d", 0})), 0);
  EXPECT_EQ(lookup("d")->file, d);
}

TEST_P(NamesTest, MountPointsAreNotCrossed) {
  ASSERT_EQ(::mkdir((dir / "m").c_str(), 0755), 0);
  if (::mount("none", (dir / "m").c_str(), "tmpfs", 0, "size=1m") != 0)
    GTEST_SKIP() << "cannot mount here";
  ::close(::open((dir / "m/secret").c_str(), O_CREAT | O_WRONLY, 0644));
  make("f");
  EXPECT_EQ(code(lookup("m")), EXDEV);
  EXPECT_EQ(code(create("m", S_IFREG | 0644, false)), EXDEV);
  EXPECT_EQ(remove("m", true), EBUSY);
  auto page = std::get<DirectoryPage>(*run(ReadDirectoryCall{store->root(), 0, 0}));
  ASSERT_EQ(page.entries.size(), 2u);
  for (auto& entry : page.entries)
    EXPECT_EQ(entry.file.generation == 0, entry.name == "m") << entry.name;
  ASSERT_EQ(::umount2((dir / "m").c_str(), MNT_DETACH), 0);
  EXPECT_TRUE(lookup("m"));
}

TEST_P(NamesTest, BindMountsOfTheSameFileSystemAreNotCrossedEither) {
  ASSERT_EQ(::mkdir((dir / "m").c_str(), 0755), 0);
  ASSERT_EQ(::mkdir((dir / "a").c_str(), 0755), 0);
  if (::mount((dir / "a").c_str(), (dir / "m").c_str(), nullptr, MS_BIND, nullptr) != 0)
    GTEST_SKIP() << "cannot mount here";
  EXPECT_EQ(code(lookup("m")), EXDEV);
  EXPECT_TRUE(lookup("a"));
  ASSERT_EQ(::umount2((dir / "m").c_str(), MNT_DETACH), 0);
}

}  // namespace
}  // namespace vremote::store::test
