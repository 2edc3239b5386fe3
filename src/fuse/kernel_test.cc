// Channel and Mount against the kernel this runs on.
#include <dirent.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <optional>
#include <set>
#include <string>
#include <thread>

#include "fuse/kernel_test_support.h"
#include "fuse/mount.h"
#include "fuse/mountinfo.h"
#include "fuse/own_view.h"
#include "fuse/probe.h"

namespace vremote::fuse {
namespace {

using testing::kFileInode;
using testing::kFileName;
using testing::kFileNode;
using testing::OneFile;
using Event = OneFile::Event;

constexpr int kWatchdogSeconds = 25;
constexpr size_t kSize = 64 * 1024;

std::string pattern(size_t size) {
  std::string text(size, 0);
  for (size_t i = 0; i < size; ++i) text[i] = static_cast<char>('a' + (i * 7 + i / 4096) % 26);
  return text;
}

class FuseKernelTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const std::string why = testing::why_no_mounts(); !why.empty())
      GTEST_SKIP() << "no FUSE mount here: " << why;
    scratch_.emplace();
    watchdog_.emplace(scratch_->point(), kWatchdogSeconds);
  }

  // Mounts and serves until the INIT is answered.
  void start() {
    auto mounted = Mount::mount(scratch_->point(), {});
    ASSERT_TRUE(mounted) << mounted.error().what;
    mount_.emplace(std::move(*mounted));
    fs_.serve(mount_->take_channel());
    ASSERT_TRUE(fs_.wait_for(
        [](const auto& events) { return !events.empty() && events[0].what == "init"; }));
  }

  void TearDown() override {
    if (mount_) {
      const auto how = mount_->unmount();  // while it is still served
      EXPECT_TRUE(how) << how.error().what;
    }
    fs_.stop();
    mount_.reset();
    watchdog_.reset();
    scratch_.reset();
  }

  std::string file() const { return scratch_->point() + "/" + kFileName; }
  Fd open(int flags) const { return Fd(::open(file().c_str(), flags | O_CLOEXEC)); }

  static std::string read(const Fd& fd, size_t size, off_t offset) {
    std::string text(size, 0);
    const ssize_t length = ::pread(fd.get(), text.data(), size, offset);
    EXPECT_GE(length, 0) << errno;
    text.resize(static_cast<size_t>(std::max<ssize_t>(length, 0)));
    return text;
  }

  OneFile fs_{pattern(kSize)};
  std::optional<testing::Scratch> scratch_;
  std::optional<testing::Watchdog> watchdog_;
  std::optional<Mount> mount_;
};

TEST_F(FuseKernelTest, MountsNegotiatesAndReadsTheFile) {
  ASSERT_NO_FATAL_FAILURE(start());
  const Negotiation n = fs_.negotiation();
  EXPECT_GE(n.capabilities.minor, kProtocolMinorMin);
  EXPECT_EQ(n.capabilities.max_write, n.capabilities.max_pages * 4096);
  const auto entry = mounted_at(mount_->path());
  ASSERT_TRUE(entry && *entry);
  EXPECT_EQ((*entry)->minor, mount_->connection_id());
  EXPECT_EQ((*entry)->source, "vremote");
  struct stat st {};
  ASSERT_EQ(::stat(file().c_str(), &st), 0);
  EXPECT_EQ(st.st_ino, kFileInode);
  EXPECT_EQ(gnu_dev_minor(st.st_dev), mount_->connection_id());
  const Fd fd = open(O_RDONLY);
  EXPECT_EQ(read(fd, kSize + 1, 0), pattern(kSize));
}

TEST_F(FuseKernelTest, CachedHandlesAreReadByFillsWritableOnesDirectly) {
  ASSERT_NO_FATAL_FAILURE(start());
  const Fd cached = open(O_RDONLY);
  EXPECT_EQ(read(cached, 100, 0), pattern(kSize).substr(0, 100));
  auto reads = fs_.events("read");
  ASSERT_FALSE(reads.empty());
  EXPECT_TRUE(std::ranges::all_of(reads, &Event::fill));

  const size_t before = reads.size();
  const Fd direct = open(O_RDWR);
  EXPECT_EQ(read(direct, 100, 5), pattern(kSize).substr(5, 100));
  reads = fs_.events("read");
  ASSERT_EQ(reads.size(), before + 1);
  EXPECT_FALSE(reads.back().fill);
  EXPECT_EQ(reads.back().offset, 5u);
  EXPECT_EQ(reads.back().size, 100u);
}

