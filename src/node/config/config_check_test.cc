// The rules of the configuration that depend on the machine's directories.
#include <fcntl.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>

#include "base/fd.h"
#include "node/config/config.h"
#include "node/config/config_paths.h"

namespace vremote::node {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
namespace fs = std::filesystem;

class CheckConfigTest : public ::testing::Test {
 protected:
  CheckConfigTest() {
    char path[] = "/tmp/vremote-check-XXXXXX";
    EXPECT_NE(::mkdtemp(path), nullptr);
    root_ = path;
    fs::create_directories(root_ / "srv/data/deep");
    fs::create_directories(root_ / "srv/more");
    config_.file = "/etc/node.toml";
    config_.node = "n1";
    config_.mount = root_ / "mnt";
    config_.state_dir = root_ / "state";
    config_.control_socket = root_ / "state/control.sock";
  }
  ~CheckConfigTest() override { fs::remove_all(root_); }

  void add(const std::string& name, const fs::path& path) {
    config_.exports.push_back({name, path});
  }
  std::string refusal() {
    Status status = check_config(config_);
    return status ? "(accepted)" : status.error().what;
  }

  fs::path root_;
  Config config_;
};

TEST_F(CheckConfigTest, SeparateDirectoriesAreFine) {
  add("data", root_ / "srv/data");
  add("more", root_ / "srv/more");
  config_.log_file = root_ / "log";
  EXPECT_EQ(refusal(), "(accepted)");
}

TEST_F(CheckConfigTest, TheControlSocketsGroupMustExist) {
  config_.control_group = "root";
  EXPECT_EQ(refusal(), "(accepted)");
  config_.control_group = "no-such-group";
  EXPECT_THAT(refusal(), HasSubstr("key 'control.group': this machine has no group"));
}

TEST_F(CheckConfigTest, TheLogsDirectoryMustExist) {
  config_.log_file = root_ / "typo/node.log";
  EXPECT_EQ(refusal(), "/etc/node.toml: key 'log.file': the directory " +
                           (root_ / "typo").string() + " does not exist; create it");
  config_.log_file = root_ / "srv";
  EXPECT_THAT(refusal(), HasSubstr("is a directory; name a file in it"));
  std::ofstream(root_ / "plain") << "file";
  config_.log_file = root_ / "plain/node.log";
  EXPECT_THAT(refusal(), HasSubstr("key 'log.file'"));
  config_.log_file = root_ / "state/node.log";
  EXPECT_EQ(refusal(), "(accepted)") << "the node makes its own directory";
}

TEST_F(CheckConfigTest, ExportMustBeADirectoryThatExists) {
  add("x", root_ / "srv/x");
  EXPECT_EQ(refusal(), "/etc/node.toml: key 'export[0].path': " + (root_ / "srv/x").string() +
                           " does not exist; create it or correct the path");
  std::ofstream(root_ / "srv/x") << "file";
  EXPECT_THAT(refusal(), HasSubstr("is not a directory"));
}

TEST_F(CheckConfigTest, ExportInsideAnotherIsRefused) {
  add("deep", root_ / "srv/data/deep");
  add("data", root_ / "srv/data");
  EXPECT_THAT(refusal(), HasSubstr("key 'export[0].path': " + (root_ / "srv/data/deep").string() +
                                   " lies inside export 'data'"));
}

TEST_F(CheckConfigTest, SameDirectoryTwiceIsRefusedAlsoThroughALink) {
  fs::create_directory_symlink(root_ / "srv/data", root_ / "link");
  add("data", root_ / "srv/data");
  add("again", root_ / "link");
  EXPECT_THAT(refusal(), HasSubstr("key 'export[1].path': " + (root_ / "link").string() +
                                   " is the directory of export 'data'"));
}

// A bind mount gives the same files a second path.
TEST_F(CheckConfigTest, TheSameFilesThroughABindMountAreRefused) {
  if (::unshare(CLONE_NEWNS) != 0) GTEST_SKIP() << "needs root, for a mount";
  ASSERT_EQ(::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr), 0);
  const fs::path there = root_ / "srv/new\nline and space";
  fs::create_directory(there);
  add("data", root_ / "srv/data");
  add("again", there);
  EXPECT_EQ(refusal(), "(accepted)");
  ASSERT_EQ(::mount((root_ / "srv/data").c_str(), there.c_str(), nullptr, MS_BIND, nullptr), 0);
  EXPECT_THAT(refusal(), HasSubstr("is the directory of export 'data'"));
  EXPECT_THAT(refusal(), Not(HasSubstr("\n")));
  ASSERT_EQ(::umount(there.c_str()), 0);
  ASSERT_EQ(::mount((root_ / "srv/data/deep").c_str(), there.c_str(), nullptr, MS_BIND, nullptr),
            0);
  EXPECT_THAT(refusal(), HasSubstr("lies inside export 'data'"));
  ASSERT_EQ(::umount(there.c_str()), 0);
  ASSERT_EQ(::mount((root_ / "srv/more").c_str(), there.c_str(), nullptr, MS_BIND, nullptr), 0);
  EXPECT_EQ(refusal(), "(accepted)");
  ASSERT_EQ(::umount(there.c_str()), 0);
}

