#include "node/guardian/guardian_link.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "base/start_thread.h"
#include "node/guardian/guardian_words.h"

namespace vremote::node {
namespace {

constexpr int kQuitPatienceMs = 2000;
constexpr int kRoomMs = 100;

}  // namespace

Result<std::unique_ptr<GuardianLink>> GuardianLink::start(const GuardianOptions& options) {
  VR_TRY(table, GuardianTable::make());
  std::array<int, 2> ends{};
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) != 0)
    return fail(errno, "socketpair");
  Fd ours(ends[0]), theirs(ends[1]);
  table.alive(GuardianTable::clock());
  const pid_t pid = ::fork();
  if (pid < 0) return fail(errno, "fork");
  if (pid == 0) {
    ours.reset();
    ::_exit(run_guardian(options, table, std::move(theirs)));
  }
  return std::unique_ptr<GuardianLink>(new GuardianLink(std::move(table), std::move(ours), pid));
}

Result<std::unique_ptr<GuardianLink>> GuardianLink::take_over(Fd link, Fd memory, pid_t pid) {
  VR_TRY(table, GuardianTable::take_over(std::move(memory)));
  table.alive(GuardianTable::clock());
  return std::unique_ptr<GuardianLink>(new GuardianLink(std::move(table), std::move(link), pid));
}

GuardianLink::~GuardianLink() { quit(); }

Status GuardianLink::arm(const fuse::Channel& own, std::span<const int> others, uint32_t connection,
                         const std::string& mount) {
  std::lock_guard lock(mutex_);
  std::vector<int> descriptors{own.fd()};
  descriptors.insert(descriptors.end(), others.begin(), others.end());
  table_.alive(GuardianTable::clock());
  std::lock_guard said(said_mutex_);
  if (!say(link_.get(), GuardianWord::Arm)) return fail(EPIPE, "the guardian has ended");
  return send_arms(link_.get(), connection, mount, descriptors);
}

void GuardianLink::take_back(const std::function<void(std::span<const std::byte>)>& request) {
  std::lock_guard lock(mutex_);
  const uint32_t charge = table_.charge();
  if (charge == 0) return;
  if (!link_.valid() || !say(link_.get(), GuardianWord::TakeBack)) {
    lost();
    return;
  }
  std::vector<std::byte> bytes;
  for (;;) {
    if (!receive_held(link_.get(), bytes)) {
      lost();
      return;
    }
    if (bytes.empty()) break;
    request(bytes);
  }
  // Only now: were this daemon to die before, its guardian says whose bytes were lost.
  (void)table_.end_charge(charge);
}

void GuardianLink::keep(FileId file, int descriptor) {
  Fd own(::fcntl(descriptor, F_DUPFD_CLOEXEC, 0));
  std::lock_guard said(said_mutex_);
  if (lost_) return;
  if (!own.valid() || !files_.keep(file, std::move(own))) {
    if (!std::exchange(too_many_told_, true))
      spdlog::warn(
          "more files without a name are open than the guardian can keep ({}, and as many "
          "descriptors as this process may have): one of them is lost if this daemon is killed",
          kKeptFilesMax);
    return;
  }
  if (!tell_files()) tell_files_later();
}

void GuardianLink::let_go(FileId file) {
  std::lock_guard said(said_mutex_);
  if (lost_) return;
  files_.let_go(file);
  if (!tell_files()) tell_files_later();
}

bool GuardianLink::knows_files() {
  std::lock_guard said(said_mutex_);
  return lost_ || tell_files();
}

bool GuardianLink::tell_files() {
  while (const KeptFiles::Word* next = files_.next()) {
    const auto word = next->descriptor.valid() ? GuardianWord::Keep : GuardianWord::LetGo;
    if (!tell_of_file(link_.get(), word, next->file, next->descriptor.get())) return false;
    files_.told();
  }
  return true;
}

// With said_mutex_. In a burst there is no room on the link, or the kernel has too many descriptors
// under way (ETOOMANYREFS): as soon as there is, the rest is told.
void GuardianLink::tell_files_later() {
  files_to_tell_.notify_all();
  if (teller_.joinable()) return;
  auto teller = start_thread([this] {
    std::unique_lock said(said_mutex_);
    while (!lost_) {
      files_to_tell_.wait(said, [this] { return lost_ || files_.next() != nullptr; });
      if (lost_ || tell_files()) continue;
      pollfd room{link_.get(), POLLOUT, 0};
      said.unlock();
      // There may be room for bytes and none for descriptors.
      if (::poll(&room, 1, kRoomMs) == 1) ::poll(nullptr, 0, 1);
      said.lock();
    }
  });
  if (teller) teller_ = std::move(*teller);  // else whoever asks next knows_files() tells them
}

bool GuardianLink::has_requests() {
  std::lock_guard lock(mutex_);
  return table_.guardian_in_charge();
}

bool GuardianLink::guarded() {
  if (lost_) return false;
  std::unique_lock lock(mutex_, std::try_to_lock);
  if (!lock) return true;  // somebody talks to it
  pollfd wait{link_.get(), 0, 0};
  if (link_.valid() && (::poll(&wait, 1, 0) != 1 || (wait.revents & (POLLHUP | POLLERR)) == 0))
    return true;
  lost();
  return false;
}

void GuardianLink::lost() {
  if (lost_.exchange(true)) return;
  spdlog::error(
      "the guardian has ended: were this daemon to die now, its kernel would go on serving what it "
      "keeps; restart the node");
  end_link();
  (void)table_.end_charge(table_.charge());
}

// Behind lost_.
void GuardianLink::end_link() {
  std::lock_guard said(said_mutex_);
  link_.reset();
  files_.drop();
  files_to_tell_.notify_all();
}

void GuardianLink::quit() {
  std::lock_guard lock(mutex_);
  if (pid_ <= 0) return;
  lost_ = true;
  {
    std::lock_guard said(said_mutex_);
    if (link_.valid()) (void)say(link_.get(), GuardianWord::Quit);
  }
  end_link();
  if (teller_.joinable()) teller_.join();
  for (int waited = 0; ::waitpid(pid_, nullptr, WNOHANG) == 0; waited += 10) {
    if (waited >= kQuitPatienceMs) {
      ::kill(pid_, SIGKILL);  // and whoever inherits it reaps it: it may hang in a purge
      break;
    }
    ::poll(nullptr, 0, 10);
  }
  pid_ = -1;
}

}  // namespace vremote::node