TEST_F(FuseKernelTest, ASecondReadIsNoUpcallUntilThePurge) {
  ASSERT_NO_FATAL_FAILURE(start());
  const Fd fd = open(O_RDONLY);
  read(fd, kSize, 0);
  const size_t filled = fs_.count("read");
  read(fd, kSize, 0);
  EXPECT_EQ(fs_.count("read"), filled);

  ASSERT_TRUE(fs_.channel().invalidate_data(kFileNode, 4096, 4096));
  EXPECT_EQ(read(fd, 10, 0), pattern(kSize).substr(0, 10));
  EXPECT_EQ(fs_.count("read"), filled);  // the page before is still there
  EXPECT_EQ(read(fd, 10, 4096), pattern(kSize).substr(4096, 10));
  const auto reads = fs_.events("read");
  ASSERT_EQ(reads.size(), filled + 1);
  EXPECT_EQ(reads.back().offset, 4096u);
  EXPECT_TRUE(reads.back().fill);

  ASSERT_TRUE(fs_.channel().invalidate_data(kFileNode, 0, 0));  // to the end
  read(fd, 10, kSize - 10);
  EXPECT_GT(fs_.count("read"), filled + 1);
}

TEST_F(FuseKernelTest, WritesThroughADirectHandleArriveAtOnce) {
  ASSERT_NO_FATAL_FAILURE(start());
  const Fd fd = open(O_WRONLY);
  const std::string big = pattern(kSize * 2);
  ASSERT_EQ(::pwrite(fd.get(), big.data(), big.size(), 100), static_cast<ssize_t>(big.size()));
  const auto writes = fs_.events("write");
  ASSERT_EQ(writes.size(), 1u);
  EXPECT_FALSE(writes[0].write_back);
  EXPECT_EQ(fs_.content().substr(100), big);
}

