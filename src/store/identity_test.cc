// Which file a FileId means, and for how long.
#include <sys/wait.h>

#include <filesystem>
#include <map>
#include <vector>

#include "store/departed.h"
#include "store/test_support.h"

namespace vremote::store::test {
namespace {

using namespace coherence;

class IdentityTest : public StoreTest {
 protected:
  // Descriptors of this process for files of the export that have no name any more.
  int deleted_files_open() {
    int count = 0;
    for (auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
      std::error_code error;
      std::string target = std::filesystem::read_symlink(entry.path(), error).string();
      if (target.starts_with(dir.path()) && target.ends_with(" (deleted)")) ++count;
    }
    return count;
  }
};
INSTANTIATE_TEST_SUITE_P(, IdentityTest, testing::Bool(), how);

TEST_P(IdentityTest, IsTheInodeAndTheExport) {
  FileId a = make("a");
  struct stat st {};
  ASSERT_EQ(::stat((dir / "a").c_str(), &st), 0);
  EXPECT_EQ(a.inode, st.st_ino);
  EXPECT_EQ(a.export_index, 3u);
  EXPECT_NE(a.generation, 0u);
  EXPECT_EQ(store->stat(store->root())->mode & S_IFMT, mode_t{S_IFDIR});
}

TEST_P(IdentityTest, SurvivesRenameAndHardLink) {
  FileId a = make("a", "content");
  ASSERT_EQ(rename("a", "b"), 0);
  EXPECT_EQ(lookup("b")->file, a);
  EXPECT_EQ(content(a), "content");
  auto linked = node(LinkCall{a, store->root(), "c"});
  ASSERT_TRUE(linked);
  EXPECT_EQ(linked->file, a);
  EXPECT_EQ(linked->attributes.nlink, 2u);
  EXPECT_EQ(lookup("c")->file, a);
  ASSERT_EQ(remove("b"), 0);
  EXPECT_EQ(content(a), "content");
}

TEST_P(IdentityTest, SurvivesARenameBehindTheStoresBack) {
  FileId a = make("a", "content");
  ASSERT_EQ(::rename((dir / "a").c_str(), (dir / "z").c_str()), 0);
  EXPECT_EQ(content(a), "content");
  EXPECT_EQ(lookup("z")->file, a);
}

TEST_P(IdentityTest, AReusedInodeNumberIsAnotherFile) {
  std::map<uint64_t, FileId> seen;
  int reused = 0;
  for (int i = 0; i < 200 && reused == 0; ++i) {
    FileId file = make("f");
    auto [it, fresh] = seen.emplace(file.inode, file);
    if (!fresh) {
      ++reused;
      EXPECT_NE(it->second, file);
      EXPECT_EQ(code(store->stat(file)), 0);
      EXPECT_EQ(store->stat(it->second).value_or(Attributes{.nlink = 1}).nlink, 0u);
      EXPECT_EQ(code(store->pin(it->second)), ESTALE);
    }
    ASSERT_EQ(remove("f"), 0);
    store->forget(file);
  }
  if (reused == 0) GTEST_SKIP() << "this file system does not reuse inode numbers";
}

TEST_P(IdentityTest, UnknownFilesAreStale) {
  struct stat st {};
  ASSERT_EQ(::stat("/", &st), 0);
  for (FileId id : {FileId{3, 1, st.st_ino}, FileId{3, 0, store->root().inode},
                    FileId{4, store->root().generation, store->root().inode}, FileId{}}) {
    EXPECT_EQ(code(store->stat(id)), ESTALE);
    EXPECT_EQ(code(store->read(id, 0, 1)), ESTALE);
    EXPECT_EQ(code(store->pin(id)), ESTALE);
    EXPECT_EQ(code(run(LookupCall{id, "x"})), ESTALE);
  }
}

TEST_P(IdentityTest, AFileWhoseLastNameIsGoneIsStaleButForItsLastAttributes) {
  FileId a = make("a", "x");
  EXPECT_EQ(content(a), "x");
  ASSERT_EQ(remove("a"), 0);
  const auto last = store->stat(a);
  ASSERT_TRUE(last.has_value());
  EXPECT_EQ(last->nlink, 0u);
  EXPECT_EQ(last->size, 1u);
  EXPECT_EQ(code(store->read(a, 0, 1)), ESTALE);
  EXPECT_EQ(code(store->pin(a)), ESTALE);
  EXPECT_FALSE(store->has_xattrs(a));
  FileId b = make("b", "old");
  make("c", "new");
  ASSERT_EQ(rename("c", "b"), 0);
  EXPECT_EQ(store->stat(b)->nlink, 0u);
  EXPECT_EQ(code(store->read(b, 0, 1)), ESTALE);
  FileId d = create("d", S_IFDIR | 0755)->file;
  EXPECT_EQ(code(run(LookupCall{d, "x"})), ENOENT);
  ASSERT_EQ(remove("d", true), 0);
  EXPECT_EQ(store->stat(d)->nlink, 0u);
  EXPECT_TRUE(S_ISDIR(store->stat(d)->mode));
  EXPECT_EQ(code(run(LookupCall{d, "x"})), ENOENT);
  EXPECT_EQ(code(run(CreateCall{d, "x", S_IFREG | 0644, 0, true})), ENOENT);
  SetAttributesCall mode{.file = d, .has_mode = true};
  mode.mode = 0700;
  EXPECT_TRUE(run(mode).has_value());
  EXPECT_EQ(store->stat(d)->mode, S_IFDIR | 0700u);
  EXPECT_TRUE(run(StatFsCall{d}).has_value());
  EXPECT_TRUE(run(StatFsCall{a}).has_value());
}

TEST_P(IdentityTest, WhatIsKeptOfRemovedFilesIsBounded) {
  struct stat st {};
  ASSERT_EQ(::stat((dir / ".").c_str(), &st), 0);
  const auto open = [&] {
    return std::make_shared<OpenFile>(Fd(::open((dir / ".").c_str(), O_PATH | O_CLOEXEC)), S_IFDIR);
  };
  Departed departed;
  const auto id = [](uint64_t i) { return FileId{0, 1, i}; };
  for (uint64_t i = 0; i < Departed::kMostOpen; ++i) departed.add(id(i), st, open());
  EXPECT_TRUE(departed.open(id(0)));
  departed.add(id(Departed::kMostOpen), st, open());
  EXPECT_FALSE(departed.open(id(0)));
  EXPECT_TRUE(departed.attributes(id(0)));
  EXPECT_TRUE(departed.open(id(Departed::kMostOpen)));
  for (uint64_t i = Departed::kMostOpen + 1; i < Departed::kMost; ++i)
    departed.add(id(i), st, nullptr);
  EXPECT_TRUE(departed.attributes(id(0)));
  departed.add(id(Departed::kMost), st, nullptr);
  EXPECT_FALSE(departed.attributes(id(0)));
  EXPECT_TRUE(departed.attributes(id(Departed::kMost)));
}

TEST_P(IdentityTest, ASmallFileMayBePinnedForAMomentAfterItLostItsLastName) {
  departed_files = 2;
  reopen();
  const auto removed = [&](const std::string& name) {
    const FileId file = make(name, name);
    EXPECT_EQ(remove(name), 0);
    return file;
  };
  const FileId a = removed("a"), b = removed("b");
  EXPECT_EQ(content(a), "a");
  EXPECT_EQ(code(store->pin(a)), 0);
  EXPECT_TRUE(store->pinned(a));
  const FileId c = removed("c"), d = removed("d");
  EXPECT_EQ(code(store->pin(b)), ESTALE);
  EXPECT_FALSE(store->pinned(b));
  EXPECT_EQ(code(store->pin(c)), 0);
  // Pinned ones stay.
  removed("e");
  removed("f");
  EXPECT_EQ(put(a, 1, "bc"), 0);
  EXPECT_EQ(content(a), "abc");
  EXPECT_EQ(content(c), "c");
  EXPECT_EQ(code(store->read(d, 0, 1)), ESTALE);
  store->unpin(a);
  EXPECT_EQ(content(a), "abc");
  removed("g");
  removed("h");
  EXPECT_EQ(code(store->read(a, 0, 1)), ESTALE);
}

TEST_P(IdentityTest, WhatIsKeptOfRemovedFilesContentIsSmallAndSoonGone) {
  struct stat st {};
  ASSERT_EQ(::stat((dir / ".").c_str(), &st), 0);
  const auto file = [&] {
    return std::make_shared<OpenFile>(Fd(::open((dir / ".").c_str(), O_PATH | O_CLOEXEC)), S_IFREG);
  };
  const auto id = [](uint64_t i) { return FileId{0, 1, i}; };
  Departed departed;
  st.st_blocks = Departed::kFileBytes / 512 + 1;
  departed.add(id(1), st, file());
  EXPECT_FALSE(departed.open(id(1)));
  EXPECT_TRUE(departed.attributes(id(1)));
  --st.st_blocks;
  constexpr uint64_t kFit = Departed::kFilesBytes / Departed::kFileBytes;
  for (uint64_t i = 2; i < 2 + kFit; ++i) departed.add(id(i), st, file());
  EXPECT_TRUE(departed.open(id(2)));
  departed.add(id(1000), st, file());
  EXPECT_FALSE(departed.open(id(2)));
  EXPECT_TRUE(departed.open(id(3)));
  EXPECT_FALSE(departed.has_old(Departed::Clock::now()));
  const auto later = Departed::Clock::now() + Departed::kFileTime;
  EXPECT_TRUE(departed.has_old(later));
  departed.let_go_old(later);
  EXPECT_FALSE(departed.open(id(1000)));
  EXPECT_FALSE(departed.has_old(later));
  EXPECT_FALSE(departed.let_go_files());
  departed.add(id(1001), st, file());
  EXPECT_TRUE(departed.let_go_files());
  EXPECT_FALSE(departed.open(id(1001)));
}

TEST_P(IdentityTest, AFileWithoutANameLivesAsLongAsItIsPinned) {
  const auto nameless = [&](bool never) {
    return node(CreateCall{store->root(), "-", kNamelessFile | 0640, 0, never});
  };
  const auto made = nameless(false);
  ASSERT_TRUE(made.has_value()) << std::strerror(code(made));
  EXPECT_EQ(made->attributes.nlink, 0u);
  EXPECT_EQ(made->attributes.mode, S_IFREG | 0640u);
  EXPECT_EQ(put(made->file, 0, "text"), 0);
  EXPECT_EQ(code(lookup("-")), ENOENT);
  EXPECT_TRUE(store->pinned(made->file));
  EXPECT_EQ(code(run(LinkCall{made->file, store->root(), "named"})), 0);
  EXPECT_EQ(lookup("named")->file, made->file);
  store->unpin(made->file);
  EXPECT_EQ(content(made->file), "text");
  const auto never = nameless(true);
  ASSERT_TRUE(never.has_value());
  EXPECT_EQ(code(run(LinkCall{never->file, store->root(), "other"})), ENOENT);
  EXPECT_EQ(put(never->file, 0, "text"), 0);
  store->unpin(never->file);
  EXPECT_EQ(code(store->read(never->file, 0, 1)), ESTALE);
}

TEST_P(IdentityTest, ItIsToldWhichPinnedFilesHaveNoName) {
  using Files = std::set<FileId>;
  departed_files = 4;
  reopen();
  const FileId a = make("a"), b = make("b"), c = make("c"), free = make("free");
  for (FileId file : {a, b, c}) ASSERT_EQ(code(store->pin(file)), 0);
  EXPECT_EQ(told_nameless, Files{});
  EXPECT_EQ(remove("a"), 0);
  EXPECT_EQ(rename("free", "b"), 0);
  EXPECT_EQ(told_nameless, (Files{a, b}));
  EXPECT_EQ(remove("b"), 0);
  EXPECT_EQ(told_nameless, (Files{a, b})) << "nobody has it open";
  // One that is pinned only then.
  EXPECT_EQ(code(store->pin(free)), 0);
  EXPECT_EQ(code(store->pin(free)), 0);
  EXPECT_EQ(told_nameless, (Files{a, b, free}));
  store->unpin(free);
  EXPECT_EQ(told_nameless, (Files{a, b, free}));
  for (FileId file : {a, b, c, free}) store->unpin(file);
  EXPECT_EQ(told_nameless, Files{});
  const auto made = node(CreateCall{store->root(), "-", kNamelessFile | 0600, 0, false});
  ASSERT_TRUE(made.has_value());
  EXPECT_EQ(told_nameless, Files{made->file});
  store->unpin(made->file);
  EXPECT_EQ(told_nameless, Files{});
}

TEST_P(IdentityTest, AFileRemovedBehindTheStoresBackIsStale) {
  FileId a = make("a", "x");
  EXPECT_EQ(content(a), "x");
  ASSERT_EQ(::unlink((dir / "a").c_str()), 0);
  EXPECT_EQ(store->stat(a).value_or(Attributes{.nlink = 1}).nlink, 0u);
  EXPECT_EQ(code(store->pin(a)), ESTALE);
  EXPECT_EQ(code(store->read(a, 0, 1)), ESTALE);
}

TEST_P(IdentityTest, AFileOnlyALocalProcessHasOpenIsStale) {
  FileId a = make("a", "x");
  store->forget(a);  // not open here
  Fd local(::open((dir / "a").c_str(), O_RDONLY | O_CLOEXEC));
  ASSERT_TRUE(local.valid());
  ASSERT_EQ(remove("a"), 0);
  EXPECT_EQ(code(store->read(a, 0, 1)), ESTALE);
  EXPECT_EQ(code(store->pin(a)), ESTALE);
}

TEST_P(IdentityTest, APinnedFileOutlivesItsLastName) {
  FileId a = make("a", "before");
  ASSERT_EQ(code(store->pin(a)), 0);
  ASSERT_EQ(code(store->pin(a)), 0);
  ASSERT_EQ(remove("a"), 0);
  store->forget(a);  // does nothing to a pinned file
  EXPECT_EQ(store->stat(a)->nlink, 0u);
  EXPECT_EQ(put(a, 0, "after!"), 0);
  EXPECT_EQ(content(a), "after!");
  SetAttributesCall set;
  set.file = a;
  set.has_mode = set.has_size = set.has_mtime = true;
  set.mode = 0600;
  set.size = 2;
  set.mtime = {77, 5};
  auto after = node(set);
  ASSERT_TRUE(after) << std::strerror(code(after));
  EXPECT_EQ(after->attributes.size, 2u);
  EXPECT_EQ(after->attributes.mode, mode_t{S_IFREG | 0600});
  EXPECT_EQ(after->attributes.mtime, (Timestamp{77, 5}));
  EXPECT_EQ(code(run(SyncCall{a, false})), 0);
  EXPECT_EQ(code(run(LinkCall{a, store->root(), "back"})), ENOENT);
  store->unpin(a);
  EXPECT_EQ(content(a), "af");
  EXPECT_GT(deleted_files_open(), 0);
  store->unpin(a);
  EXPECT_EQ(deleted_files_open(), 0);  // or its blocks would stay taken
  EXPECT_EQ(store->stat(a).value_or(Attributes{.nlink = 1}).nlink, 0u);
  EXPECT_EQ(code(store->pin(a)), ESTALE);
  EXPECT_EQ(store->counts().pinned, 1u);  // the root
}

TEST_P(IdentityTest, APinnedDirectoryOutlivesItsName) {
  FileId d = create("d", S_IFDIR | 0755)->file;
  ASSERT_EQ(code(store->pin(d)), 0);
  ASSERT_EQ(remove("d", true), 0);
  EXPECT_EQ(code(store->stat(d)), 0);
  EXPECT_EQ(code(run(LookupCall{d, "x"})), ENOENT);
  EXPECT_EQ(code(run(CreateCall{d, "x", S_IFREG | 0644, 0, true})), ENOENT);
  EXPECT_EQ(code(run(ReadDirectoryCall{d, 0, 4096})), ENOENT);  // as getdents(2) has it
  store->unpin(d);
  EXPECT_EQ(store->stat(d).value_or(Attributes{.nlink = 1}).nlink, 0u);
}

TEST_P(IdentityTest, UnpinningAnUnpinnedFileDoesNothing) {
  FileId a = make("a");
  store->unpin(a);
  store->unpin(FileId{9, 9, 9});
  EXPECT_EQ(code(store->stat(a)), 0);
}

TEST_P(IdentityTest, TheTableIsBounded) {
  store.reset();
  store = std::move(*Store::open(
      dir.path(), 3, {.open_files_max = 16, .unreferenced_max = 64, .use_handles = GetParam()}));
  FileId kept = make("kept", "k");
  for (int i = 0; i < 500; ++i) {
    FileId file = make("f" + std::to_string(i));
    EXPECT_EQ(code(store->stat(file)), 0);  // in use
    store->forget(file);
  }
  auto counts = store->counts();
  EXPECT_LE(counts.known, 64u + 2u);
  EXPECT_LE(counts.open, 16u);
  EXPECT_EQ(content(kept), "k");  // in use all the time: not one of the bounded
  EXPECT_EQ(code(store->stat(store->root())), 0);
}

TEST_P(IdentityTest, ManyFilesInUseNeedFewDescriptors) {
  if (!GetParam()) GTEST_SKIP() << "without handles each file in use keeps a descriptor";
  store.reset();
  store = std::move(*Store::open(dir.path(), 3, {.open_files_max = 16}));
  std::vector<FileId> files;
  for (int i = 0; i < 1000; ++i) files.push_back(make("f" + std::to_string(i), std::to_string(i)));
  for (int i = 0; i < 1000; ++i) EXPECT_EQ(content(files[i]), std::to_string(i));
  EXPECT_EQ(store->counts().open, 16u);
  EXPECT_EQ(store->counts().known, 1001u);
}

TEST_P(IdentityTest, KnownFilesCanBeTakenOverARestart) {
  FileId a = make("a", "content"), gone = make("gone", "x");
  auto known = store->known();
  reopen();
  if (!GetParam()) {
    EXPECT_TRUE(known.empty());
    EXPECT_EQ(code(store->restore({a, "handle"})), EOPNOTSUPP);
    return;
  }
  EXPECT_EQ(code(store->stat(a)), ESTALE);  // not given out by this one
  ASSERT_EQ(remove("gone"), 0);
  ASSERT_EQ(known.size(), 3u);
  for (auto& file : known) {
    EXPECT_EQ(code(store->restore(file)), file.file == gone ? ESTALE : 0);
    KnownFile wrong = file;
    wrong.file.inode += 1;
    EXPECT_NE(code(store->restore(wrong)), 0);
    wrong = file;
    wrong.handle.back() ^= 1;
    EXPECT_EQ(code(store->restore(wrong)), EINVAL);
    wrong.handle.clear();
    EXPECT_EQ(code(store->restore(wrong)), EINVAL);
  }
  EXPECT_EQ(content(a), "content");
  EXPECT_EQ(lookup("a")->file, a);
}

TEST(StoreOpenTest, ErrorsSayWhatIsWrongInOneLine) {
  TempDir dir;
  auto missing = Store::open(dir / "missing", 0);
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().code, ENOENT);
  EXPECT_EQ(missing.error().what, "cannot export " + (dir / "missing") + ": it does not exist");
  ::close(::open((dir / "file").c_str(), O_CREAT | O_WRONLY, 0644));
  auto file = Store::open(dir / "file", 0);
  ASSERT_FALSE(file);
  EXPECT_EQ(file.error().code, ENOTDIR);
  EXPECT_EQ(file.error().what, "cannot export " + (dir / "file") + ": it is not a directory");
}

// The test's body in a thread that is another user to the file system.
TEST(StoreOpenTest, AnUnprivilegedDaemonServesItsOwnFiles) {
  if (::geteuid() != 0) GTEST_SKIP() << "runs as an ordinary user anyway";
  TempDir dir;
  ASSERT_EQ(::chown(dir.path().c_str(), 1234, 1234), 0);
  pid_t child = ::fork();
  if (child == 0) {
    if (::setresgid(1234, 1234, 1234) != 0 || ::setresuid(1234, 1234, 1234) != 0) ::_exit(10);
    auto opened = Store::open(dir.path(), 0);
    if (!opened) ::_exit(11);
    Store& store = **opened;
    if (store.has_handles()) ::_exit(12);
    Caller other{.uid = 77, .gid = 88, .groups = {}};
    auto made = store.execute(other, CreateCall{store.root(), "f", S_IFREG | 0444, 0, true});
    if (!made) ::_exit(13);
    Node node = std::get<Node>(*made);
    if (node.attributes.uid != 1234 || node.attributes.mode != (S_IFREG | 0444)) ::_exit(14);
    Extent extent{0, bytes("hello")};
    if (!store.write(node.file, {&extent, 1}))
      ::_exit(15);  // 0444: only the descriptor of its creation can
    if (text(*store.read(node.file, 0, 10)) != "hello") ::_exit(16);
    auto denied = Store::open("/root", 0);
    if (denied || denied.error().code != EACCES) ::_exit(17);
    ::_exit(0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0) << "step " << WEXITSTATUS(status);
}

}  // namespace
}  // namespace vremote::store::test
