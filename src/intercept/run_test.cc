// The supervisor with real programs on the real kernel. Two directories play the mount: what is in
// them differs, so that each test sees which file was opened.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/close_range.h>
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <sstream>
#include <string>
#include <vector>

#include "base/fd.h"

namespace vremote::intercept {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::MatchesRegex;
using Words = std::vector<std::string>;
namespace fs = std::filesystem;

struct Outcome {
  int status = 0;  // as wait() has it
  std::string out, err;
  int exit() const { return WIFEXITED(status) ? WEXITSTATUS(status) : -1; }
  int signal() const { return WIFSIGNALED(status) ? WTERMSIG(status) : 0; }
};

// A running run_tool, its output in pipes. Ends it if the test does not.
class Running {
 public:
  Running(const Words& words, const std::string& cwd, uid_t uid) {
    int out[2], err[2];
    EXPECT_EQ(::pipe2(out, O_CLOEXEC), 0);
    EXPECT_EQ(::pipe2(err, O_CLOEXEC), 0);
    out_ = Fd(out[0]);
    err_ = Fd(err[0]);
    Fd out_end(out[1]), err_end(err[1]);
    pid_ = ::fork();
    if (pid_ == 0) {
      ::dup2(out[1], 1);
      ::dup2(err[1], 2);
      if (::chdir(cwd.c_str()) != 0) ::_exit(80);
      if (uid != 0 && (::setgid(uid) != 0 || ::setuid(uid) != 0)) ::_exit(81);
      std::vector<char*> argv;
      for (const std::string& w : words) argv.push_back(const_cast<char*>(w.c_str()));
      argv.push_back(nullptr);
      ::execv(argv[0], argv.data());
      ::_exit(82);
    }
  }
  ~Running() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  pid_t pid() const { return pid_; }
  Outcome finish() {
    auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
    Fd* ends[] = {&out_, &err_};
    std::string* texts[] = {&outcome_.out, &outcome_.err};
    while (out_.valid() || err_.valid()) {
      pollfd p[] = {{out_.get(), POLLIN, 0}, {err_.get(), POLLIN, 0}};
      ::poll(p, 2, 1000);
      if (std::chrono::steady_clock::now() > deadline) {
        ADD_FAILURE() << "no end after 60 s: out " << outcome_.out << " err " << outcome_.err;
        return outcome_;
      }
      for (int i = 0; i < 2; ++i) {
        if (!p[i].revents) continue;
        char buffer[4096];
        ssize_t n = ::read(ends[i]->get(), buffer, sizeof buffer);
        if (n <= 0) ends[i]->reset();
        if (n > 0) texts[i]->append(buffer, static_cast<size_t>(n));
      }
    }
    EXPECT_EQ(::waitpid(pid_, &outcome_.status, 0), pid_);
    pid_ = -1;
    return outcome_;
  }
  std::string line() {
    char c;
    std::string line;
    while (::read(out_.get(), &c, 1) == 1 && c != '\n') line += c;
    return line;
  }

 private:
  pid_t pid_;
  Fd out_, err_;
  Outcome outcome_;
};

class RunTest : public ::testing::Test {
 protected:
  void SetUp() override {
    // What the test's own parent left open is not for the programs under test: they count on the
    // numbers of their descriptors.
    ASSERT_EQ(::close_range(3, ~0u, CLOSE_RANGE_CLOEXEC), 0);
    char name[] = "/tmp/vremote-run-XXXXXX";
    d_ = ::mkdtemp(name);
    fs::permissions(d_, fs::perms(0755));
    for (const char* dir :
         {"mnt", "mnt/data", "mnt/far", "data", "data/sub", "mnt/data/sub", "elsewhere"})
      fs::create_directory(d_ + "/" + dir);
    put("mnt/data/f", "shared data");
    put("mnt/data/sub/g", "shared sub");
    put("mnt/far/f", "shared far");
    put("data/f", "LOCAL");
    put("data/sub/g", "LOCAL");
    put("elsewhere/f", "LOCAL");
    if (auto o = run({"exit=0"}); o.exit() != 0)
      GTEST_SKIP() << "no seccomp user notification here: " << o.err;
  }
  void TearDown() override { fs::remove_all(d_); }