// Nobody answers for that mount: whoever looks into it before the answer waits for ever.
TEST_F(CheckConfigTest, NothingOfANodeLiesOnAnotherNodesMount) {
  const Fd device(::open("/dev/fuse", O_RDWR | O_CLOEXEC));
  if (!device.valid() || ::unshare(CLONE_NEWNS) != 0) GTEST_SKIP() << "needs root, for a mount";
  ASSERT_EQ(::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr), 0);
  fs::create_directory(root_ / "other");
  const std::string options =
      fmt::format("fd={},rootmode=40000,user_id=0,group_id=0", device.get());
  ASSERT_EQ(::mount("vremote:n2", (root_ / "other").c_str(), "fuse.vremote", MS_NOSUID | MS_NODEV,
                    options.c_str()),
            0);
  const std::string there = " lies on " + (root_ / "other").string() + ", where another node shows";
  const Config good = config_;
  config_.state_dir = root_ / "other/data/state";
  EXPECT_THAT(refusal(), HasSubstr("key 'state_dir': " + config_.state_dir + there));
  config_ = good;
  config_.state_dir = root_ / "srv/../other";
  EXPECT_THAT(refusal(), HasSubstr("key 'state_dir'"));
  config_ = good;
  config_.recovery_dir = root_ / "other/kept";
  EXPECT_THAT(refusal(), HasSubstr("key 'recovery_dir'"));
  config_ = good;
  config_.log_file = root_ / "other/log";
  EXPECT_THAT(refusal(), HasSubstr("key 'log.file'"));
  config_ = good;
  config_.mount = root_ / "other/data/mnt";
  EXPECT_THAT(refusal(), HasSubstr("key 'mount': " + config_.mount + there));
  config_.mount = root_ / "other";
  EXPECT_EQ(refusal(), "(accepted)") << "its own, of a daemon that died";
  ASSERT_EQ(::umount2((root_ / "other").c_str(), MNT_DETACH), 0);
}

TEST_F(CheckConfigTest, ALogThatIsAPipeIsNotWaitedFor) {
  config_.log_file = root_ / "log";
  ASSERT_EQ(::mkfifo(config_.log_file.c_str(), 0600), 0);
  EXPECT_THAT(refusal(), HasSubstr("key 'log.file': " + config_.log_file + " is a named pipe"));
  config_.state_dir = root_;
  EXPECT_THAT(refusal(), HasSubstr("is a named pipe")) << "where the node keeps its own files, too";
}

TEST_F(CheckConfigTest, FilesThatChangeByThemselvesAreNoExport) {
  add("kernel", "/proc/self");
  EXPECT_THAT(refusal(), HasSubstr("key 'export[0].path': /proc/self lies on a proc file system"));
}

TEST_F(CheckConfigTest, TheKeyAndTheRecoveryFilesAreNobodysToRead) {
  add("data", root_ / "srv/data");
  config_.recovery_dir = root_ / "srv/data/deep";
  EXPECT_THAT(refusal(), HasSubstr("key 'recovery_dir'"));
  config_.recovery_dir = root_ / "mnt/kept";
  EXPECT_THAT(refusal(), HasSubstr("key 'recovery_dir'"));
  config_.recovery_dir = root_ / "kept";
  config_.cluster_key = root_ / "srv/data/cluster.key";
  EXPECT_THAT(refusal(), HasSubstr("key 'cluster.key'"));
  config_.cluster_key = root_ / "cluster.key";
  EXPECT_EQ(refusal(), "(accepted)");
}

