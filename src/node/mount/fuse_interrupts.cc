// Signals that come while a program waits for us.
//
// The kernel tells of *any* signal, once, and leaves the program waiting. On a local disk only a
// lock is given up for a signal with a handler; reads, writes, fsync, open and the rest go on, and
// hardly a program copes when they do not (PostgreSQL stops the whole server when its fdatasync
// ends with EINTR). So: a wait for a lock ends with EINTR; any other ends only when the process is
// about to end. Whether it is may change while it waits, and a request may have had nothing to give
// up just when the signal came. So we keep answering "again later" until the kernel says that the
// request is gone.
#include <cerrno>

#include "node/base/signals.h"
#include "node/mount/fuse_server.h"

namespace vremote::node {

using namespace coherence;

namespace {

constexpr int64_t kAskAgainNs = 50'000'000;

}  // namespace

void FuseServer::interrupt(const Context& c, uint64_t request) {
  // By what it must be answered with, which differs when it was delivered again.
  for (uint64_t unique : {request, request | fuse::kUniqueResend}) {
    if (interrupt_lock(unique)) break;
    if (auto tid = waiting_thread(unique)) {
      if (is_being_killed(*tid)) give_up(unique);
      break;
    }
  }
  ask_again_later(c.unique);
}

bool FuseServer::interrupt_lock(uint64_t unique) {
  LockWait wait;
  {
    std::lock_guard lock(locks_mutex_);
    auto it = lock_waits_.find(unique);
    if (it == lock_waits_.end()) return false;
    wait = it->second;
    it->second.cancelled = true;
  }
  // The home decides whether the lock or the signal came first. Whoever dies does not wait for
  // that: what is granted all the same goes with its handle.
  if (!wait.cancelled)
    wait.agent->call(
        {}, LockCall{.file = wait.file, .action = LockAction::Cancel, .waiting_call = wait.call},
        [](Reply&&) {});
  if (is_being_killed(wait.from.tid) && wait.from.tid != 0)
    (void)wait.from.channel->reply_error(unique, EINTR);
  return true;
}

std::optional<uint32_t> FuseServer::waiting_thread(uint64_t unique) {
  {
    std::lock_guard lock(calls_mutex_);
    if (auto it = calls_.find(unique); it != calls_.end()) return it->second.tid;
  }
  for (const ExportRoot& root : exports_.all())
    if (auto tid = root.agent->waiting_thread(unique)) return tid;
  return std::nullopt;
}

void FuseServer::give_up(uint64_t unique) {
  {
    std::lock_guard lock(calls_mutex_);
    if (auto it = calls_.find(unique); it != calls_.end()) {
      (void)it->second.channel->reply_error(unique, EINTR);
      calls_.erase(it);
      return;
    }
  }
  for (const ExportRoot& root : exports_.all()) root.agent->interrupt(unique);
}

void FuseServer::ask_again_later(uint64_t interrupt) {
  std::lock_guard lock(interrupts_mutex_);
  interrupts_.push_back(interrupt);
  if (interrupts_.size() > 1) return;  // the timer runs
  interrupts_timer_ = options_.loop->call_after(kAskAgainNs, [this] {
    std::vector<uint64_t> due;
    {
      std::lock_guard again(interrupts_mutex_);
      due.swap(interrupts_);
    }
    // Only the descriptor by which the request itself came knows it; of one that was answered
    // meanwhile, none does.
    for (uint64_t unique : due)
      for (const auto& channel : channels_) (void)channel->reply_error(unique, EAGAIN);
    if (guardians_)
      for (uint64_t unique : due) (void)guardians_->reply_error(unique, EAGAIN);
  });
}

}  // namespace vremote::node