  void put(const std::string& path, const std::string& text) {
    std::ofstream(d_ + "/" + path) << text << "\n";
  }
  std::string get(const std::string& path) {
    std::ostringstream text;
    text << std::ifstream(d_ + "/" + path).rdbuf();
    return text.str();
  }
  mode_t mode_of(const std::string& path) {
    struct stat st {};
    EXPECT_EQ(::stat((d_ + "/" + path).c_str(), &st), 0) << path;
    return st.st_mode & 07777;
  }
  Words command(const Words& cmd, const Words& options = {}) const {
    Words words{RUN_TOOL, d_ + "/mnt", "data=" + d_ + "/data", "far:/far/away"};
    words.insert(words.end(), options.begin(), options.end());
    words.push_back("--");
    words.insert(words.end(), cmd.begin(), cmd.end());
    return words;
  }
  Outcome run_command(const Words& cmd, const Words& options = {}, uid_t uid = 0) {
    return Running(command(cmd, options), d_ + "/data", uid).finish();
  }
  Outcome run(Words steps, const Words& options = {}, uid_t uid = 0) {
    steps.insert(steps.begin(), probe_);
    return run_command(steps, options, uid);
  }
  // What it prints, when nothing goes to stderr.
  std::string prints(const Words& steps, const Words& options = {}) {
    Outcome o = run(steps, options);
    EXPECT_EQ(o.exit(), 0);
    EXPECT_THAT(o.err, IsEmpty());
    return o.out;
  }

