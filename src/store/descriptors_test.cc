// A store without file handles keeps a descriptor for each file it knows, within a bound (S4).
#include <fcntl.h>

#include <fstream>
#include <vector>

#include "store/test_support.h"

namespace vremote::store {
namespace {

using namespace test;

constexpr uint64_t kLimit = 256;
constexpr int kFiles = 400;

class DescriptorsTest : public testing::Test {
 protected:
  void SetUp() override {
    for (int i = 0; i < kFiles; ++i) std::ofstream(dir / name(i)) << i;
    auto opened = Store::open(dir.path(), 3,
                              {.use_handles = false,
                               .full =
                                   [this](uint64_t limit) {
                                     EXPECT_EQ(limit, kLimit);
                                     ++told;
                                   },
                               .descriptors = kLimit});
    ASSERT_TRUE(opened) << opened.error().what;
    store = std::move(*opened);
  }
  static std::string name(int i) { return "f" + std::to_string(i); }
  template <typename Call>
  Result<Node> node(const Call& call) {
    auto outcome = store->execute(Caller{}, coherence::Operation(call));
    if (!outcome) return std::unexpected(outcome.error());
    return std::get<Node>(*outcome);
  }
  Result<Node> lookup(const std::string& name) {
    return node(coherence::LookupCall{store->root(), name});
  }
  // Looks up and uses files until there are too many.
  std::vector<FileId> fill() {
    std::vector<FileId> used;
    for (int i = 0; i < kFiles; ++i) {
      auto found = lookup(name(i));
      if (!found) {
        EXPECT_EQ(code(found), ENFILE);
        break;
      }
      EXPECT_EQ(code(store->stat(found->file)), 0);
      used.push_back(found->file);
    }
    return used;
  }
  static int next_descriptor() { return Fd(::open("/", O_PATH | O_CLOEXEC)).get(); }

  TempDir dir;
  int told = 0;
  std::unique_ptr<Store> store;
};

TEST_F(DescriptorsTest, FilesBeyondTheBoundAreRefusedAndLeaveSomeForTheRest) {
  const auto used = fill();
  ASSERT_LT(used.size(), static_cast<size_t>(kFiles));
  EXPECT_GT(used.size(), kLimit / 2);
  EXPECT_LE(next_descriptor(), static_cast<int>(kLimit - kLimit / 4));
  EXPECT_EQ(code(lookup(name(kFiles - 1))), ENFILE);
  EXPECT_EQ(told, 1);
  EXPECT_EQ(code(lookup(name(0))), 0) << "it is known";
}

TEST_F(DescriptorsTest, WhatIsRefusedIsNotMade) {
  fill();
  EXPECT_EQ(code(node(coherence::CreateCall{store->root(), "new", S_IFREG | 0644, 0, true})),
            ENFILE);
  EXPECT_EQ(code(node(coherence::SymlinkCall{store->root(), "new", "target"})), ENFILE);
  EXPECT_NE(::access((dir / "new").c_str(), F_OK), 0);
}

TEST_F(DescriptorsTest, KnownFilesAreReadAndWrittenAndKeepNoMoreOfThem) {
  const auto used = fill();
  const int next = next_descriptor();
  for (size_t i = 0; i < used.size(); ++i) {
    auto read = store->read(used[i], 0, 100);
    ASSERT_EQ(code(read), 0) << i;
    EXPECT_EQ(text(*read), std::to_string(i));
    const coherence::Extent extent{0, bytes("other")};
    ASSERT_EQ(code(store->write(used[i], {&extent, 1})), 0) << i;
  }
  EXPECT_EQ(next_descriptor(), next);
}

TEST_F(DescriptorsTest, WhatIsForgottenMakesRoom) {
  const auto used = fill();
  for (size_t i = 0; i < 40; ++i) store->forget(used[i]);
  EXPECT_EQ(code(lookup(name(kFiles - 1))), 0);
  EXPECT_EQ(code(node(coherence::CreateCall{store->root(), "new", S_IFREG | 0644, 0, true})), 0);
}

TEST_F(DescriptorsTest, NewFilesDoNotKeepTwo) {
  int made = 0;
  while (made < kFiles) {
    auto file = node(
        coherence::CreateCall{store->root(), "n" + std::to_string(made), S_IFREG | 0644, 0, true});
    if (!file) break;
    ASSERT_EQ(code(store->stat(file->file)), 0);
    ++made;
  }
  EXPECT_GT(made, static_cast<int>(kLimit) / 3);
  EXPECT_LT(made, kFiles);
}

}  // namespace
}  // namespace vremote::store
