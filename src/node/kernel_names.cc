#include "node/kernel_names.h"

#include <signal.h>
#include <spdlog/spdlog.h>

#include <cerrno>

namespace vremote::node {
namespace {

constexpr uint64_t kNamesMax = 1 << 20;
// More are not worth their expiries.
constexpr size_t kExpiredMost = 1024;
// So many threads that have not come back: look which have ended.
constexpr size_t kUnsettledMany = 256;

}  // namespace

KernelNames::~KernelNames() {
  std::map<uint64_t, Ending> dropped;  // timers are cancelled without the lock
  std::lock_guard lock(mutex_);
  dropped.swap(endings_);
}

bool KernelNames::give(uint64_t directory, const std::string& name, bool exists, uint32_t tid,
                       Instant now) {
  if (channel_ == nullptr || tid == 0) return false;
  std::lock_guard lock(mutex_);
  Directory& d = directories_[directory];
  if (now < d.contended_until || names_ >= kNamesMax) return false;
  names_ += d.names.insert_or_assign(name, exists).second ? 1 : 0;
  unsettle(directory, tid);
  return true;
}

bool KernelNames::move(uint64_t from, const std::string& old_name, uint64_t to,
                       const std::string& new_name, bool to_leased, uint32_t tid) {
  std::lock_guard lock(mutex_);
  auto source = directories_.find(from);
  if (source == directories_.end() || !source->second.names.contains(old_name)) return true;
  if (!to_leased || tid == 0) return false;
  names_ += directories_[to].names.insert_or_assign(new_name, true).second ? 1 : 0;
  unsettle(to, tid);
  return true;
}

void KernelNames::renewed(uint64_t directory, const std::string& name) {
  std::lock_guard lock(mutex_);
  if (auto d = directories_.find(directory); d != directories_.end())
    names_ -= d->second.names.erase(name);
}

void KernelNames::request_from(uint32_t tid) {
  if (unsettled_count_.load(std::memory_order_relaxed) == 0) return;
  std::lock_guard lock(mutex_);
  settle(tid);
}

// A thread has one lookup at a time: what it looked up before is settled.
void KernelNames::unsettle(uint64_t directory, uint32_t tid) {
  settle(tid);
  if (unsettled_.size() >= kUnsettledMany) {
    std::vector<uint32_t> ended;
    for (const auto& [thread, where] : unsettled_)
      if (::kill(static_cast<pid_t>(thread), 0) != 0 && errno == ESRCH) ended.push_back(thread);
    for (uint32_t thread : ended) settle(thread);
  }
  unsettled_.emplace(tid, directory);
  unsettled_count_ = unsettled_.size();
  ++directories_[directory].unsettled;
}

void KernelNames::settle(uint32_t tid) {
  auto it = unsettled_.find(tid);
  if (it == unsettled_.end()) return;
  if (auto d = directories_.find(it->second); d != directories_.end() && d->second.unsettled > 0)
    --d->second.unsettled;
  unsettled_.erase(it);
  unsettled_count_ = unsettled_.size();
}

bool KernelNames::end(uint64_t directory, bool at_once, Instant now, Then then) {
  std::lock_guard lock(mutex_);
  auto it = directories_.find(directory);
  if (it == directories_.end()) return true;
  Directory& d = it->second;
  d.contended_until = now + kContendedNs;
  if (d.names.empty()) return true;
  if (at_once || d.unsettled > 0 || d.names.size() > kExpiredMost) {
    advance_epoch();
    return true;
  }
  ++expiries_;
  names_ -= d.names.size();
  std::vector<std::pair<std::string, bool>> names(d.names.begin(), d.names.end());
  d.names.clear();
  const uint64_t id = next_ending_++;
  endings_.emplace(id, Ending{std::move(then), loop_.call_at(now + kExpiryMostNs,
                                                             [this, id] { finish(id, true); })});
  threads_.submit(
      [this, id, directory, names = std::move(names)] { expire(id, directory, names); });
  return false;
}

void KernelNames::expire(uint64_t id, uint64_t directory,
                         const std::vector<std::pair<std::string, bool>>& names) {
  bool sure = true;
  for (const auto& [name, exists] : names) {
    const auto known = channel_.load()->expire_name(directory, name);
    // Some kernels do not find a name without a file to expire it.
    sure = sure && known.has_value() && (*known || exists);
  }
  finish(id, !sure);
}

void KernelNames::finish(uint64_t id, bool by_epoch) {
  Ending ending;
  {
    std::lock_guard lock(mutex_);
    auto it = endings_.find(id);
    if (it == endings_.end()) return;
    ending = std::move(it->second);
    endings_.erase(it);
    if (by_epoch) advance_epoch();
  }
  ending.then();
}

void KernelNames::end_all() {
  std::lock_guard lock(mutex_);
  if (channel_ != nullptr && names_ > 0) advance_epoch();
}

// What is given from here on is noted after it, what was noted before is void: under one lock.
void KernelNames::advance_epoch() {
  ++epochs_;
  if (auto done = channel_.load()->inc_epoch(); !done)
    spdlog::error("names in the kernel: {}", done.error().what);
  for (auto& [node, directory] : directories_) {
    directory.names.clear();
    directory.unsettled = 0;
  }
  names_ = 0;
  unsettled_.clear();
  unsettled_count_ = 0;
}

void KernelNames::forget(uint64_t directory) {
  std::lock_guard lock(mutex_);
  auto it = directories_.find(directory);
  if (it == directories_.end()) return;
  names_ -= it->second.names.size();
  directories_.erase(it);
}

KernelNames::Counts KernelNames::counts() const {
  std::lock_guard lock(mutex_);
  return {names_, expiries_, epochs_};
}

}  // namespace vremote::node