  std::string d_;
  std::string probe_ = PROBE;
};

const std::string kOrigin = "flags=0x18", kRemote = "flags=0x10", kWriteCreate = "flags=0x51";

TEST_F(RunTest, OriginPathsOpenTheFileOfTheMount) {
  EXPECT_EQ(prints({kOrigin, "open=" + d_ + "/data/f", "open=f", "open=./sub/../f", "open=sub/g"}),
            "shared data\nshared data\nshared data\nshared sub\n");
}

TEST_F(RunTest, PathsOfOtherNodesAndOfTheMountOpenTheFileOfTheMount) {
  EXPECT_EQ(prints({kRemote, "open=/far/away/f", "open=" + d_ + "/mnt/far/f",
                    "chdir=" + d_ + "/mnt", "open=data/f"}),
            "shared far\nshared far\nshared data\n");
}

TEST_F(RunTest, OpensWithoutTheFlagAreLocal) {
  EXPECT_EQ(prints({"open=f", "raw=f", "flags=0x8", "open=f"}), "LOCAL\nLOCAL\nLOCAL\n");
}

TEST_F(RunTest, StaticProgramsAndRawSystemCallsWork) {
  probe_ = PROBE_STATIC;
  EXPECT_EQ(prints({kOrigin, "open=f", "raw=f", "thread=f"}),
            "shared data\nshared data\nshared data\n");
}

#ifdef __x86_64__
TEST_F(RunTest, EveryAbiOfTheKernelIsServed) {
  EXPECT_EQ(prints({kOrigin, "rawopen=f", "x32=f"}), "shared data\nshared data\n");
  Outcome o = run({kOrigin, "i386=f"});
  if (o.out == "no i386\n") GTEST_SKIP() << "this kernel runs no i386 calls";
  EXPECT_EQ(o.out, "shared data\n") << o.err;
}
#endif

TEST_F(RunTest, ThreadsChildrenAndExecutedProgramsAreServed) {
  EXPECT_EQ(prints({kOrigin, "thread=f", "fork=f", "exec=" PROBE, kOrigin, "open=f"}),
            "shared data\nshared data\nshared data\n");
}

TEST_F(RunTest, ManyThreadsAreServedAtOnce) {
  std::string all;
  for (int i = 0; i < 16; ++i) all += "shared data\n";
  EXPECT_EQ(prints({kOrigin, "threads=f"}), all);
}

TEST_F(RunTest, AnInterruptedAnswerNeverIsAnotherDescriptor) {
  EXPECT_EQ(prints({kOrigin, "hammer=f"}), "0 wrong descriptors\n");
}

TEST_F(RunTest, DirectoryDescriptorsAndWorkingDirectories) {
  EXPECT_EQ(prints({kOrigin, "dir=" + d_ + "/data/sub", "openat=g", "openat=../f",
                    "openat=" + d_ + "/data/f", "chdir=sub", "open=g"}),
            "shared sub\nshared data\nshared data\nshared sub\n");
  EXPECT_EQ(
      prints({kOrigin, "dirfd=77", "openat=f", "dirfd=-5", "openat=f", "openat=" + d_ + "/data/f"}),
      "error EBADF\nerror EBADF\nshared data\n");
  EXPECT_EQ(prints({"open=f", kOrigin, "dirfd=3", "openat=f"}), "LOCAL\nerror ENOTDIR\n");
  fs::create_directory(d_ + "/data/gone");
  EXPECT_EQ(prints({kOrigin, "chdir=" + d_ + "/data/gone", "rmdir=" + d_ + "/data/gone", "open=f"}),
            "error ENOENT\n");
  fs::create_directory(d_ + "/data/x (deleted)");
  fs::create_directory(d_ + "/mnt/data/x (deleted)");
  put("mnt/data/x (deleted)/f", "an honest name");
  EXPECT_EQ(prints({kOrigin, "chdir=" + d_ + "/data/x (deleted)", "open=f"}), "an honest name\n");
}

TEST_F(RunTest, FlagsOfTheDescriptorAreTheCallers) {
  EXPECT_EQ(prints({"flags=0x12", "open=" + d_ + "/mnt/data/f", "cloexec=", "access="}),
            "shared data\ncloexec 0\naccess 02\n");
  EXPECT_EQ(prints({"flags=0x80c10", "open=" + d_ + "/mnt/data/f", "cloexec=", "access="}),
            "shared data\ncloexec 1\naccess 06000\n");
}

TEST_F(RunTest, OPathIsRefusedWithItsReason) {
  Outcome o = run({"flags=0x200010", "open=" + d_ + "/mnt/data/f"});
  EXPECT_EQ(o.out, "error EINVAL\n");
  EXPECT_THAT(o.err, HasSubstr("O_PATH"));
}

TEST_F(RunTest, AnswersOfTheFileSystemArePassedOnQuietly) {
  EXPECT_EQ(prints({kOrigin, "open=none", "open=f/", "open=f/x", "flags=0x19", "open=sub",
                    "flags=0xd9", "open=f", "badpointer=", "open="}),
            "error ENOENT\nerror ENOTDIR\nerror ENOTDIR\nerror EISDIR\nerror EEXIST\nerror "
            "EFAULT\nerror ENOENT\n");
  EXPECT_EQ(prints({kOrigin, "open=" + std::string(5000, 'x')}), "error ENAMETOOLONG\n");
}

TEST_F(RunTest, Openat2RefusesTheBitItself) {
  EXPECT_EQ(prints({kOrigin, "openat2=f"}), "error EINVAL\n");
}

TEST_F(RunTest, FilesAreCreatedWithTheCallersModeAndUmask) {
  EXPECT_EQ(prints({"flags=0x59", "mode=666", "umask=027", "open=new1", "umask=0", "open=new2",
                    "umask=077", "fork=new3"}),
            "-\n-\n-\n");
  EXPECT_EQ(mode_of("mnt/data/new1"), 0640u);
  EXPECT_EQ(mode_of("mnt/data/new2"), 0666u);
  EXPECT_EQ(mode_of("mnt/data/new3"), 0600u);
  EXPECT_FALSE(fs::exists(d_ + "/data/new1"));
}

TEST_F(RunTest, RefusalsSayWhyAndOpenNothing) {
  Outcome o = run({kRemote, "open=f"});
  EXPECT_EQ(o.out, "error EINVAL\n");
  EXPECT_THAT(o.err, MatchesRegex("vremote run: open\\(\"f\", O_REMOTE\\): .*add O_ORIGIN.*\n"));
  o = run({kOrigin, "open=/far/away/f"});
  EXPECT_EQ(o.out, "error EINVAL\n");
  EXPECT_THAT(
      o.err,
      MatchesRegex(
          "vremote run: open\\(\"/far/away/f\", O_REMOTE.O_ORIGIN\\): .*leave out O_ORIGIN.*\n"));
  o = run({"flags=0x51", "open=" + d_ + "/elsewhere/new", "flags=0x18", "open=" + d_ + "/data2"});
  EXPECT_EQ(o.out, "error ENXIO\nerror ENXIO\n");
  EXPECT_THAT(o.err, HasSubstr("not inside any export"));
  EXPECT_FALSE(fs::exists(d_ + "/elsewhere/new"));
}

TEST_F(RunTest, AMountThatIsNotMountedIsNeverWrittenTo) {
  Outcome o = run({kWriteCreate, "open=" + d_ + "/mnt/data/new"}, {"--mounted"});
  EXPECT_EQ(o.out, "error ENXIO\n");
  EXPECT_THAT(o.err, HasSubstr("is not mounted"));
  EXPECT_FALSE(fs::exists(d_ + "/mnt/data/new"));
}

TEST_F(RunTest, APeerThatConnectsLaterIsFound) {
  fs::create_directory(d_ + "/mnt/late");
  put("mnt/late/f", "late data");
  EXPECT_EQ(prints({kRemote, "open=/late/export/f"}, {"--reload"}), "late data\n");
}

TEST_F(RunTest, LinksNeverLeadToLocalFiles) {
  fs::create_symlink("/etc/passwd", d_ + "/mnt/data/out");
  fs::create_symlink("../../elsewhere/f", d_ + "/mnt/data/up");
  fs::create_symlink(d_ + "/data/sub/g", d_ + "/mnt/data/in");
  fs::create_symlink("sub", d_ + "/mnt/data/near");
  Outcome o = run({kOrigin, "open=out", "open=up", "open=in", "open=near/g"});
  EXPECT_EQ(o.out, "error ENXIO\nerror ENXIO\nshared sub\nshared sub\n");
  EXPECT_THAT(o.err, HasSubstr("leads out of the export"));
}

TEST_F(RunTest, LocalLinksAreFollowedBeforeExportsAreLookedUp) {
  fs::create_symlink(d_ + "/data", d_ + "/elsewhere/link");
  fs::create_symlink(d_ + "/elsewhere/f", d_ + "/data/leaves");
  Outcome o = run({kOrigin, "open=" + d_ + "/elsewhere/link/f", "open=leaves"});
  EXPECT_EQ(o.out, "shared data\nerror ENXIO\n") << o.err;
  fs::create_symlink("f", d_ + "/data/last");
  EXPECT_EQ(prints({"flags=0x20018", "open=last"}), "error ENOENT\n")
      << "O_NOFOLLOW asks for the name itself";
}

TEST_F(RunTest, ProcSelfIsTheCallersOwn) {
  EXPECT_EQ(prints({"open=f", kOrigin, "open=/proc/self/fd/3", "open=/dev/fd/3",
                    "open=/proc/self/cwd/f"}),
            "LOCAL\nshared data\nshared data\nshared data\n");
}

TEST_F(RunTest, ChrootConfinesTheWordsOfTheCaller) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root";
  probe_ = PROBE_STATIC;
  fs::create_symlink("/data", d_ + "/link");
  EXPECT_EQ(prints({"chroot=" + d_, kOrigin, "open=/data/f", "open=data/f", "open=/../../data/f",
                    "open=/link/f"}),
            "shared data\nshared data\nshared data\nshared data\n");
  EXPECT_EQ(run({"chroot=" + d_ + "/elsewhere", kOrigin, "open=" + d_ + "/data/f"}).out,
            "error ENXIO\n");
}

