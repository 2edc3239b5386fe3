// Listings and extended attributes.
#include <dirent.h>
#include <sys/xattr.h>

#include <map>
#include <set>

#include "store/test_support.h"

namespace vremote::store::test {
namespace {

using namespace coherence;

class DirectoryTest : public StoreTest {
 protected:
  DirectoryPage page(FileId directory, uint64_t cookie, uint32_t bytes_max) {
    auto outcome = run(ReadDirectoryCall{directory, cookie, bytes_max});
    EXPECT_TRUE(outcome) << std::strerror(code(outcome));
    return outcome ? std::get<DirectoryPage>(*outcome) : DirectoryPage{{}, true};
  }
  // Everything, in pages; a name twice is an error.
  std::map<std::string, DirectoryEntry> list(FileId directory, uint32_t bytes_max) {
    std::map<std::string, DirectoryEntry> all;
    uint64_t cookie = 0;
    while (true) {
      auto part = page(directory, cookie, bytes_max);
      for (auto& entry : part.entries) {
        cookie = entry.cookie;
        EXPECT_TRUE(all.emplace(entry.name, entry).second) << entry.name << " twice";
      }
      if (part.end) return all;
      if (part.entries.empty()) {
        ADD_FAILURE() << "no progress";
        return all;
      }
    }
  }
};
INSTANTIATE_TEST_SUITE_P(, DirectoryTest, testing::Bool(), how);

TEST_P(DirectoryTest, ListsNamesTypesAndIdentities) {
  std::map<std::string, std::pair<FileId, uint32_t>> expected;
  expected["file"] = {make("file"), DT_REG};
  expected["dir"] = {create("dir", S_IFDIR | 0755)->file, DT_DIR};
  expected["fifo"] = {create("fifo", S_IFIFO | 0644)->file, DT_FIFO};
  expected["link"] = {node(SymlinkCall{store->root(), "link", "file"})->file, DT_LNK};
  expected["hard"] = {node(LinkCall{expected["file"].first, store->root(), "hard"})->file, DT_REG};
  std::string odd("\x01\xff\n", 3);
  expected[odd] = {make(odd), DT_REG};
  for (uint32_t bytes_max : {0u, 1u, 100u, 4096u, UINT32_MAX}) {
    auto all = list(store->root(), bytes_max);
    ASSERT_EQ(all.size(), expected.size()) << bytes_max;
    for (auto& [name, what] : expected) {
      EXPECT_EQ(all[name].file, what.first) << name;
      EXPECT_EQ(all[name].type, what.second) << name;
    }
  }
}

TEST_P(DirectoryTest, AnEmptyDirectoryIsOneEmptyPage) {
  auto only = page(store->root(), 0, 4096);
  EXPECT_TRUE(only.entries.empty());
  EXPECT_TRUE(only.end);
  EXPECT_EQ(code(run(ReadDirectoryCall{make("f"), 0, 4096})), ENOTDIR);
  EXPECT_EQ(code(run(ReadDirectoryCall{store->root(), UINT64_MAX, 4096})), EINVAL);
}

TEST_P(DirectoryTest, PagesFitTheReadersBuffer) {
  for (int i = 0; i < 100; ++i) make(std::string(200, 'n') + std::to_string(i));
  auto first = page(store->root(), 0, 4096);
  size_t used = 0;
  for (auto& entry : first.entries) used += 24 + (entry.name.size() + 7) / 8 * 8;
  EXPECT_LE(used, 4096u);
  EXPECT_GT(used, 4096u - 300u);
  EXPECT_FALSE(first.end);
  EXPECT_EQ(list(store->root(), 4096).size(), 100u);
}

TEST_P(DirectoryTest, AnyCookieContinuesAfterItsEntry) {
  for (int i = 0; i < 50; ++i) make("f" + std::to_string(i));
  auto all = page(store->root(), 0, 1 << 20);
  ASSERT_EQ(all.entries.size(), 50u);
  ASSERT_TRUE(all.end);
  for (size_t i = 0; i < 50; i += 7) {
    auto rest = page(store->root(), all.entries[i].cookie, 1 << 20);
    ASSERT_EQ(rest.entries.size(), 49 - i);
    if (i < 49) {
      EXPECT_EQ(rest.entries[0].name, all.entries[i + 1].name);
    }
  }
}

TEST_P(DirectoryTest, EntriesRemovedBetweenPagesAreNotMissedOrRepeated) {
  for (int i = 0; i < 200; ++i) make("f" + std::to_string(i));
  std::set<std::string> seen, removed;
  uint64_t cookie = 0;
  for (bool end = false; !end;) {
    auto part = page(store->root(), cookie, 512);
    for (auto& entry : part.entries) {
      EXPECT_TRUE(seen.insert(entry.name).second);
      EXPECT_FALSE(removed.contains(entry.name));
      cookie = entry.cookie;
      ASSERT_EQ(remove(entry.name), 0);
      removed.insert(entry.name);
    }
    end = part.end;
  }
  EXPECT_EQ(seen.size(), 200u);
  EXPECT_TRUE(page(store->root(), 0, 4096).entries.empty());
}

TEST_P(DirectoryTest, AHundredThousandEntriesAreListedQuickly) {
  constexpr int kEntries = 100'000;
  int fd = ::open(dir.path().c_str(), O_RDONLY | O_DIRECTORY);
  for (int i = 0; i < kEntries; ++i) {
    int made =
        ::openat(fd, ("entry-" + std::to_string(i)).c_str(), O_CREAT | O_WRONLY | O_CLOEXEC, 0644);
    ASSERT_GE(made, 0);
    ::close(made);
  }
  ::close(fd);
  timespec start{}, end{};
  ::clock_gettime(CLOCK_MONOTONIC, &start);
  auto all = list(store->root(), 128 << 10);
  ::clock_gettime(CLOCK_MONOTONIC, &end);
  EXPECT_EQ(all.size(), size_t{kEntries});
  double seconds = static_cast<double>(end.tv_sec - start.tv_sec) +
                   static_cast<double>(end.tv_nsec - start.tv_nsec) / 1e9;
  RecordProperty("seconds", std::to_string(seconds));
  std::printf("listed %d entries in %.3f s\n", kEntries, seconds);
  EXPECT_LT(seconds, 20.0);
  if (GetParam()) {
    // What a listing gave out can be used.
    EXPECT_EQ(code(store->stat(all["entry-777"].file)), 0);
  }
  EXPECT_EQ(lookup("entry-99999")->file, all["entry-99999"].file);
}

class XattrTest : public StoreTest {
 protected:
  int set(FileId file, const std::string& name, std::string_view value, uint32_t flags = 0) {
    return code(run(SetXattrCall{file, name, bytes(value), flags}));
  }
  Result<std::string> get(FileId file, const std::string& name) {
    auto outcome = run(GetXattrCall{file, name});
    if (!outcome) return std::unexpected(outcome.error());
    return text(std::get<Text>(*outcome).bytes);
  }
  std::string names(FileId file) { return text(std::get<Text>(*run(ListXattrCall{file})).bytes); }
};
INSTANTIATE_TEST_SUITE_P(, XattrTest, testing::Bool(), how);

TEST_P(XattrTest, UserAttributesAreSetReadListedAndRemoved) {
  // Writing one takes the permission to write: root's, where the mode gives none.
  FileId f = create("f", S_IFREG | (::geteuid() == 0 ? 0444 : 0644))->file;
  int first = set(f, "user.a", "one");
  if (first == EOPNOTSUPP) GTEST_SKIP() << "no user attributes on this file system";
  ASSERT_EQ(first, 0);
  EXPECT_EQ(*get(f, "user.a"), "one");
  EXPECT_EQ(set(f, "user.empty", ""), 0);
  EXPECT_EQ(*get(f, "user.empty"), "");
  std::string large(3000, 'v');
  EXPECT_EQ(set(f, "user.a", large), 0);
  EXPECT_EQ(*get(f, "user.a"), large);
  EXPECT_EQ(set(f, "user.a", "x", XATTR_CREATE), EEXIST);
  EXPECT_EQ(set(f, "user.new", "x", XATTR_REPLACE), ENODATA);
  EXPECT_EQ(set(f, "user.a", "x", 0x100), EINVAL);
  EXPECT_NE(names(f).find(std::string("user.a\0", 7)), std::string::npos);
  EXPECT_EQ(code(run(RemoveXattrCall{f, "user.a"})), 0);
  EXPECT_EQ(code(get(f, "user.a")), ENODATA);
  EXPECT_EQ(code(run(RemoveXattrCall{f, "user.a"})), ENODATA);
  EXPECT_EQ(set(store->root(), "user.dir", "x"), 0);
  EXPECT_EQ(*get(store->root(), "user.dir"), "x");
}

TEST_P(XattrTest, BadNamesAndValuesAreRefused) {
  FileId f = make("f");
  EXPECT_EQ(set(f, "", "x"), ERANGE);
  EXPECT_EQ(set(f, "user." + std::string(251, 'n'), "x"), ERANGE);
  EXPECT_EQ(set(f, std::string("user.a\0b", 8), "x"), EINVAL);
  EXPECT_EQ(set(f, "nowhere.a", "x"), EOPNOTSUPP);
  EXPECT_EQ(set(f, "user.a", std::string(kXattrMax + 1, 'x')), E2BIG);
  EXPECT_EQ(code(get(f, "")), ERANGE);
}

TEST_P(XattrTest, TrustedAttributesAreForRootOnlyAndWorkOnLinks) {
  FileId l = node(SymlinkCall{store->root(), "l", "nowhere"})->file;
  int first = set(l, "trusted.a", "one");
  if (first != 0) GTEST_SKIP() << std::strerror(first);
  EXPECT_EQ(*get(l, "trusted.a"), "one");
  EXPECT_NE(set(l, "user.a", "x"), 0);  // not on links
  FileId f = make("f");
  ASSERT_EQ(set(f, "trusted.a", "one"), 0);
  bool user = set(f, "user.b", "two") == 0;
  EXPECT_NE(names(f).find("trusted.a"), std::string::npos);
  caller.uid = 1000;
  EXPECT_EQ(names(f).find("trusted.a"), std::string::npos);
  EXPECT_EQ(names(f).find("user.b") != std::string::npos, user);
}

TEST_P(XattrTest, AccessControlListsArePassedThrough) {
  FileId f = make("f");
  // version 2; user::rw- user:1001:r-- group::r-- mask::r-- other::---
  const unsigned char acl[] = {2,    0,    0,    0,    1,    0,    6,    0,    0xff, 0xff, 0xff,
                               0xff, 2,    0,    4,    0,    0xe9, 3,    0,    0,    4,    0,
                               4,    0,    0xff, 0xff, 0xff, 0xff, 0x10, 0,    4,    0,    0xff,
                               0xff, 0xff, 0xff, 0x20, 0,    0,    0,    0xff, 0xff, 0xff, 0xff};
  std::string value(reinterpret_cast<const char*>(acl), sizeof acl);
  int first = set(f, "system.posix_acl_access", value);
  if (first == EOPNOTSUPP) GTEST_SKIP() << "no access control lists on this file system";
  ASSERT_EQ(first, 0);
  EXPECT_EQ(*get(f, "system.posix_acl_access"), value);
  EXPECT_EQ(store->stat(f)->mode, mode_t{S_IFREG | 0640});
}

}  // namespace
}  // namespace vremote::store::test