TEST_F(FuseKernelTest, APurgeBringsMappedStoresAsWriteBacks) {
  ASSERT_NO_FATAL_FAILURE(start());
  if (!fs_.negotiation().capabilities.direct_io_allow_mmap)
    GTEST_SKIP() << "this kernel has no DIRECT_IO_ALLOW_MMAP";
  const Fd fd = open(O_RDWR);
  void* const map = ::mmap(nullptr, kSize, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  ASSERT_NE(map, MAP_FAILED);
  static_cast<volatile char*>(map)[8192] = '!';
  EXPECT_EQ(fs_.count("write"), 0u);
  ASSERT_TRUE(fs_.channel().invalidate_data(kFileNode, 8192, 4096));
  const auto writes = fs_.events("write");
  ASSERT_EQ(writes.size(), 1u);
  EXPECT_TRUE(writes[0].write_back);
  EXPECT_EQ(writes[0].offset, 8192u);
  EXPECT_EQ(fs_.content()[8192], '!');
  ::munmap(map, kSize);
}

TEST_F(FuseKernelTest, DroppedAttributesAndNamesAreAskedForAgain) {
  ASSERT_NO_FATAL_FAILURE(start());
  const auto look = [this] {
    struct stat st {};
    EXPECT_EQ(::stat(file().c_str(), &st), 0);
  };
  look();
  const size_t getattrs = fs_.count("getattr");
  const size_t lookups = fs_.count("lookup");
  look();
  EXPECT_EQ(fs_.count("getattr"), getattrs);
  EXPECT_EQ(fs_.count("lookup"), lookups);

  ASSERT_TRUE(fs_.channel().invalidate_attributes(kFileNode));
  look();
  EXPECT_EQ(fs_.count("getattr"), getattrs + 1);

  size_t expected = lookups;
  const Capabilities can = fs_.negotiation().capabilities;
  if (can.expire_only) {
    EXPECT_EQ(fs_.channel().expire_name(FUSE_ROOT_ID, kFileName).value_or(false), true);
    look();
    EXPECT_EQ(fs_.count("lookup"), ++expected);
  }
  if (can.inc_epoch) {
    ASSERT_TRUE(fs_.channel().inc_epoch());
    look();
    EXPECT_EQ(fs_.count("lookup"), ++expected);
  }
}

TEST_F(FuseKernelTest, NotifyingAndAnsweringWhatIsGoneIsASuccess) {
  ASSERT_NO_FATAL_FAILURE(start());
  EXPECT_TRUE(fs_.channel().invalidate_data(999, 0, 0));
  EXPECT_TRUE(fs_.channel().invalidate_attributes(999));
  EXPECT_EQ(fs_.channel().expire_name(FUSE_ROOT_ID, "never seen").value_or(true), false);
  EXPECT_TRUE(fs_.channel().reply(123456));
  EXPECT_TRUE(fs_.channel().reply_error(123456, EIO));
}

TEST_F(FuseKernelTest, StoredBytesAreReadWithoutAnUpcall) {
  ASSERT_NO_FATAL_FAILURE(start());
  const Fd fd = open(O_RDONLY);
  const std::string page(4096, '#');
  ASSERT_TRUE(fs_.channel().store(kFileNode, 4096, std::as_bytes(std::span(page))));
  EXPECT_EQ(read(fd, 4096, 4096), page);
  EXPECT_EQ(fs_.count("read"), 0u);
}

// What rule K16 needs: a mapping that reached beyond the end sees what another node appended,
// instead of a SIGBUS.
TEST_F(FuseKernelTest, AStoreBeyondTheEndGrowsTheFileUnderMappings) {
  ASSERT_NO_FATAL_FAILURE(start());
  const Fd fd = open(O_RDONLY);
  void* const map = ::mmap(nullptr, kSize + 4096, PROT_READ, MAP_SHARED, fd.get(), 0);
  ASSERT_NE(map, MAP_FAILED);
  fs_.append("+");
  ASSERT_TRUE(fs_.channel().store(kFileNode, kSize, std::as_bytes(std::span("+", 1))));
  EXPECT_EQ(static_cast<volatile char*>(map)[kSize], '+');
  EXPECT_EQ(fs_.count("read"), 0u);
  ::munmap(map, kSize + 4096);
}

// No answer to a read, and no notification, is sure to do that (K16).
TEST_F(FuseKernelTest, AStatOfOurOwnMakesTheKernelTakeInASmallerSize) {
  ASSERT_NO_FATAL_FAILURE(start());
  if (!OwnView::possible()) GTEST_SKIP() << "no CAP_DAC_READ_SEARCH here";
  const Fd fd = open(O_RDONLY);
  fs_.cut(100);
  OwnView view(mount_->path(), mount_->connection_id());
  const auto own = view.open(kFileNode, 1);
  ASSERT_TRUE(own) << own.error().what;
  EXPECT_EQ(OwnView::look(*own).value_or(OwnView::Seen{}).size, kSize);
  view.ask(*own);
  EXPECT_EQ(OwnView::look(*own).value_or(OwnView::Seen{}).size, 100u);
  OwnView::pass_lock(*own);
  const auto unknown = view.open(4711);
  ASSERT_FALSE(unknown);
  EXPECT_EQ(unknown.error().code, ESTALE);
}

TEST_F(FuseKernelTest, TheDirectoryIsListed) {
  ASSERT_NO_FATAL_FAILURE(start());
  std::set<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(scratch_->point()))
    names.insert(entry.path().filename());
  EXPECT_EQ(names, std::set<std::string>{kFileName});
}

TEST_F(FuseKernelTest, TheReadaheadWindowIsSet) {
  ASSERT_NO_FATAL_FAILURE(start());
  const uint32_t kib = fs_.negotiation().capabilities.max_read_ahead / 1024;
  const Status set = mount_->set_read_ahead(kib);
  ASSERT_TRUE(set) << set.error().what;
  EXPECT_EQ(mount_->read_ahead(), kib);
  // It is what the kernel then does: more than the default window comes as one fill (K6).
  const Fd fd = open(O_RDONLY);
  ASSERT_EQ(::posix_fadvise(fd.get(), 0, kSize, POSIX_FADV_SEQUENTIAL), 0);
  read(fd, kSize, 0);
  EXPECT_EQ(fs_.count("read"), 1u);
}