TEST_F(RunTest, AnotherMountNamespaceIsLookedUpInItsOwnView) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root";
  EXPECT_EQ(prints({"unshare=", kOrigin, "open=" + d_ + "/data/f", "open=f"}),
            "shared data\nshared data\n");
}

TEST_F(RunTest, PermissionsAreTheCallers) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root";
  fs::permissions(d_ + "/mnt/data/f", fs::perms(0600));
  fs::permissions(d_ + "/mnt/far", fs::perms(0777));
  EXPECT_EQ(prints({kOrigin, "open=f", "uid=1234", "open=f", "flags=0x51", "open=/far/away/mine"}),
            "shared data\nerror EACCES\n-\n");
  struct stat st {};
  ASSERT_EQ(::stat((d_ + "/mnt/far/mine").c_str(), &st), 0);
  EXPECT_EQ(st.st_uid, 1234u);
  EXPECT_EQ(st.st_gid, 1234u);
  EXPECT_EQ(prints({"fork=f", kOrigin, "fork=f"}), "LOCAL\nshared data\n")
      << "the worker is itself again";
}

TEST_F(RunTest, WorksWithoutPrivileges) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root to give it up";
  Outcome o =
      run({kOrigin, "open=f", "fork=f", "flags=0x51", "open=" + d_ + "/mnt/far/new"}, {}, 65534);
  if (o.exit() == 82) GTEST_SKIP() << "the build directory is not readable for others";
  EXPECT_EQ(o.out, "shared data\nshared data\nerror EACCES\n") << o.err;
}

