#include "node/recovery/rescued_file.h"

#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>

#include "coherence/test_text.h"

namespace vremote::node {
namespace {

using coherence::test::repeated;
namespace fs = std::filesystem;

class RescuedFileTest : public ::testing::Test {
 protected:
  RescuedFileTest() {
    char path[] = "/tmp/vremote-rescued-XXXXXX";
    EXPECT_NE(::mkdtemp(path), nullptr);
    root_ = path;
    file_.emplace(root_ + "/kept", "-mark", RecoveryHeader{.home = "n1", .file = {0, 1, 77}});
  }
  ~RescuedFileTest() override { fs::remove_all(root_); }

  void add(uint64_t offset, size_t bytes) { file_->add({{offset, repeated('A', bytes)}}, {}); }
  static RecoverySummary read(const std::string& path) {
    RecoverySummary summary;
    const auto fd = open_recovery_file(path);
    EXPECT_TRUE(fd && read_recovery(*fd, {}, summary));
    return summary;
  }
  static bool is_free(const std::string& path) {
    const auto fd = open_recovery_file(path);
    return fd && ::flock(fd->get(), LOCK_EX | LOCK_NB) == 0;
  }

  std::string root_;
  std::optional<RescuedFile> file_;
};

TEST_F(RescuedFileTest, IsBegunWithItsFirstBytesAndOpenedAgainForMore) {
  EXPECT_FALSE(fs::exists(root_ + "/kept"));
  add(0, 10);
  EXPECT_TRUE(file_->is_open());
  EXPECT_FALSE(is_free(file_->path()));
  RescuedFile::Sum sum = file_->settle();
  EXPECT_EQ(sum.kept, 10u);
  EXPECT_EQ(sum.lost, 0u);
  EXPECT_TRUE(sum.is_first);
  EXPECT_FALSE(file_->is_open());
  EXPECT_TRUE(is_free(file_->path()));
  const std::string path = file_->path();
  add(10, 5);
  sum = file_->settle();
  EXPECT_EQ(sum.kept, 5u);
  EXPECT_FALSE(sum.is_first);
  EXPECT_EQ(file_->path(), path);
  EXPECT_EQ(file_->bytes(), 15u);
  EXPECT_EQ(read(path).bytes, 15u);
  EXPECT_FALSE(read(path).damaged);
  file_->remove();
  EXPECT_FALSE(fs::exists(path));
}

TEST_F(RescuedFileTest, WhatComesAfterItWasDiscardedGoesToAnother) {
  add(0, 10);
  (void)file_->settle();
  fs::remove_all(root_ + "/kept");
  add(10, 5);
  const RescuedFile::Sum sum = file_->settle();
  EXPECT_TRUE(sum.is_first);
  EXPECT_EQ(read(file_->path()).bytes, 5u);
  EXPECT_FALSE(read(file_->path()).damaged);
}

TEST_F(RescuedFileTest, OneThatSomebodyAppliesIsLeftAlone) {
  add(0, 10);
  (void)file_->settle();
  const std::string path = file_->path();
  const auto taken = open_recovery_file(path);
  ASSERT_EQ(::flock(taken->get(), LOCK_EX | LOCK_NB), 0);
  add(10, 5);
  (void)file_->settle();
  EXPECT_NE(file_->path(), path);
  EXPECT_EQ(read(path).bytes, 10u);
  EXPECT_EQ(read(file_->path()).bytes, 5u);
}

TEST_F(RescuedFileTest, WhatIsRemovedBeforeItIsSettledIsLost) {
  add(0, 10);
  fs::remove(file_->path());
  const RescuedFile::Sum sum = file_->settle();
  EXPECT_EQ(sum.kept, 0u);
  EXPECT_EQ(sum.lost, 10u);
  EXPECT_NE(sum.why.find("removed"), std::string::npos);
  EXPECT_EQ(file_->bytes(), 0u);
}

TEST_F(RescuedFileTest, WhatCannotBeKeptIsToldOnceAndByTheFile) {
  add(0, 10);
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = ::signal(SIGXFSZ, SIG_IGN);
  const rlimit little{4096, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &little), 0);
  add(10, 5000);
  add(5010, 5000);
  const RescuedFile::Sum sum = file_->settle();
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  ::signal(SIGXFSZ, handler);
  EXPECT_EQ(sum.kept, 10u);
  EXPECT_EQ(sum.lost, 10'000u);
  EXPECT_NE(sum.why.find("File too large"), std::string::npos) << sum.why;
  add(20'000, 5);
  EXPECT_TRUE(file_->settle().why.empty());
  const RecoverySummary summary = read(file_->path());
  EXPECT_TRUE(summary.damaged);
  EXPECT_EQ(summary.bytes, 15u);
  EXPECT_EQ(summary.kept->bytes, 10'015u);
}

TEST_F(RescuedFileTest, WhatIsLostBeforeThereIsAFileTheNextOneTells) {
  std::ofstream(root_ + "/kept") << "no directory";
  add(0, 10);
  EXPECT_EQ(file_->settle().lost, 10u);
  fs::remove(root_ + "/kept");
  add(10, 5);
  EXPECT_EQ(file_->settle().kept, 5u);
  const RecoverySummary summary = read(file_->path());
  EXPECT_TRUE(summary.damaged) << "a part is not the whole";
  EXPECT_EQ(summary.bytes, 5u);
  EXPECT_EQ(summary.kept->bytes, 15u);
}

TEST_F(RescuedFileTest, OneThatCannotBeAddedToIsLeftAlone) {
  add(0, 10);
  (void)file_->settle();
  const std::string path = file_->path();
  std::fstream(path).seekp(static_cast<std::streamoff>(fs::file_size(path) - 40)) << "spoilt";
  add(10, 5);
  const RescuedFile::Sum sum = file_->settle();
  EXPECT_EQ(sum.kept, 5u);
  EXPECT_EQ(sum.lost, 0u);
  EXPECT_NE(file_->path(), path);
  EXPECT_TRUE(read(path).damaged);
  EXPECT_FALSE(read(file_->path()).damaged);
}

TEST_F(RescuedFileTest, WithoutADirectoryAllIsLost) {
  RescuedFile nowhere("/dev/null/kept", "", RecoveryHeader{.home = "n1", .file = {0, 1, 77}});
  nowhere.add({{0, repeated('A', 10)}}, {});
  const RescuedFile::Sum sum = nowhere.settle();
  EXPECT_EQ(sum.lost, 10u);
  EXPECT_FALSE(sum.why.empty());
  EXPECT_TRUE(nowhere.path().empty());
}

}  // namespace
}  // namespace vremote::node
