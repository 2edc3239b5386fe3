// What `vremote recover` writes, and what it refuses to.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "coherence/test_text.h"
#include "node/base/shown_inode.h"
#include "node/recovery/recovery_file.h"

namespace vremote::cli {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
namespace fs = std::filesystem;

struct Outcome {
  int status = 0;
  std::string out, err;
};

class RecoverCommandTest : public ::testing::Test {
 protected:
  RecoverCommandTest() {
    char path[] = "/tmp/vremote-recover-XXXXXX";
    EXPECT_NE(::mkdtemp(path), nullptr);
    root_ = path;
    fs::create_directory(root_ / "kept");
    target_ = root_ / "file";
    std::ofstream(target_) << "newer content of the file";
    header_ = {.saved_at = 2'000'000'000,
               .home = "n1",
               .file = {.export_index = 0, .generation = 1, .inode = 77},
               .shown_inode = inode_of(target_),
               .path = target_,
               .written = after(target_),
               .export_name = "data"};
  }
  ~RecoverCommandTest() override { fs::remove_all(root_); }

  static uint64_t inode_of(const std::string& path) {
    struct stat st {};
    EXPECT_EQ(::stat(path.c_str(), &st), 0);
    return st.st_ino;
  }
  static Timestamp after(const std::string& path) {
    struct stat st {};
    EXPECT_EQ(::stat(path.c_str(), &st), 0);
    return {st.st_mtim.tv_sec + 1, 0};
  }
  Timestamp before() const { return {after(target_).seconds - 100, 0}; }