TEST_F(RunTest, AFullDescriptorTableLeavesFilesAlone) {
  EXPECT_EQ(prints({"nofile=3", kOrigin, "open=f", "flags=0x219", "open=f", "flags=0x59",
                    "open=new", "nofile=4", kOrigin, "open=f"}),
            "error EMFILE\nerror EMFILE\nerror EMFILE\nerror EMFILE\n");
  EXPECT_EQ(get("mnt/data/f"), "shared data\n");
  EXPECT_FALSE(fs::exists(d_ + "/mnt/data/new"));
}

TEST_F(RunTest, ASlowOpenSurvivesAStormOfSignalsAndHoldsUpNobody) {
  ASSERT_EQ(::mkfifo((d_ + "/mnt/far/fifo").c_str(), 0600), 0);
  // The reader's open waits for the writer's, which is served meanwhile.
  EXPECT_EQ(prints({"storm=/far/away/fifo,/far/away/f"}), "through the pipe\n");
}

TEST_F(RunTest, AnOpenWhoseCallerDiedIsInterrupted) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root to look into the supervisor";
  ASSERT_EQ(::mkfifo((d_ + "/mnt/far/fifo").c_str(), 0600), 0);
  EXPECT_EQ(prints({"abandon=/far/away/fifo"}), "interrupted\n");
}

TEST_F(RunTest, IoUringIsDeniedUnlessAllowed) {
  EXPECT_EQ(prints({"uring="}), "ENOSYS\n");
  Outcome plain = Running({PROBE, "uring="}, "/", 0).finish();
  EXPECT_EQ(prints({"uring="}, {"--io-uring"}), plain.out);
}