TEST_F(FuseKernelTest, ACloneServesRequestsToo) {
  ASSERT_NO_FATAL_FAILURE(start());
  auto original = fs_.stop();
  ASSERT_TRUE(original);
  auto clone = original->clone();
  ASSERT_TRUE(clone) << clone.error().what;
  EXPECT_NE(clone->fd(), original->fd());
  fs_.serve(std::move(*clone));
  const Fd fd = open(O_RDONLY);
  EXPECT_EQ(read(fd, kSize, 0), pattern(kSize));
  // Notifications go through either.
  EXPECT_TRUE(original->invalidate_data(kFileNode, 0, 0));
}

TEST_F(FuseKernelTest, AnUnansweredReadIsResent) {
  ASSERT_NO_FATAL_FAILURE(start());
  if (!fs_.negotiation().capabilities.resend) GTEST_SKIP() << "this kernel has no HAS_RESEND";
  const Fd fd = open(O_RDWR);
  fs_.hold_reads(true);
  std::string got;
  std::thread reader([&] { got = read(fd, 100, 0); });
  EXPECT_TRUE(fs_.wait_for([](const auto& events) { return events.back().what == "read"; }));
  fs_.hold_reads(false);
  EXPECT_TRUE(fs_.channel().resend());
  reader.join();
  EXPECT_EQ(got, pattern(kSize).substr(0, 100));
  const auto reads = fs_.events("read");
  ASSERT_EQ(reads.size(), 2u);
  EXPECT_FALSE(reads[0].resent);
  EXPECT_TRUE(reads[1].resent);
}

TEST_F(FuseKernelTest, AbortEndsWaitingRequestsAndTheConnection) {
  ASSERT_NO_FATAL_FAILURE(start());
  const Fd fd = open(O_RDWR);
  fs_.hold_reads(true);
  int error = 0;
  std::thread reader([&] {
    char byte = 0;
    if (::pread(fd.get(), &byte, 1, 0) < 0) error = errno;
  });
  EXPECT_TRUE(fs_.wait_for([](const auto& events) { return events.back().what == "read"; }));
  const Status aborted = mount_->abort();
  EXPECT_TRUE(aborted) << aborted.error().what;
  reader.join();
  EXPECT_NE(error, 0);
  EXPECT_EQ(fs_.wait_for_end(), ECONNABORTED);
}

// The kernel gives the number of a mount that is gone to the next one: a daemon that went on ending
// had aborted the connection of a stranger.
TEST_F(FuseKernelTest, AbortAfterTheUnmountEndsNobodyElse) {
  ASSERT_NO_FATAL_FAILURE(start());
  const Channel ours = *fs_.channel().clone();
  ASSERT_EQ(mount_->unmount(), UnmountHow::Clean);
  const testing::Scratch other;
  std::vector<Mount> others;
  // Mounts of others on this machine may take the number first.
  for (int i = 0;
       i < 50 && (others.empty() || others.back().connection_id() != mount_->connection_id());
       ++i) {
    const std::string point = other.point() + "/" + std::to_string(i);
    std::filesystem::create_directory(point);
    auto next = Mount::mount(point, {});
    ASSERT_TRUE(next) << next.error().what;
    others.push_back(std::move(*next));
  }
  if (others.back().connection_id() != mount_->connection_id())
    GTEST_SKIP() << "the number was not given again";
  const Channel theirs = others.back().take_channel();
  EXPECT_TRUE(mount_->abort());
  EXPECT_TRUE(mount_->abort(&ours));
  EXPECT_FALSE(theirs.is_gone());
  EXPECT_TRUE(others.back().abort(&theirs));
  EXPECT_TRUE(theirs.is_gone());
}

// Of the tests' own safety net: without it a hung caller would stay in D state for good.
TEST_F(FuseKernelTest, TheWatchdogFreesACallerThatIsNeverAnswered) {
  std::optional<testing::Watchdog> early(std::in_place, scratch_->point(), 1);
  ASSERT_NO_FATAL_FAILURE(start());
  const Fd fd = open(O_RDONLY);
  fs_.hold_reads(true);
  char byte = 0;
  EXPECT_EQ(::pread(fd.get(), &byte, 1, 0), -1);
  early.reset();  // waits for it
  EXPECT_FALSE(mounted_at(scratch_->point())->has_value());
}

