// A daemon that dies or stops: its kernel serves nothing old, loses no store, and lets everybody
// go.
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "faults_support.h"
#include "fuse/mountinfo.h"
#include "node/recovery/recovery_file.h"
#include "posix_mapping.h"

#ifndef SYS_cachestat
#define SYS_cachestat 451  // Linux 6.5
#endif

namespace vremote::live {
namespace {

struct CacheRange {
  uint64_t offset, length;
};
struct CacheStat {
  uint64_t cached, dirty, write_back, evicted, recently_evicted;
};

// Pages of the file in the page cache; -1 when the kernel cannot tell.
int64_t cached_pages(int fd) {
  CacheRange range{0, 0};
  CacheStat stat{};
  return ::syscall(SYS_cachestat, fd, &range, &stat, 0) == 0 ? static_cast<int64_t>(stat.cached)
                                                             : -1;
}

bool waits_in_kernel(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stack");
  std::string stack((std::istreambuf_iterator<char>(file)), {});
  return stack.find("fuse") != std::string::npos || stack.find("folio_wait") != std::string::npos ||
         stack.find("filemap") != std::string::npos ||
         stack.find("d_alloc_parallel") != std::string::npos;  // behind another's lookup
}

bool is_mounted(const std::string& point) {
  auto mount = fuse::mounted_at(point);
  return mount && mount->has_value();
}

int exit_status(pid_t pid) {
  int status = 0;
  ::waitpid(pid, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

// The bytes that the recovery files of a node keep, in one text.
std::string recovered(const Nodes::Node& node) {
  std::string text;
  std::error_code none;
  for (const auto& entry :
       std::filesystem::directory_iterator(node.state_dir + "/recovery", none)) {
    const Fd fd(::open(entry.path().c_str(), O_RDONLY | O_CLOEXEC));
    node::RecoverySummary summary;
    auto header = node::read_recovery(
        fd,
        [&](const node::RecoveryPiece& piece) {
          text.append(reinterpret_cast<const char*>(piece.bytes.data()), piece.bytes.size());
          return Status{};
        },
        summary);
    EXPECT_TRUE(header) << header.error().what;
  }
  return text;
}

class GuardianTest : public FaultsTest {
 protected:
  void SetUp() override {
    const Fd fd(::open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
    if (cached_pages(fd.get()) < 0) GTEST_SKIP() << "this kernel has no cachestat(2) (Linux 6.5)";
  }
};

TEST_F(GuardianTest, ADeadDaemonsKernelServesNothingOld) {
  nodes().start_all();
  ASSERT_EQ(0, put(nodes().path(0, 0, "f"), std::string(300'000, 'a')));
  ASSERT_EQ(300'000u, read_all(nodes().path(1, 0, "f")).size());
  const Fd fd(::open(nodes().path(1, 0, "f").c_str(), O_RDONLY | O_CLOEXEC));
  void* mapped = ::mmap(nullptr, 4096, PROT_READ, MAP_SHARED, fd.get(), 0);
  ASSERT_NE(mapped, MAP_FAILED);
  ASSERT_EQ('a', *static_cast<char*>(mapped));
  ASSERT_GT(cached_pages(fd.get()), 0);
  nodes().signal(1, SIGKILL);
  nodes().wait_for_end(1);
  EXPECT_TRUE(eventually([&] { return cached_pages(fd.get()) == 0; })) << nodes().log(1);
  // Who asks now waits, and can be killed.
  const pid_t reader = in_child([&] {
    char byte = 0;
    return ::pread(fd.get(), &byte, 1, 0) == 1 ? 1 : 0;
  });
  const pid_t looker = in_child([&] { return exists(nodes().path(1, 0, "f")) ? 1 : 0; });
  const pid_t loader =
      in_child([&] { return *static_cast<volatile char*>(mapped) == 'a' ? 1 : 0; });
  for (pid_t pid : {reader, looker, loader}) {
    EXPECT_TRUE(eventually([&] { return waits_in_kernel(pid); }));
    EXPECT_EQ(0, ::waitpid(pid, nullptr, WNOHANG)) << "it got something";
    ::kill(pid, SIGKILL);
    EXPECT_EQ(-SIGKILL, exit_status(pid));
  }
  ::munmap(mapped, 4096);
  // The next daemon takes the place.
  nodes().start(1);
  EXPECT_TRUE(eventually([&] { return nodes().connected(1); })) << nodes().log(1);
  EXPECT_EQ(300'000u, read_all(nodes().path(1, 0, "f")).size());
  // Also one that starts before its guardian can know.
  nodes().signal(1, SIGKILL);
  nodes().wait_for_end(1);
  nodes().start(1);
  EXPECT_TRUE(eventually([&] { return nodes().connected(1); })) << nodes().log(1);
  EXPECT_EQ(300'000u, read_all(nodes().path(1, 0, "f")).size());
}

TEST_F(GuardianTest, StoresInMappingsOfADeadDaemonAreKept) {
  nodes().start_all();
  ASSERT_EQ(0, put(nodes().path(0, 0, "f"), std::string(8192, 'a')));
  Fd fd(::open(nodes().path(1, 0, "f").c_str(), O_RDWR | O_CLOEXEC));
  const Mapping mapping(fd, 8192, kBoth);
  if (!mapping.valid() && errno == ENODEV) GTEST_SKIP() << "no shared writable mappings";
  ASSERT_TRUE(mapping.valid());
  char* const mapped = mapping.at();
  std::strcpy(mapped + 4096, "stored and not flushed");
  nodes().signal(1, SIGKILL);
  nodes().wait_for_end(1);
  EXPECT_TRUE(eventually([&] {
    return recovered(nodes().at(1)).find("stored and not flushed") != std::string::npos;
  })) << nodes().log(1);
}

TEST_F(GuardianTest, AStoppedDaemonIsPurgedWhenItsLeaseIsOverAndGoesOnAsIfSlow) {
  nodes().start_all();
  ASSERT_EQ(0, put(nodes().path(0, 0, "f"), std::string(100'000, 'a')));
  ASSERT_EQ(0, put(nodes().path(0, 0, "m"), std::string(8192, 'a')));
  ASSERT_EQ(100'000u, read_all(nodes().path(1, 0, "f")).size());
  const Fd fd(::open(nodes().path(1, 0, "f").c_str(), O_RDONLY | O_CLOEXEC));
  ASSERT_GT(cached_pages(fd.get()), 0);
  Fd writing(::open(nodes().path(1, 0, "m").c_str(), O_RDWR | O_CLOEXEC));
  auto* mapped = static_cast<char*>(
      ::mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, writing.get(), 0));
  if (mapped != MAP_FAILED) std::strcpy(mapped, "stored in a mapping");
  nodes().signal(1, SIGSTOP);
  // What was asked and not answered, and what is asked while nobody answers: both go on later.
  const pid_t looker = in_child([&] { return exists(nodes().path(1, 0, "never seen")) ? 1 : 0; });
  EXPECT_TRUE(eventually([&] { return cached_pages(fd.get()) == 0; })) << nodes().log(1);
  const pid_t maker = in_child([&] { return put(nodes().path(1, 0, "made"), "made"); });
  const pid_t reader =
      in_child([&] { return read_all(nodes().path(1, 0, "f")).size() == 100'000 ? 0 : 1; });
  EXPECT_TRUE(eventually([&] { return waits_in_kernel(maker) && waits_in_kernel(reader); }));
  // Not behind another's lookup: the kernel lets nobody go from there.
  const pid_t killed = in_child([&] { return exists(nodes().path(1, 1, "other")) ? 1 : 0; });
  EXPECT_TRUE(eventually([&] { return waits_in_kernel(killed); }));
  ::usleep(300'000);  // the guardian has read it by now, most likely; both ways it must end
  ::kill(killed, SIGKILL);
  EXPECT_EQ(-SIGKILL, exit_status(killed));
  nodes().signal(1, SIGCONT);
  EXPECT_EQ(0, exit_status(looker));
  EXPECT_EQ(0, exit_status(maker)) << nodes().log(1);
  EXPECT_EQ(0, exit_status(reader)) << nodes().log(1);
  EXPECT_EQ("made", read_all(nodes().path(0, 0, "made")));
  if (mapped != MAP_FAILED) {
    EXPECT_EQ(0, std::memcmp(read_all(nodes().path(0, 0, "m")).data(), "stored in a mapping", 19))
        << nodes().log(1);
    ::munmap(mapped, 8192);
  }
  // When the daemon says that it has all of it.
  EXPECT_TRUE(eventually([&] { return recovered(nodes().at(1)).empty(); })) << nodes().log(1);
}

// K8: the kernel drops no dirty page of a file while a truncation of it is not answered.
TEST_F(GuardianTest, AStoppedDaemonsTruncationDoesNotKeepItsPages) {
  nodes(2, "[lease]\nterm_ms = 6000\n").start_all();
  ASSERT_EQ(0, put(nodes().path(0, 0, "m"), std::string(8192, 'a')));
  const Fd fd(::open(nodes().path(1, 0, "m").c_str(), O_RDWR | O_CLOEXEC));
  const Mapping mapping(fd, 8192, kBoth);
  if (!mapping.valid() && errno == ENODEV) GTEST_SKIP() << "no shared writable mappings";
  ASSERT_TRUE(mapping.valid());
  char* const mapped = mapping.at();
  std::strcpy(mapped, "stored in a mapping");
  nodes().signal(0, SIGSTOP);
  const pid_t truncating = in_child([&] { return ::ftruncate(fd.get(), 4096) == 0 ? 0 : errno; });
  ASSERT_TRUE(
      eventually([&] { return nodes().ask(1, "blocked").find("truncate") != std::string::npos; }));
  nodes().signal(1, SIGSTOP);
  const int error = exit_status(truncating);
  EXPECT_TRUE(error == EIO || error == EINTR) << error << nodes().log(1);
  EXPECT_TRUE(eventually([&] { return cached_pages(fd.get()) == 0; })) << nodes().log(1);
  nodes().signal(0, SIGCONT);
  nodes().signal(1, SIGCONT);
  EXPECT_EQ(0, std::strcmp(mapped, "stored in a mapping"));
  EXPECT_TRUE(eventually([&] {
    return read_all(nodes().path(0, 0, "m")).starts_with("stored in a mapping");
  })) << nodes().log(1);
  EXPECT_EQ(0, ::ftruncate(fd.get(), 100)) << nodes().log(1);
  EXPECT_EQ(100u, read_all(nodes().path(0, 0, "m")).size());
}

// An open with O_TRUNC is no such truncation: the kernel cuts its pages behind the answer, and
// until then writes back as ever. So it need not end for the pages' sake.
TEST_F(GuardianTest, AStoppedDaemonsOpenThatTruncatesKeepsNoPages) {
  nodes(2, "[lease]\nterm_ms = 6000\n").start_all();
  ASSERT_EQ(0, put(nodes().path(0, 0, "m"), std::string(8192, 'a')));
  const Fd fd(::open(nodes().path(1, 0, "m").c_str(), O_RDWR | O_CLOEXEC));
  const Mapping mapping(fd, 8192, kBoth);
  if (!mapping.valid() && errno == ENODEV) GTEST_SKIP() << "no shared writable mappings";
  ASSERT_TRUE(mapping.valid());
  std::strcpy(mapping.at(), "stored in a mapping");
  nodes().signal(0, SIGSTOP);
  const pid_t truncating = in_child([&] {
    const Fd cut(::open(nodes().path(1, 0, "m").c_str(), O_WRONLY | O_TRUNC | O_CLOEXEC));
    return cut.valid() ? 0 : errno;
  });
  ASSERT_TRUE(
      eventually([&] { return nodes().ask(1, "blocked").find("truncate") != std::string::npos; }));
  nodes().signal(1, SIGSTOP);
  EXPECT_TRUE(eventually([&] { return cached_pages(fd.get()) == 0; })) << nodes().log(1);
  EXPECT_TRUE(eventually([&] { return nodes().log(1).find("inodes purged") != std::string::npos; }))
      << nodes().log(1);
  EXPECT_EQ(0, ::waitpid(truncating, nullptr, WNOHANG)) << "it need not end";
  nodes().signal(0, SIGCONT);
  nodes().signal(1, SIGCONT);
  // The daemon's leases were over, and it may say so.
  const int error = exit_status(truncating);
  EXPECT_TRUE(error == 0 || error == EIO) << error << nodes().log(1);
  const Fd cut(::open(nodes().path(1, 0, "m").c_str(), O_WRONLY | O_TRUNC | O_CLOEXEC));
  EXPECT_TRUE(cut.valid()) << std::strerror(errno) << nodes().log(1);
  EXPECT_EQ(0u, read_all(nodes().path(0, 0, "m")).size());
}

TEST_F(GuardianTest, WhoDoesNotWantToWaitGetsAnErrorFromTheGuardian) {
  nodes(2, "[lease]\nterm_ms = 2000\nsoft_timeout_ms = 1000\n").start_all();
  ASSERT_EQ(0, put(nodes().path(0, 0, "f"), std::string(100'000, 'a')));
  ASSERT_EQ(100'000u, read_all(nodes().path(1, 0, "f")).size());
  const Fd fd(::open(nodes().path(1, 0, "f").c_str(), O_RDONLY | O_CLOEXEC));
  nodes().signal(1, SIGSTOP);
  ASSERT_TRUE(eventually([&] { return cached_pages(fd.get()) == 0; })) << nodes().log(1);
  const auto error_of = [](bool done) { return done ? 0 : errno; };
  const pid_t maker = in_child([&] {
    return error_of(::open(nodes().path(1, 0, "made").c_str(), O_CREAT | O_WRONLY, 0644) >= 0);
  });
  const pid_t reader = in_child([&] {
    char byte = 0;
    return error_of(::pread(fd.get(), &byte, 1, 0) == 1);
  });
  EXPECT_EQ(EIO, exit_status(maker)) << nodes().log(1);
  EXPECT_EQ(EIO, exit_status(reader)) << nodes().log(1);
  nodes().signal(1, SIGCONT);
  // As if nothing had been; the call that got an error has not been done either.
  EXPECT_TRUE(eventually([&] { return read_all(nodes().path(1, 0, "f")).size() == 100'000; }));
  EXPECT_FALSE(exists(nodes().path(0, 0, "made")));
}

// The whole promise: when another node's write has returned, the old value is nowhere.
TEST_F(GuardianTest, AStoppedNodeLoadsNothingThatAnotherHasChanged) {
  nodes(2, "[lease]\nterm_ms = 6000\n").start_all();
  ASSERT_EQ(0, put(nodes().path(0, 0, "f"), std::string(4096, 'a')));
  const Fd fd(::open(nodes().path(1, 0, "f").c_str(), O_RDONLY | O_CLOEXEC));
  auto* mapped =
      static_cast<volatile char*>(::mmap(nullptr, 4096, PROT_READ, MAP_SHARED, fd.get(), 0));
  ASSERT_NE(mapped, MAP_FAILED);
  ASSERT_EQ('a', *mapped);
  ASSERT_GT(cached_pages(fd.get()), 0);
  nodes().signal(1, SIGSTOP);
  ASSERT_EQ(0, put(nodes().path(0, 0, "f"), std::string(4096, 'b')));  // waits for the term
  EXPECT_EQ(0, cached_pages(fd.get())) << nodes().log(1);
  const pid_t loader = in_child([&] { return *mapped == 'b' ? 0 : 1; });
  const pid_t reader = in_child([&] {
    char byte = 0;
    return ::pread(fd.get(), &byte, 1, 0) == 1 && byte == 'b' ? 0 : 1;
  });
  EXPECT_TRUE(eventually([&] { return waits_in_kernel(loader) && waits_in_kernel(reader); }));
  nodes().signal(1, SIGCONT);
  EXPECT_EQ(0, exit_status(loader)) << nodes().log(1);
  EXPECT_EQ(0, exit_status(reader)) << nodes().log(1);
  ::munmap(const_cast<char*>(mapped), 4096);
}

TEST_F(GuardianTest, WithoutANextDaemonTheConnectionEnds) {
  nodes(2, "[guardian]\nrestart_wait_s = 1\n").start_all();
  ASSERT_EQ(0, put(nodes().path(0, 0, "f"), "x"));
  nodes().signal(1, SIGKILL);
  const pid_t looker = in_child([&] { return exists(nodes().path(1, 0, "f")) ? 1 : 0; });
  nodes().wait_for_end(1);
  EXPECT_TRUE(eventually([&] { return !is_mounted(nodes().at(1).mount); })) << nodes().log(1);
  EXPECT_EQ(0, exit_status(looker));
  EXPECT_TRUE(eventually(
      [&] { return nodes().log(1).find("no daemon came within") != std::string::npos; }));
}

// The process that a daemon has forked.
pid_t child_of(pid_t pid) {
  std::ifstream list("/proc/" + std::to_string(pid) + "/task/" + std::to_string(pid) + "/children");
  pid_t child = 0;
  list >> child;
  return child;
}

TEST_F(GuardianTest, ADaemonWithoutItsGuardianGoesOnAndSaysSo) {
  nodes().start_all();
  const pid_t guardian = child_of(nodes().at(1).pid);
  ASSERT_GT(guardian, 0);
  EXPECT_NE(nodes().ask(1, "status").find("\"guarded\":1"), std::string::npos);
  ::kill(guardian, SIGKILL);
  EXPECT_TRUE(eventually(
      [&] { return nodes().ask(1, "status").find("\"guarded\":0") != std::string::npos; }));
  EXPECT_NE(nodes().log(1).find("the guardian has ended"), std::string::npos);
  ASSERT_EQ(0, put(nodes().path(1, 0, "f"), "still served"));
  EXPECT_EQ("still served", read_all(nodes().path(0, 0, "f")));
  nodes().signal(1, SIGTERM);
  const int status = nodes().wait_for_end(1);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

TEST_F(GuardianTest, AGuardianEndsWithItsDaemon) {
  nodes().start_all();
  const pid_t guardian = child_of(nodes().at(1).pid);
  ASSERT_GT(guardian, 0);
  nodes().signal(1, SIGTERM);
  const int status = nodes().wait_for_end(1);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  EXPECT_NE(0, ::kill(guardian, 0));
  EXPECT_FALSE(is_mounted(nodes().at(1).mount));
}

TEST_F(GuardianTest, UnmountingWorksWithoutADaemon) {
  nodes().start_all();
  ASSERT_EQ(0, put(nodes().path(1, 0, "f"), "x"));
  nodes().signal(1, SIGKILL);
  nodes().wait_for_end(1);
  // umount(8) as people type it.
  const pid_t umount = in_child([&] {
    ::execlp("umount", "umount", nodes().at(1).mount.c_str(), nullptr);
    return 127;
  });
  EXPECT_EQ(0, exit_status(umount));
  EXPECT_FALSE(is_mounted(nodes().at(1).mount));
}

// The descriptors that a process has of files of this size without a name.
size_t nameless_files_of(pid_t pid, off_t size) {
  size_t found = 0;
  std::error_code none;
  for (const auto& fd :
       std::filesystem::directory_iterator("/proc/" + std::to_string(pid) + "/fd", none)) {
    struct stat st {};
    if (::stat(fd.path().c_str(), &st) == 0 && S_ISREG(st.st_mode) && st.st_nlink == 0 &&
        st.st_size == size)
      ++found;
  }
  return found;
}

TEST_F(FaultsTest, AFileWithoutANameGoesWithTheSessionOfItsNode) {
  constexpr off_t kSize = 54'321;
  nodes().start_all();
  Fd fd = open_at(nodes().path(1, 0), O_TMPFILE | O_RDWR, 0600);
  if (!fd.valid() && errno == EOPNOTSUPP) GTEST_SKIP() << "this kernel makes none (Linux 6.2)";
  ASSERT_TRUE(fd.valid()) << strerror(errno);
  ASSERT_EQ(0, ::ftruncate(fd.get(), kSize));
  EXPECT_LE(1u, nameless_files_of(nodes().at(0).pid, kSize));
  nodes().signal(1, SIGKILL);
  nodes().wait_for_end(1);
  // While nobody is there to be told. Without it the file would still be open (crash_test.cc).
  fd.reset();
  nodes().start(1);
  EXPECT_TRUE(eventually([&] { return nodes().connected(1); }));
  EXPECT_TRUE(eventually([&] { return nameless_files_of(nodes().at(0).pid, kSize) == 0; }));
}

}  // namespace
}  // namespace vremote::live