TEST_F(RunTest, TheOriginalExamplePrintsItsFileAndLeavesItWhole) {
  put("data/hello.txt", "the origin's own");
  put("mnt/data/hello.txt", "hello from the mount");
  Outcome o = run_command({ORIGINAL});
  EXPECT_EQ(o.out, "hello from the mount\n") << o.err;
  EXPECT_EQ(o.exit(), 0);
  EXPECT_EQ(get("data/hello.txt"), "the origin's own\n");
  EXPECT_EQ(get("mnt/data/hello.txt"), "hello from the mount\n");
  o = run_command({ORIGINAL, "/far/away/f", "remote"});
  EXPECT_EQ(o.out, "shared far\n") << o.err;
}

TEST_F(RunTest, ExitStatusAndSignalsOfTheCommandAreItsOwn) {
  EXPECT_EQ(run({"exit=0"}).exit(), 0);
  EXPECT_EQ(run({"exit=77"}).exit(), 77);
  EXPECT_EQ(run({"kill=15"}).signal(), SIGTERM);
  EXPECT_EQ(run({"kill=9"}).signal(), SIGKILL);
  EXPECT_EQ(run({"kill=11"}).signal(), SIGSEGV);
  Outcome o = run_command({"vremote-no-such-command"});
  EXPECT_EQ(o.exit(), 127);
  EXPECT_THAT(o.err, HasSubstr("vremote-no-such-command: command not found"));
  o = run_command({d_ + "/data/f"});
  EXPECT_EQ(o.exit(), 126);
  EXPECT_THAT(o.err, HasSubstr("Permission denied"));
}

TEST_F(RunTest, SignalsAreHandedOnAndMasksRestored) {
  EXPECT_EQ(prints({"mask="}), "blocked 0 0\n");
  Running running(command({PROBE, "wait-term="}), d_, 0);
  EXPECT_EQ(running.line(), "ready");
  ::kill(running.pid(), SIGTERM);
  EXPECT_EQ(running.finish().exit(), 42);
}

TEST_F(RunTest, KillingTheCallerKillsTheCommand) {
  Running running(command({PROBE, "wait-term="}), d_, 0);
  EXPECT_EQ(running.line(), "ready");
  ::kill(running.pid(), SIGKILL);
  EXPECT_EQ(running.finish().signal(),
            SIGKILL);  // its end of the pipes would stay open if it lived on
}

TEST_F(RunTest, AStoppedCommandStopsItsCallerAndGoesOnWithIt) {
  Running running(command({PROBE, "kill=19", kOrigin, "open=f", "exit=7"}), d_ + "/data", 0);
  int status = 0;
  ASSERT_EQ(::waitpid(running.pid(), &status, WUNTRACED), running.pid());
  ASSERT_TRUE(WIFSTOPPED(status));
  ::kill(running.pid(), SIGCONT);
  Outcome o = running.finish();
  EXPECT_EQ(o.exit(), 7);
  EXPECT_EQ(o.out, "shared data\n");
}

TEST_F(RunTest, BackgroundChildrenAreServedAfterTheCommandsEnd) {
  std::string go = d_ + "/go", out = d_ + "/out";
  ASSERT_EQ(::mkfifo(go.c_str(), 0600), 0);
  // finish() reads both pipes to their ends: nobody that lives on may hold them.
  Outcome o = run({kOrigin, "background=" + go + "," + d_ + "/data/f," + out, "exit=5"});
  EXPECT_EQ(o.exit(), 5) << o.err;
  EXPECT_FALSE(fs::exists(out));
  Fd writer(::open(go.c_str(), O_WRONLY));
  for (int i = 0; i < 10000 && get("out").find('\n') == std::string::npos; ++i) ::usleep(1000);
  EXPECT_EQ(get("out"), "shared data\n");
}

TEST_F(RunTest, ARunInsideARunIsRefusedWithItsReason) {
  Outcome o = run_command(command({"/bin/true"}));
  EXPECT_EQ(o.exit(), 1);
  EXPECT_THAT(o.err, AllOf(HasSubstr("EBUSY"), HasSubstr("leave out the inner one")));
}

}  // namespace
}  // namespace vremote::intercept