TEST_F(FuseKernelTest, UnmountLeavesNothing) {
  ASSERT_NO_FATAL_FAILURE(start());
  const auto how = mount_->unmount();
  ASSERT_TRUE(how) << how.error().what;
  EXPECT_EQ(*how, UnmountHow::Clean);
  const auto entry = mounted_at(scratch_->point());
  ASSERT_TRUE(entry);
  EXPECT_FALSE(entry->has_value());
  EXPECT_TRUE(std::filesystem::is_empty(scratch_->point()));
  EXPECT_EQ(mount_->unmount(), UnmountHow::Clean);  // again: nothing
}

TEST_F(FuseKernelTest, UnmountOfABusyMountIsLazyAndOpenFilesGoOn) {
  ASSERT_NO_FATAL_FAILURE(start());
  Fd fd = open(O_RDONLY);
  EXPECT_EQ(mount_->unmount(), UnmountHow::Lazy);
  EXPECT_FALSE(mounted_at(scratch_->point())->has_value());
  EXPECT_EQ(read(fd, 10, 0), pattern(kSize).substr(0, 10));
  fd.reset();
}

TEST_F(FuseKernelTest, ADroppedMountIsUnmounted) {
  ASSERT_NO_FATAL_FAILURE(start());
  mount_.reset();
  EXPECT_FALSE(mounted_at(scratch_->point())->has_value());
}

// Runs `body` in a process of its own, which then ends as a killed daemon does: without unmounting.
template <typename Body>
void in_dying_process(Body body) {
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) ::_exit(body() ? 0 : 1);
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_EQ(status, 0);
}

TEST_F(FuseKernelTest, ADeadMountIsRepaired) {
  in_dying_process([this] {
    auto mounted = Mount::mount(scratch_->point(), {});
    if (!mounted) return false;
    ::_exit(0);  // no destructor
  });
  struct statfs info {};
  ASSERT_EQ(::statfs(scratch_->point().c_str(), &info), -1);
  ASSERT_EQ(errno, ENOTCONN);
  EXPECT_EQ(probe(scratch_->point(), 5000), Liveness::Dead);
  ASSERT_NO_FATAL_FAILURE(start());
  const Fd fd = open(O_RDONLY);
  EXPECT_EQ(read(fd, 10, 0), pattern(kSize).substr(0, 10));
}

TEST_F(FuseKernelTest, AServedMountIsNotRepaired) {
  ASSERT_NO_FATAL_FAILURE(start());
  const auto second = Mount::mount(scratch_->point(), {});
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, EBUSY);
  EXPECT_NE(second.error().what.find("already"), std::string::npos);
  const Fd fd = open(O_RDONLY);
  EXPECT_EQ(read(fd, 10, 0), pattern(kSize).substr(0, 10));
}

TEST_F(FuseKernelTest, AMountWhoseInitIsNotAnsweredIsSilentNotDead) {
  auto mounted = Mount::mount(scratch_->point(), {});
  ASSERT_TRUE(mounted) << mounted.error().what;
  EXPECT_EQ(probe(scratch_->point(), 100), Liveness::Silent);
}

TEST_F(FuseKernelTest, OtherThingsAreRefusedWithAMend) {
  const std::string base = scratch_->path();
  const auto missing = Mount::mount(base + "/missing", {});
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().code, ENOENT);
  EXPECT_NE(missing.error().what.find("mkdir"), std::string::npos);

  std::ofstream(base + "/plain") << "x";
  EXPECT_EQ(Mount::mount(base + "/plain", {}).error().code, ENOTDIR);
  EXPECT_EQ(Mount::mount(base, {}).error().code, ENOTEMPTY);
  EXPECT_EQ(Mount::mount("/", {}).error().code, EINVAL);
  EXPECT_EQ(Mount::mount(base + "/..", {}).error().code, EINVAL);

  ASSERT_EQ(::mount("none", scratch_->point().c_str(), "tmpfs", 0, "size=4k"), 0);
  const auto other = Mount::mount(scratch_->point() + "/", {});
  ASSERT_FALSE(other);
  EXPECT_EQ(other.error().code, EBUSY);
  EXPECT_NE(other.error().what.find("tmpfs"), std::string::npos);
  EXPECT_TRUE(mounted_at(scratch_->point())->has_value());
  ::umount2(scratch_->point().c_str(), MNT_DETACH);
}

}  // namespace
}  // namespace vremote::fuse
