// A guardian as the process that it is, with a kernel of the test's own: what its daemon may do at
// any moment, and what the next one finds then.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>

#include "base/check.h"
#include "fuse/protocol.h"
#include "node/guardian/guardian.h"
#include "node/guardian/guardian_corpse.h"
#include "node/guardian/guardian_door.h"
#include "node/guardian/guardian_held.h"
#include "node/guardian/guardian_link.h"
#include "node/guardian/guardian_words.h"
#include "node/guardian/kept_files.h"

namespace vremote::node {
namespace {

// Much longer than it ever takes.
bool eventually(const std::function<bool()>& holds) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::minutes(1);
  while (!holds()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return true;
}

std::pair<Fd, Fd> socket_pair(int type) {
  std::array<int, 2> ends{};
  VR_CHECK(::socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, ends.data()) == 0);
  return {Fd(ends[0]), Fd(ends[1])};
}

// The kernel's end of /dev/fuse: packets instead of requests and answers.
class Kernel {
 public:
  Kernel() {
    std::tie(ours_, device_) = socket_pair(SOCK_SEQPACKET);
    (void)::fcntl(device_.get(), F_SETFL, O_NONBLOCK);
    reader_ = std::thread([this] { read(); });
  }
  ~Kernel() {
    (void)::shutdown(ours_.get(), SHUT_RDWR);
    reader_.join();
  }
  // What a daemon opens.
  Fd device() const { return Fd(::fcntl(device_.get(), F_DUPFD_CLOEXEC, 0)); }

  template <typename... Parts>
  static std::vector<std::byte> request(uint32_t opcode, uint64_t unique, uint64_t node,
                                        const Parts&... parts) {
    fuse_in_header head{};
    std::vector<std::byte> bytes(sizeof head);
    const auto append = [&](std::span<const std::byte> part) {
      bytes.insert(bytes.end(), part.begin(), part.end());
    };
    (append(std::as_bytes(std::span(parts))), ...);
    head.len = static_cast<uint32_t>(bytes.size());
    head.opcode = opcode;
    head.unique = unique;
    head.nodeid = node;
    head.pid = 0;
    std::memcpy(bytes.data(), &head, sizeof head);
    return bytes;
  }
  static std::vector<std::byte> write_back(uint64_t unique, uint64_t node, std::string_view text) {
    fuse_write_in in{};
    in.size = static_cast<uint32_t>(text.size());
    in.write_flags = FUSE_WRITE_CACHE;
    return request(FUSE_WRITE, unique, node, std::span(&in, 1), text);
  }
  void ask(const std::vector<std::byte>& request) {
    ASSERT_EQ(static_cast<ssize_t>(request.size()),
              ::send(ours_.get(), request.data(), request.size(), 0));
  }
  bool was_answered(uint64_t unique) {
    std::lock_guard lock(mutex_);
    return answers_.contains(unique);
  }
  // An errno; 0 also when it was not answered.
  int error(uint64_t unique) {
    std::lock_guard lock(mutex_);
    auto it = answers_.find(unique);
    return it == answers_.end() ? 0 : -it->second;
  }
  size_t notified(int what) {
    std::lock_guard lock(mutex_);
    return notified_.count(what);
  }

 private:
  void read() {
    std::vector<std::byte> bytes(size_t{1} << 20);
    for (;;) {
      const ssize_t n = ::recv(ours_.get(), bytes.data(), bytes.size(), 0);
      if (n < 0 && errno == EINTR) continue;
      if (n < static_cast<ssize_t>(sizeof(fuse_out_header))) return;
      fuse_out_header head;
      std::memcpy(&head, bytes.data(), sizeof head);
      std::lock_guard lock(mutex_);
      if (head.unique == 0) {
        notified_.insert(head.error);
      } else {
        answers_[head.unique] = head.error;
      }
    }
  }
  Fd ours_, device_;
  std::mutex mutex_;
  std::map<uint64_t, int> answers_;
  std::multiset<int> notified_;
  std::thread reader_;
};

class Directory {
 public:
  Directory() {
    std::string path = (std::filesystem::temp_directory_path() / "guardian-XXXXXX").string();
    VR_CHECK(::mkdtemp(path.data()) != nullptr);
    path_ = path;
  }
  ~Directory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::string& path() const { return path_; }
  size_t files_in(const std::string& name) const {
    std::error_code ignored;
    size_t count = 0;
    for ([[maybe_unused]] const auto& entry :
         std::filesystem::directory_iterator(path_ + "/" + name, ignored))
      ++count;
    return count;
  }