TEST_F(CheckConfigTest, SimilarNamesAreNotNested) {
  fs::create_directories(root_ / "srv/data2");
  add("data", root_ / "srv/data");
  add("data2", root_ / "srv/data2");
  EXPECT_EQ(refusal(), "(accepted)");
}

TEST_F(CheckConfigTest, MountInsideAnExportIsRefusedAlsoThroughALink) {
  add("data", root_ / "srv/data");
  config_.mount = root_ / "srv/data/mnt";
  EXPECT_THAT(refusal(), HasSubstr("key 'mount': " + config_.mount + " lies inside export 'data'"));
  fs::create_directory_symlink(root_ / "srv/data", root_ / "link");
  config_.mount = root_ / "link/deeper/mnt";
  EXPECT_THAT(refusal(), HasSubstr("key 'mount'"));
}

TEST_F(CheckConfigTest, ExportInsideTheMountIsRefused) {
  config_.mount = root_ / "srv";
  add("data", root_ / "srv/data");
  EXPECT_THAT(refusal(), HasSubstr("key 'export[0].path': " + (root_ / "srv/data").string() +
                                   " lies inside the mount"));
  fs::create_directory_symlink(root_, root_ / "link");
  config_.mount = root_ / "link/srv";
  EXPECT_THAT(refusal(), HasSubstr("lies inside the mount"));
}

TEST_F(CheckConfigTest, ExportThatIsTheMountIsRefused) {
  add("data", root_ / "srv/data");
  config_.mount = root_ / "srv/data";
  EXPECT_THAT(refusal(), HasSubstr("lies inside the mount"));
}

TEST_F(CheckConfigTest, OwnFilesInsideTheMountAreRefused) {
  config_.log_file = config_.mount + "/log";
  EXPECT_THAT(refusal(),
              HasSubstr("key 'log.file': " + config_.log_file + " lies inside the mount"));
  config_.log_file.clear();
  config_.state_dir = config_.mount;
  EXPECT_THAT(refusal(), HasSubstr("key 'state_dir'"));
}

TEST_F(CheckConfigTest, OwnFilesInsideAnExportAreRefused) {
  add("data", root_ / "srv/data");
  config_.log_file = root_ / "srv/data/log";
  EXPECT_THAT(refusal(),
              HasSubstr("key 'log.file': " + config_.log_file + " lies inside export 'data'"));
}

TEST_F(CheckConfigTest, LoadChecksTheMachineAndReadDoesNot) {
  const fs::path file = root_ / "node.toml";
  std::ofstream(file) << "node = 'n1'\nmount = '" << config_.mount
                      << "'\n[[export]]\nname = 'x'\npath = '/does/not/exist'\n";
  EXPECT_TRUE(read_config(file));  // also without a key

  auto loaded = load_config(file);
  ASSERT_FALSE(loaded);
  EXPECT_EQ(
      loaded.error().what,
      file.string() +
          ": key 'export[0].path': /does/not/exist does not exist; create it or correct the path");
}

TEST(ConfigPathsTest, NormalPathsHaveOneForm) {
  EXPECT_EQ(normal_path("/"), "/");
  EXPECT_EQ(normal_path("///"), "/");
  EXPECT_EQ(normal_path("/a//b/./c/"), "/a/b/c");
  EXPECT_EQ(normal_path("/a/b/../../../c"), "/c");
  EXPECT_EQ(normal_path("/.."), "/");
}

TEST(ConfigPathsTest, WithinIsByComponents) {
  EXPECT_TRUE(is_within("/a/b", "/a"));
  EXPECT_TRUE(is_within("/a", "/a"));
  EXPECT_TRUE(is_within("/a", "/"));
  EXPECT_FALSE(is_within("/ab", "/a"));
  EXPECT_FALSE(is_within("/", "/a"));
}

}  // namespace
}  // namespace vremote::node