  // Ten bytes at 0, ten at 100.
  void keep() {
    fs::remove(kept_file());
    auto fd = node::begin_recovery_file(kept_file(), header_);
    ASSERT_TRUE(fd);
    using coherence::test::repeated;
    ASSERT_TRUE(node::append_recovery(*fd, {{0, repeated('A', 10)}, {100, repeated('B', 10)}}, {}));
    const bool timed = header_.written != Timestamp{};
    ASSERT_TRUE(node::append_recovery(*fd, {}, {.has_mtime = timed, .mtime = header_.written}));
  }
  std::string kept_file() const { return root_ / "kept/one.recover"; }
  std::string content() const {
    std::ifstream file(target_);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  void flip(const std::string& what) {
    std::fstream file(kept_file(), std::ios::in | std::ios::out | std::ios::binary);
    const std::string text(std::istreambuf_iterator<char>(file), {});
    file.seekp(static_cast<std::streamoff>(text.find(what)));
    file.put('x');
  }

  Outcome recover(std::vector<std::string> arguments) {
    const std::string directory = root_ / "kept";
    arguments.insert(arguments.begin(), {"vremote", "recover", "--dir", directory});
    std::vector<const char*> argv;
    for (const std::string& argument : arguments) argv.push_back(argument.c_str());
    testing::internal::CaptureStdout();
    testing::internal::CaptureStderr();
    Outcome outcome;
    outcome.status = run_cli(static_cast<int>(argv.size()), argv.data(), {});
    outcome.out = testing::internal::GetCapturedStdout();
    outcome.err = testing::internal::GetCapturedStderr();
    return outcome;
  }

  fs::path root_;
  std::string target_;
  node::RecoveryHeader header_;
};

TEST_F(RecoverCommandTest, WholeBytesAreWrittenWhereTheyBelong) {
  keep();
  const Outcome done = recover({"apply", "one"});
  EXPECT_EQ(done.status, 0) << done.err;
  EXPECT_THAT(done.out,
              AllOf(HasSubstr("20 bytes written to " + target_), HasSubstr("discard one")));
  EXPECT_EQ(content().substr(0, 12), "AAAAAAAAAAen");
}

TEST_F(RecoverCommandTest, TheFileThatTheLogNamesIsAnIdToo) {
  keep();
  EXPECT_EQ(recover({"apply", "one.recover"}).status, 0);
  EXPECT_EQ(content().substr(0, 12), "AAAAAAAAAAen");
  EXPECT_EQ(recover({"discard", "one.recover"}).status, 0);
  EXPECT_EQ(recover({"discard", ".recover"}).status, 1);
}

TEST_F(RecoverCommandTest, DamagedBytesAreWrittenOnlyWhenAskedForAndNeverCalledDone) {
  keep();
  flip("BBBB");
  const std::string was = content();
  const Outcome refused = recover({"apply", "one"});
  EXPECT_EQ(refused.status, 1);
  EXPECT_THAT(refused.err, AllOf(HasSubstr("10 bytes in 1 pieces of 20 bytes in 2"),
                                 HasSubstr("--damaged"), Not(HasSubstr("discard"))));
  EXPECT_EQ(recover({"apply", "one", "--force"}).status, 1) << "force is for something else";
  EXPECT_EQ(content(), was);
  const Outcome done = recover({"apply", "one", "--damaged"});
  EXPECT_EQ(done.status, 1);
  EXPECT_THAT(done.out + done.err,
              AllOf(HasSubstr("not all was written"),
                    HasSubstr("10 bytes in 1 pieces of 20 bytes in 2"), Not(HasSubstr("discard"))));
  EXPECT_EQ(content().substr(0, 10), "AAAAAAAAAA");
  EXPECT_EQ(content().size(), was.size()) << "nothing of the damaged piece";
  EXPECT_TRUE(fs::exists(kept_file()));
}

TEST_F(RecoverCommandTest, NewerContentIsGuardedHoweverMuchOfTheFileIsLeft) {
  header_.written = before();
  keep();
  const std::string was = content();
  const auto whole = fs::file_size(kept_file());
  for (uint64_t size = 0; size <= whole; ++size) {
    keep();
    fs::resize_file(kept_file(), size);
    for (const auto& arguments :
         std::vector<std::vector<std::string>>{{"apply", "one"}, {"apply", "one", "--damaged"}}) {
      const Outcome refused = recover(arguments);
      EXPECT_EQ(refused.status, 1) << size;
      EXPECT_THAT(refused.out + refused.err, Not(HasSubstr("discard"))) << size;
    }
    ASSERT_EQ(content(), was) << size;
  }
  EXPECT_EQ(recover({"apply", "one", "--force"}).status, 0);
}

TEST_F(RecoverCommandTest, BytesOfAnUnknownTimeNeedForce) {
  header_.written = {};
  keep();
  const Outcome refused = recover({"apply", "one"});
  EXPECT_EQ(refused.status, 1);
  EXPECT_THAT(refused.err, AllOf(HasSubstr("is not known"), HasSubstr("--force")));
  EXPECT_EQ(recover({"apply", "one", "--force"}).status, 0);
}

TEST_F(RecoverCommandTest, WhereNothingCanBeReadNothingIsCalledWritten) {
  keep();
  flip("AAAA");
  flip("BBBB");
  const Outcome refused = recover({"apply", "one", "--damaged", "--force"});
  EXPECT_EQ(refused.status, 1);
  EXPECT_THAT(refused.err, AllOf(HasSubstr("0 bytes in 0 pieces of 20 bytes in 2"),
                                 HasSubstr("nothing was written"), Not(HasSubstr("discard"))));
}

TEST_F(RecoverCommandTest, AnotherFileThanTheOneIsNotWrittenToUnasked) {
  keep();
  const std::string other = root_ / "other";
  std::ofstream(other) << "something else";
  const Outcome refused = recover({"apply", "one", "--to", other});
  EXPECT_EQ(refused.status, 1);
  EXPECT_THAT(refused.err, AllOf(HasSubstr("is not the file"), HasSubstr("--force")));
  EXPECT_EQ(fs::file_size(other), 14u);
  EXPECT_EQ(recover({"apply", "one", "--to", other, "--force"}).status, 0);
  EXPECT_EQ(recover({"apply", "one", "--to", target_}).status, 0) << "the same file";
}

TEST_F(RecoverCommandTest, AFileWithoutANameCanBeFound) {
  header_.path.clear();
  header_.shown_inode = node::shown_inode("n1", 0, 77);
  keep();
  const std::string shown = std::to_string(header_.shown_inode);
  EXPECT_THAT(recover({"list"}).out, HasSubstr("inode 77 of export data of n1"));
  for (const Outcome& told : {recover({"show", "one"}), recover({"apply", "one"})})
    EXPECT_THAT(told.out + told.err,
                AllOf(HasSubstr("find MOUNT/data -inum " + shown), HasSubstr("-inum 77` on n1")));
}

TEST_F(RecoverCommandTest, PiecesAreShownBelowWhatTheyBelongTo) {
  keep();
  const std::string told = recover({"show", "one"}).out;
  EXPECT_TRUE(told.starts_with("file      " + target_ + "\n")) << told;
  EXPECT_TRUE(told.ends_with("  10 bytes at 0\n  10 bytes at 100\n")) << told;
  // Of what cannot be read nothing is shown.
  fs::resize_file(kept_file(), 5);
  const Outcome refused = recover({"show", "one"});
  EXPECT_EQ(refused.out, "");
  EXPECT_EQ(refused.status, 1);
}

TEST_F(RecoverCommandTest, AnIdThatLooksLikeAnOptionIsNamed) {
  const Outcome refused = recover({"show", "-dash"});
  EXPECT_EQ(refused.status, 2);
  EXPECT_THAT(refused.err, AllOf(HasSubstr("-dash"), Not(HasSubstr("required"))));
  const Outcome none = recover({"show"});
  EXPECT_EQ(none.status, 2);
  EXPECT_THAT(none.err, HasSubstr("ID is required"));
}

// Its author may have written there the name of any file.
TEST_F(RecoverCommandTest, AnotherUsersFileIsNotWrittenWhereItSays) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root, to make files of other users";
  keep();
  const std::string before = content();
  ASSERT_EQ(::chown(kept_file().c_str(), 12345, 12345), 0);
  EXPECT_THAT(recover({"list"}).out, HasSubstr("one"));
  const Outcome refused = recover({"apply", "one", "--force", "--damaged"});
  EXPECT_EQ(refused.status, 1);
  EXPECT_THAT(refused.err, AllOf(HasSubstr("user 12345"), HasSubstr("--to")));
  EXPECT_EQ(content(), before);
  EXPECT_EQ(recover({"apply", "one", "--to", target_}).status, 0) << "whoever names it has looked";
}

TEST_F(RecoverCommandTest, WhatIsNoRegularFileIsSaidAndNotWaitedFor) {
  ASSERT_EQ(::mkfifo(kept_file().c_str(), 0600), 0);
  for (const char* verb : {"show", "apply", "discard"}) {
    const Outcome refused = recover({verb, "one"});
    EXPECT_EQ(refused.status, 1) << verb;
    EXPECT_THAT(refused.err, HasSubstr("not a regular file")) << verb;
  }
  EXPECT_THAT(recover({"list"}).err, HasSubstr("not a regular file"));
  EXPECT_TRUE(fs::exists(kept_file()));
}

}  // namespace
}  // namespace vremote::cli