 private:
  std::string path_;
};

constexpr uint64_t kNode = 7;
constexpr uint32_t kNoConnection = ~0u;  // of no mount there is

// The test is the daemon: it has a guardian, and stops as soon as it says that it lives no more.
class GuardianProcessTest : public testing::Test {
 protected:
  GuardianProcessTest() : table_(*GuardianTable::make()) {
    const uint32_t home = table_.add_home("node2");
    slot_ = table_.add_inode(kNode, home, {0, 1, 2});
    table_.set_capabilities({});
    auto [ours, theirs] = socket_pair(SOCK_STREAM);
    table_.alive(GuardianTable::clock());
    pid_ = ::fork();
    VR_CHECK(pid_ >= 0);
    if (pid_ == 0) {
      ours.reset();
      const GuardianOptions options{.socket = directory_.path() + "/guard.sock",
                                    .recovery_dir = directory_.path() + "/recovery",
                                    .stall_ms = 20};
      ::_exit(run_guardian(options, table_, std::move(theirs)));
    }
    link_ = std::move(ours);
    kernel_.emplace();
    const Fd device = kernel_->device(), other = kernel_->device();
    VR_CHECK(say(link_.get(), GuardianWord::Arm));
    const std::array<int, 2> descriptors{device.get(), other.get()};
    VR_CHECK(send_arms(link_.get(), kNoConnection, "/nowhere", descriptors).has_value());
    // The leases are over, and nothing says any more that the daemon lives.
    table_.renew(home, GuardianTable::clock().ns);
  }
  ~GuardianProcessTest() override {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  void stands_in() {
    ASSERT_TRUE(eventually([&] { return table_.guardian_in_charge(); }));
  }
  void gets_a_write_back(uint64_t unique) {
    kernel_->ask(Kernel::write_back(unique, kNode, "stored in a mapping"));
    ASSERT_TRUE(eventually([&] { return kernel_->was_answered(unique); }));
    EXPECT_EQ(0, kernel_->error(unique));
  }
  // The daemon wakes up, and hears so many of the requests that are given back; all: with the end.
  void hears(size_t requests) {
    ASSERT_TRUE(say(link_.get(), GuardianWord::TakeBack));
    std::vector<std::byte> request;
    for (size_t i = 0; i < requests; ++i) ASSERT_TRUE(receive_held(link_.get(), request));
  }
  bool owes() const { return table_.inodes().at(0).owes; }
  // From here on the guardian is alone; it has noted all that it will when it asks the kernel.
  void dies() {
    link_.reset();
    ASSERT_TRUE(eventually([&] { return kernel_->notified(fuse::kNotifyResend) > 0; }));
  }

  Directory directory_;
  GuardianTable table_;
  Fd link_;
  pid_t pid_ = 0;
  uint32_t slot_ = 0;
  std::optional<Kernel> kernel_;  // has a thread: behind the fork
};

TEST_F(GuardianProcessTest, ADaemonThatDiesWhileItTakesBackOwesWhatItWasGiven) {
  stands_in();
  gets_a_write_back(10);
  gets_a_write_back(12);
  hears(1);
  EXPECT_FALSE(owes());
  dies();
  EXPECT_TRUE(owes());
  EXPECT_EQ(1u, directory_.files_in("recovery"));
}

TEST_F(GuardianProcessTest, HavingHeardOfAllIsNotHavingAll) {
  stands_in();
  gets_a_write_back(10);
  hears(2);
  dies();
  EXPECT_TRUE(owes());
  EXPECT_EQ(1u, directory_.files_in("recovery"));
}

TEST_F(GuardianProcessTest, ADaemonThatHasAllOwesWhatItSaysItself) {
  stands_in();
  gets_a_write_back(10);
  const uint32_t charge = table_.charge();
  hears(2);
  EXPECT_EQ(1u, directory_.files_in("recovery"));
  table_.alive(GuardianTable::clock() + 60'000'000'000);  // it moves from here on
  EXPECT_TRUE(table_.end_charge(charge));
  EXPECT_TRUE(eventually([&] { return directory_.files_in("recovery") == 0; }));
  dies();
  EXPECT_FALSE(owes());
}

// What it was given before may not be with it either.
TEST_F(GuardianProcessTest, ADaemonThatStopsAgainWhileItTakesBackIsStoodInForAgain) {
  stands_in();
  const uint32_t first = table_.charge();
  gets_a_write_back(10);
  hears(2);
  table_.renew(0, GuardianTable::clock().ns);  // and over again
  ASSERT_TRUE(eventually([&] { return table_.charge() != first; }));
  EXPECT_FALSE(table_.end_charge(first)) << "it must ask once more";
  EXPECT_TRUE(table_.guardian_in_charge());
  dies();
  EXPECT_TRUE(owes());
}

// ---- files without a name

// Of /dev/null.
size_t descriptors_of(pid_t pid) {
  std::error_code ignored;
  size_t count = 0;
  for (const auto& entry :
       std::filesystem::directory_iterator("/proc/" + std::to_string(pid) + "/fd", ignored))
    if (std::filesystem::read_symlink(entry.path(), ignored) == "/dev/null") ++count;
  return count;
}

TEST(GuardianLinkTest, ABurstOfFilesWithoutANameGetsToTheGuardian) {
  constexpr uint64_t kFiles = 3000;
  rlimit limit{};
  ASSERT_EQ(0, ::getrlimit(RLIMIT_NOFILE, &limit));
  const rlimit before = limit;
  limit.rlim_cur = limit.rlim_max;
  ASSERT_EQ(0, ::setrlimit(RLIMIT_NOFILE, &limit));
  if (limit.rlim_max < 2 * kFiles) GTEST_SKIP() << "too few descriptors may be open here";
  const Directory directory;
  auto link = GuardianLink::start(
      {.socket = directory.path() + "/guard.sock", .recovery_dir = directory.path() + "/recovery"});
  ASSERT_TRUE(link) << link.error().what;
  const pid_t guardian = (*link)->pid();
  const Fd file(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  const auto id = [](uint64_t i) { return FileId{0, 1, i}; };
  const size_t own = descriptors_of(guardian);
  ::kill(guardian, SIGSTOP);  // it does not listen for now
  for (uint64_t i = 0; i < kFiles; ++i) (*link)->keep(id(i), file.get());
  EXPECT_FALSE((*link)->knows_files());
  for (uint64_t i = 0; i < kFiles; i += 3) (*link)->let_go(id(i));
  ::kill(guardian, SIGCONT);
  EXPECT_TRUE(eventually([&] { return descriptors_of(guardian) == own + kFiles * 2 / 3; }))
      << descriptors_of(guardian) << " of " << own + kFiles * 2 / 3;
  EXPECT_TRUE((*link)->knows_files());
  link->reset();
  ::setrlimit(RLIMIT_NOFILE, &before);
}

Fd some_file() { return Fd(::open("/dev/null", O_RDONLY | O_CLOEXEC)); }

TEST(KeptFilesTest, WhatIsToldIsInOrderAndNotMoreThanThereIsRoomFor) {
  KeptFiles files(2);
  const FileId a{0, 1, 1}, b{0, 1, 2}, c{0, 1, 3};
  EXPECT_TRUE(files.keep(a, some_file()));
  EXPECT_TRUE(files.keep(b, some_file()));
  EXPECT_FALSE(files.keep(c, some_file()));
  files.let_go(a);  // nobody has heard of it
  ASSERT_NE(nullptr, files.next());
  EXPECT_EQ(b, files.next()->file);
  files.told();
  EXPECT_EQ(nullptr, files.next());
  files.let_go(b);
  files.let_go(b);
  files.let_go(c);
  EXPECT_TRUE(files.keep(b, some_file()));
  EXPECT_FALSE(files.next()->descriptor.valid());
  files.told();
  EXPECT_TRUE(files.next()->descriptor.valid());
  EXPECT_EQ(b, files.next()->file);
  files.told();
  EXPECT_EQ(nullptr, files.next());
}

// ---- who is believed

TEST(GuardianDoorTest, WhoCouldBePutThereByOthersIsNotBelieved) {
  const Directory directory;
  const std::string path = directory.path() + "/guard.sock";
  auto nobody = knock(path);
  ASSERT_TRUE(nobody);
  EXPECT_FALSE(*nobody);
  GuardianDoor door(path);
  door.open();
  auto open = knock(path);
  ASSERT_TRUE(open) << open.error().what;
  EXPECT_TRUE(*open);
  for (mode_t mode : {0720, 0702, 0777}) {
    ASSERT_EQ(0, ::chmod(directory.path().c_str(), mode));
    auto refused = knock(path);
    ASSERT_FALSE(refused) << mode;
    EXPECT_NE(refused.error().what.find("is not believed"), std::string::npos);
    // It is ended all the same, or it would keep the mount from the next daemon.
    std::thread guardian([&] {
      auto visitor = door.receive();
      while (!visitor) visitor = door.receive();  // those before have not said a word
      EXPECT_EQ(VisitorWord::Retire, visitor->word);
      answer(visitor->socket, VisitorAnswer::Retired);
    });
    auto retired = retire_guardian(path);
    guardian.join();
    EXPECT_TRUE(retired && *retired == Retired::Guardian) << mode;
  }
  ASSERT_EQ(0, ::chmod(directory.path().c_str(), 0700));
  if (::geteuid() != 0) return;
  ASSERT_EQ(0, ::chown(directory.path().c_str(), 65534, 65534));
  EXPECT_FALSE(knock(path)) << "the directory of another user";
  const std::string link = directory.path() + "/link.sock";
  ASSERT_EQ(0, ::symlink(path.c_str(), link.c_str()));
  EXPECT_FALSE(knock(link));
  EXPECT_FALSE(retire_guardian(link));
}

TEST(GuardianDoorTest, AnotherUserWhoListensThereIsNotBelieved) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root to be somebody else";
  const Directory directory;
  const std::string path = directory.path() + "/guard.sock";
  ASSERT_EQ(0, ::chmod(directory.path().c_str(), 0777));
  const auto [ours, theirs] = socket_pair(SOCK_STREAM);
  const pid_t other = ::fork();
  if (other == 0) {
    if (::setresuid(65534, 65534, 65534) != 0) ::_exit(1);
    GuardianDoor door(path);
    door.open();
    const char ready = 'r';
    (void)!::write(theirs.get(), &ready, 1);
    for (;;) ::pause();
  }
  char ready = 0;
  ASSERT_EQ(1, ::read(ours.get(), &ready, 1));
  ASSERT_EQ(0, ::chmod(directory.path().c_str(), 0700));
  auto refused = knock(path);
  EXPECT_FALSE(refused);
  EXPECT_NE((refused ? "" : refused.error().what).find("user 65534 listens"), std::string::npos);
  ::kill(other, SIGKILL);
  ::waitpid(other, nullptr, 0);
}

// ---- a dead daemon's thread that waits for a directory

struct HeldWorld {
  HeldWorld() : table(*GuardianTable::make()), channel(kernel.device()) {}
  void hears(const std::vector<std::byte>& request) { held.take(request, false); }
  bool ends(uint64_t unique) {
    return eventually([&] {
      held.look();
      return kernel.was_answered(unique);
    });
  }

  Kernel kernel;
  GuardianTable table;
  const Directory directory;
  fuse::Channel channel;
  GuardianRecovery recovery{directory.path(), table};
  GuardianHeld held{channel, table, recovery, 0, [](uint64_t, uint64_t, uint64_t) {}};
};

constexpr uint64_t kDirectory = 5, kElsewhere = 6, kResent = fuse::kUniqueResend;
using namespace std::string_view_literals;

TEST(GuardianHeldTest, CallsThatKeepADeadDaemonsThreadFromADirectoryAreEnded) {
  HeldWorld w;
  (void)w.table.purge_begins(kDirectory, GuardianTable::kNames, 0);
  const fuse_mkdir_in mkdir{};
  w.hears(Kernel::request(FUSE_LOOKUP, 10, kDirectory, "a\0"sv));
  w.hears(Kernel::request(FUSE_MKDIR, 12, kDirectory, std::span(&mkdir, 1), "b\0"sv));
  w.hears(Kernel::request(FUSE_MKDIR, 14 | kResent, kDirectory, std::span(&mkdir, 1), "c\0"sv));
  w.hears(Kernel::request(FUSE_LOOKUP, 16, kElsewhere, "a\0"sv));
  w.hears(Kernel::request(FUSE_RMDIR, 18, kElsewhere, "d\0"sv));
  w.held.look();
  EXPECT_FALSE(w.kernel.was_answered(10)) << "its daemon may yet live";
  w.held.free_corpse(::getppid());
  ASSERT_TRUE(w.ends(14 | kResent));
  EXPECT_EQ(ESTALE, w.kernel.error(10)) << "the kernel looks again";
  EXPECT_EQ(ESTALE, w.kernel.error(12)) << "it has not happened";
  EXPECT_EQ(EIO, w.kernel.error(14 | kResent)) << "it may have";
  // When that has not helped it is the directory that somebody removes.
  EXPECT_TRUE(w.ends(18));
  EXPECT_FALSE(w.kernel.was_answered(16));
  EXPECT_EQ(1u, w.held.count());
}

TEST(GuardianHeldTest, AnOpenThatTruncatesHoldsNothingBackAndWaitsOn) {
  HeldWorld w;
  fuse_open_in open{};
  open.flags = O_TRUNC | O_WRONLY;
  fuse_setattr_in set{};
  set.valid = FATTR_SIZE;
  w.hears(Kernel::request(FUSE_OPEN, 10, kNode, std::span(&open, 1)));
  w.hears(Kernel::request(FUSE_SETATTR, 12, kNode, std::span(&set, 1)));
  w.held.end_truncations();
  w.held.look();
  ASSERT_TRUE(eventually([&] { return w.kernel.was_answered(12); }));
  EXPECT_EQ(EINTR, w.kernel.error(12));
  EXPECT_FALSE(w.kernel.was_answered(10));
}

// In milliseconds.
Instant at(int64_t ms) { return {ms * 1'000'000}; }

TEST(GuardianCorpseTest, ADirectorysLockIsLetGoAfterAWhileAndOnceAtATime) {
  GuardianCorpse corpse(at(0), {{5, GuardianTable::kNames, 0}, {7, 4096, 0}});
  EXPECT_TRUE(corpse.directories(at(300)).nodes.empty()) << "it may go by itself";
  EXPECT_EQ((std::vector<uint64_t>{5}), corpse.directories(at(400)).nodes);
  EXPECT_TRUE(corpse.directories(at(450)).nodes.empty()) << "the thread gets it first";
  EXPECT_TRUE(corpse.directories(at(700)).also_others);
  EXPECT_FALSE(corpse.refuses(at(800), 5, 0, 65536)) << "no fill keeps it";
}

}  // namespace
}  // namespace vremote::node
