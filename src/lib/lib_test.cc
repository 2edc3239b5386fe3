// libvremote from a C program, with a thread that answers as the node and a bind mount that plays
// the mount.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "base/fd.h"
#include "intercept/namespace_json.h"

namespace vremote {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;
namespace fs = std::filesystem;

class LibTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/vremote-lib-XXXXXX";
    d_ = ::mkdtemp(name);
    for (const char* dir : {"mnt", "back", "back/data", "data"})
      fs::create_directory(d_ + "/" + dir);
    std::ofstream(d_ + "/back/data/f") << "shared data\n";
    std::ofstream(d_ + "/data/f") << "LOCAL\n";
    start_node();
  }
  void TearDown() override {
    ::shutdown(listener_.get(), SHUT_RDWR);
    node_.join();
    fs::remove_all(d_);
  }

  void start_node() {
    listener_ = Fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strcpy(address.sun_path, (d_ + "/control").c_str());
    ASSERT_EQ(::bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    ASSERT_EQ(::listen(listener_.get(), 8), 0);
    intercept::Namespace names{d_ + "/mnt",
                               {{"data", d_ + "/data", true}, {"far", "/far/away", false}}};
    node_ = std::thread([fd = listener_.get(), reply = intercept::to_json(names) + "\n"] {
      for (;;) {
        Fd client(::accept4(fd, nullptr, nullptr, SOCK_CLOEXEC));
        if (!client.valid()) return;
        char buffer[256];
        if (::read(client.get(), buffer, sizeof buffer) <= 0) continue;
        EXPECT_EQ(::write(client.get(), reply.data(), reply.size()), ssize_t(reply.size()));
      }
    });
  }

  static std::string text_of(const std::string& path) {
    std::ostringstream text;
    text << std::ifstream(path).rdbuf();
    return text.str();
  }

  // What lib_use prints; stderr_ has the rest. `mounted`: in a mount namespace of its own.
  std::string use(std::vector<std::string> words, bool mounted = true, bool with_node = true) {
    pid_t pid = ::fork();
    if (pid == 0) {
      if (mounted &&
          (::unshare(CLONE_NEWNS) != 0 ||
           ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
           ::mount((d_ + "/back").c_str(), (d_ + "/mnt").c_str(), nullptr, MS_BIND, nullptr) != 0))
        ::_exit(77);
      if (!std::freopen((d_ + "/out").c_str(), "w", stdout) ||
          !std::freopen((d_ + "/err").c_str(), "w", stderr))
        ::_exit(78);
      ::setenv("VREMOTE_CONTROL", (d_ + (with_node ? "/control" : "/nobody")).c_str(), 1);
      if (::chdir((d_ + "/data").c_str()) != 0) ::_exit(79);
      words.insert(words.begin(), LIB_USE);
      std::vector<char*> argv;
      for (std::string& w : words) argv.push_back(w.data());
      argv.push_back(nullptr);
      ::execv(LIB_USE, argv.data());
      ::_exit(80);
    }
    int status = 0;
    EXPECT_EQ(::waitpid(pid, &status, 0), pid);
    EXPECT_TRUE(WIFEXITED(status));
    EXPECT_LT(WEXITSTATUS(status), 77) << "the test's own set-up failed";
    stderr_ = text_of(d_ + "/err");
    return text_of(d_ + "/out");
  }

  std::string d_, stderr_;
  Fd listener_;
  std::thread node_;
};

TEST_F(LibTest, OpensUnderTheMount) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root to mount";
  EXPECT_EQ(use({"open", "f", "0x18"}), "shared data\n");
  EXPECT_EQ(use({"open", d_ + "/data/f", "10000018"}), "shared data\n") << "0x10 | 2 | 10000000";
  EXPECT_EQ(use({"open", d_ + "/mnt/data/f", "0x10"}), "shared data\n");
  EXPECT_THAT(stderr_, IsEmpty());
  EXPECT_EQ(use({"open", "new", "0x5a", "640"}), "");
  EXPECT_TRUE(fs::exists(d_ + "/back/data/new"));
  EXPECT_FALSE(fs::exists(d_ + "/data/new"));
  EXPECT_THAT(use({"open", "none", "0x18"}), StartsWith("error ENOENT: \n"));
  EXPECT_THAT(stderr_, IsEmpty());
}

TEST_F(LibTest, WithoutTheFlagItIsOpen) {
  EXPECT_EQ(use({"open", "f", "0"}, false, false), "LOCAL\n");
}

TEST_F(LibTest, RefusesOnStderrAndNeverOpensLocally) {
  EXPECT_THAT(use({"open", "f", "0x10"}, false),
              AllOf(StartsWith("error EINVAL: "), HasSubstr("add O_ORIGIN")));
  EXPECT_THAT(stderr_, StartsWith("vremote_openat(\"f\", O_REMOTE): "));
  EXPECT_THAT(use({"open", "f", "0x18"}, false),
              AllOf(StartsWith("error ENXIO: "), HasSubstr("is not mounted")));
  EXPECT_THAT(use({"open", "f", "0x18"}, false, false),
              AllOf(StartsWith("error ENXIO: "), HasSubstr("no node answers")));
  EXPECT_THAT(use({"open", "/etc/passwd", "0x10"}, false),
              AllOf(StartsWith("error ENXIO: "), HasSubstr("not inside any export")));
}

TEST_F(LibTest, ResolvesWithoutOpening) {
  EXPECT_EQ(use({"resolve", "none/x", "0x8"}, false), d_ + "/mnt/data/none/x\n");
  EXPECT_EQ(use({"resolve", "/far/away", "0"}, false), d_ + "/mnt/far\n");
  EXPECT_THAT(use({"resolve", "/etc", "0"}, false),
              StartsWith("error ENXIO: not inside any export"));
  EXPECT_THAT(stderr_, IsEmpty());
}

}  // namespace
}  // namespace vremote
