// FileIds outlive the process that gave them out.
#include "store/journal.h"

#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "store/test_support.h"

namespace vremote::store::test {
namespace {

using namespace coherence;

class JournalTest : public testing::Test {
 protected:
  void SetUp() override {
    std::ofstream(exported_ / "a") << "content";
    begin();
    if (!store_->has_handles()) GTEST_SKIP() << "no file handles here";
  }
  void begin(uint32_t export_index = 0) {
    store_.reset();
    auto store = Store::open(exported_.path(), export_index, {.journal = state_ / "files"});
    ASSERT_TRUE(store) << store.error().what;
    store_ = std::move(*store);
  }
  FileId learn(const std::string& name) {
    auto found = store_->execute({}, LookupCall{store_->root(), name});
    EXPECT_TRUE(found);
    return std::get<Node>(*found).file;
  }
  // While it lives no file gets longer than that: what a full disk does.
  class FullDisk {
   public:
    explicit FullDisk(uintmax_t most) : handler_(::signal(SIGXFSZ, SIG_IGN)) {
      EXPECT_EQ(0, ::getrlimit(RLIMIT_FSIZE, &before_));
      const struct rlimit full { most, before_.rlim_max };
      EXPECT_EQ(0, ::setrlimit(RLIMIT_FSIZE, &full));
    }
    ~FullDisk() {
      EXPECT_EQ(0, ::setrlimit(RLIMIT_FSIZE, &before_));
      ::signal(SIGXFSZ, handler_);
    }
    FullDisk(const FullDisk&) = delete;
    FullDisk& operator=(const FullDisk&) = delete;

   private:
    sighandler_t handler_;
    struct rlimit before_ {};
  };
  FileId learn_on_a_full_disk(const std::string& name) {
    const FullDisk full(size() + 5);
    return learn(name);
  }
  uintmax_t size() const { return std::filesystem::file_size(state_ / "files"); }

  TempDir exported_, state_;
  std::unique_ptr<Store> store_;
};

TEST_F(JournalTest, AFileThatWasGivenOutIsKnownAfterwards) {
  const FileId a = learn("a");
  begin();
  auto read = store_->read(a, 0, 100);
  ASSERT_TRUE(read) << read.error().code;
  EXPECT_EQ(text(*read), "content");
  EXPECT_EQ(learn("a"), a);
}

// What a full disk refuses is ESTALE after a crash; what comes when there is room again is not.
TEST_F(JournalTest, ADiskThatWasFullIsNotFullForEver) {
  const FileId a = learn("a");
  std::ofstream(exported_ / "b") << "content";
  std::ofstream(exported_ / "c") << "content";
  const FileId b = learn_on_a_full_disk("b");
  const FileId c = learn("c");
  begin();
  EXPECT_TRUE(store_->stat(a));
  EXPECT_TRUE(store_->stat(c));
  EXPECT_FALSE(store_->stat(b)) << "else this test proves nothing";
}

TEST_F(JournalTest, AFullDiskAtTheStartCostsNothing) {
  const FileId a = learn("a");
  std::ofstream(state_ / "files", std::ios::app) << "half a record";
  const uintmax_t whole = size() - 13;
  {
    const FullDisk full(whole - 1);
    ASSERT_NO_FATAL_FAILURE(begin());
  }
  EXPECT_TRUE(store_->stat(a));
  EXPECT_EQ(whole, size());
  std::ofstream(exported_ / "b") << "content";
  const FileId b = learn("b");
  begin();
  EXPECT_TRUE(store_->stat(a));
  EXPECT_TRUE(store_->stat(b));
}

TEST_F(JournalTest, WhatIsNotLegibleIsCounted) {
  learn("a");
  begin();
  EXPECT_EQ(0u, store_->lost_of_journal());
  const uintmax_t whole = size();
  std::ofstream(state_ / "files", std::ios::app) << "half a record";
  begin();
  EXPECT_EQ(13u, store_->lost_of_journal());
  begin();
  EXPECT_EQ(0u, store_->lost_of_journal()) << "begun anew";
  std::fstream(state_ / "files") << "?";
  begin();
  EXPECT_EQ(whole, store_->lost_of_journal());
  begin(1);
  EXPECT_EQ(0u, store_->lost_of_journal()) << "of another export: nothing is lost";
}

TEST_F(JournalTest, WhatAFullDiskRefusedIsNotedWhenThereIsRoom) {
  std::ofstream(exported_ / "b") << "content";
  const FileId b = learn_on_a_full_disk("b");
  // It is tried again once in a while, when another file becomes known.
  for (int i = 0; i < 3000; ++i) {
    const std::string name = "n" + std::to_string(i);
    std::ofstream(exported_ / name) << "content";
    learn(name);
    ::usleep(20'000);
    TempDir copy;
    std::filesystem::copy_file(state_ / "files", copy / "files");
    auto other = Store::open(exported_.path(), 0, {.journal = copy / "files"});
    ASSERT_TRUE(other);
    if ((*other)->stat(b)) return;
  }
  FAIL() << "never noted";
}

TEST_F(JournalTest, AlsoTheSecondTime) {
  const FileId a = learn("a");
  begin();
  begin();
  EXPECT_TRUE(store_->stat(a));
}

TEST_F(JournalTest, AlsoUnderAnotherName) {
  const FileId a = learn("a");
  std::filesystem::rename(exported_ / "a", exported_ / "b");
  begin();
  EXPECT_TRUE(store_->stat(a));
}

TEST_F(JournalTest, AFileThatIsGoneIsStale) {
  const FileId a = learn("a");
  store_.reset();
  std::filesystem::remove(exported_ / "a");
  begin();
  EXPECT_EQ(code(store_->stat(a)), ESTALE);
}

TEST_F(JournalTest, AFileNobodyWasGivenIsNotReached) {
  FileId guessed = learn("a");
  begin();
  ++guessed.generation;
  EXPECT_EQ(code(store_->stat(guessed)), ESTALE);
}

TEST_F(JournalTest, InAnotherPlaceOfTheListNothingOfItCounts) {
  const FileId a = learn("a");
  begin(1);
  EXPECT_EQ(code(store_->stat(a)), ESTALE);
  FileId there = a;
  there.export_index = 1;
  EXPECT_EQ(code(store_->stat(there)), ESTALE);
}

TEST_F(JournalTest, CutOrChangedAnywhereItIsGoodUpToThere) {
  const FileId a = learn("a");
  store_.reset();
  std::ifstream in(state_ / "files", std::ios::binary);
  const std::string whole((std::istreambuf_iterator<char>(in)), {});
  const auto known_with = [&](const std::string& bytes) {
    std::ofstream(state_ / "files", std::ios::binary | std::ios::trunc) << bytes;
    begin();
    const bool known = store_->stat(a).has_value();
    store_.reset();
    return known;
  };
  EXPECT_TRUE(known_with(whole));
  for (size_t size = 0; size < whole.size(); ++size)
    EXPECT_FALSE(known_with(whole.substr(0, size))) << size;
  for (size_t at = 0; at < whole.size(); ++at) {
    std::string changed = whole;
    changed[at] = static_cast<char>(changed[at] ^ 0x20);
    EXPECT_FALSE(known_with(changed)) << at;
  }
}

}  // namespace
}  // namespace vremote::store::test
