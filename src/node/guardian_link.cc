#include "node/guardian_link.h"

#include <poll.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <vector>

#include "node/guardian_words.h"

namespace vremote::node {
namespace {

constexpr int kQuitPatienceMs = 2000;

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
  if (!table_.guardian_in_charge()) return;
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
    if (bytes.empty()) return;
    request(bytes);
  }
}

void GuardianLink::keep(FileId file, int descriptor) {
  std::lock_guard said(said_mutex_);
  if (lost_) return;
  tell_let_go();
  // In their order: it must not be let go behind this.
  if (!let_go_.empty() || !tell_of_file(link_.get(), GuardianWord::Keep, file, descriptor))
    spdlog::debug("the guardian does not keep inode {}", file.inode);
}

void GuardianLink::let_go(FileId file) {
  std::lock_guard said(said_mutex_);
  if (lost_) return;
  let_go_.push_back(file);
  tell_let_go();
}

void GuardianLink::tell_let_go() {
  while (!let_go_.empty() && tell_of_file(link_.get(), GuardianWord::LetGo, let_go_.front(), -1))
    let_go_.pop_front();
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
  std::lock_guard said(said_mutex_);
  link_.reset();
  let_go_.clear();
  table_.set_guardian_in_charge(false);
}

void GuardianLink::quit() {
  std::lock_guard lock(mutex_);
  if (pid_ <= 0) return;
  {
    std::lock_guard said(said_mutex_);
    if (link_.valid()) (void)say(link_.get(), GuardianWord::Quit);
    link_.reset();
    lost_ = true;
  }
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
