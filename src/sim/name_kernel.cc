#include "sim/name_kernel.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>

namespace vremote::sim {

NameKernelCounts& NameKernelCounts::operator+=(const NameKernelCounts& o) {
  hits += o.hits;
  lookups += o.lookups;
  revalidations += o.revalidations;
  expiries += o.expiries;
  expiries_blocked += o.expiries_blocked;
  epochs += o.epochs;
  return *this;
}

bool InodeLock::try_take(bool exclusive) {
  if (!line_.empty() || !free_for(exclusive)) return false;
  exclusive ? void(writer_ = true) : void(++readers_);
  return true;
}

void InodeLock::release() {
  writer_ ? void(writer_ = false) : void(--readers_);
  while (!line_.empty() && free_for(line_.front().first)) {
    const auto [exclusive, handle] = line_.front();
    line_.pop_front();
    exclusive ? void(writer_ = true) : void(++readers_);
    scheduler_.resume_after(scheduler_.draw(Delay::WakeUp), handle);
  }
}

NameKernel::NameKernel(Scheduler& scheduler, NameHistory& history, NameDaemon& daemon, int node,
                       bool expires_absent)
    : scheduler_(scheduler),
      history_(history),
      daemon_(daemon),
      node_(node),
      expires_absent_(expires_absent),
      lookup_over_(scheduler) {}

NameKernel::DentryRef NameKernel::hashed(const NameKey& key) const {
  auto it = dentries_.find(key);
  return it == dentries_.end() ? nullptr : it->second;
}

InodeLock& NameKernel::lock(FileId dir) {
  return locks_.try_emplace(dir, scheduler_).first->second;
}

std::string NameKernel::who(uint32_t tid, const char* call) const {
  return fmt::format("n{} t{} {}", node_, tid, call);
}

// fuse_dentry_revalidate(). `forced`: LOOKUP_EXCL or LOOKUP_RENAME_TARGET.
Co<bool> NameKernel::revalidate(uint32_t tid, NameKey key, DentryRef dentry, bool forced) {
  if (dentry->epoch < epoch_) co_return false;
  if (dentry->valid && !forced) {
    ++counts_.hits;
    co_return true;
  }
  if (!dentry->file) co_return false;
  const FileId file = *dentry->file;
  ++counts_.revalidations;
  auto arrival = std::make_shared<Arrival<LookedUp>>(scheduler_);
  co_await scheduler_.sleep(Delay::KernelQueue);
  daemon_.on_lookup(tid, key, arrival);
  const LookedUp answer = co_await arrival->wait();
  if (answer.file != file) co_return false;
  // Whatever has come in between.
  dentry->valid = answer.kept;
  scheduler_.trace(node_, -1, "kernel  t{} sets {} again{}", tid, to_text(key),
                   answer.kept ? ", kept" : "");
  co_return true;
}

Co<NameKernel::DentryRef> NameKernel::find(uint32_t tid, NameKey key, bool forced) {
  for (;;) {
    if (DentryRef dentry = hashed(key)) {
      const bool good = co_await revalidate(tid, key, dentry, forced);
      if (good) co_return dentry;
      if (hashed(key) == dentry) dentries_.erase(key);
      continue;
    }
    if (in_lookup_.contains(key)) {  // d_alloc_parallel()
      co_await lookup_over_.wait();
      continue;
    }
    in_lookup_.insert(key);
    ++counts_.lookups;
    auto dentry = std::make_shared<Dentry>();
    dentry->epoch = epoch_;
    auto arrival = std::make_shared<Arrival<LookedUp>>(scheduler_);
    co_await scheduler_.sleep(Delay::KernelQueue);
    daemon_.on_lookup(tid, key, arrival);
    const LookedUp answer = co_await arrival->wait();
    dentry->file = answer.file;
    dentry->valid = answer.kept;
    scheduler_.trace(node_, -1, "kernel  t{} has {} of {}{}", tid, to_text(answer.file),
                     to_text(key), answer.kept ? ", kept" : "");
    dentries_[key] = dentry;
    in_lookup_.erase(key);
    lookup_over_.wake_all();
    co_return dentry;
  }
}

Co<> NameKernel::stat(uint32_t tid, NameKey key) {
  const int64_t begin = scheduler_.now().ns;
  NameValue file;
  bool known = false;
  if (DentryRef dentry = hashed(key)) {
    file = dentry->file;
    known = co_await revalidate(tid, key, dentry, false);
    if (!known && hashed(key) == dentry) dentries_.erase(key);
  }
  if (!known) {
    co_await lock(key.first).take(false);
    DentryRef dentry = co_await find(tid, key, false);
    file = dentry->file;
    lock(key.first).release();
  }
  history_.saw(number(), key, file, {begin, scheduler_.now().ns}, who(tid, "stat"));
  scheduler_.trace(node_, -1, "process t{} stat {}: {} since {}", tid, to_text(key), to_text(file),
                   begin / 1000);
}

Co<> NameKernel::create(uint32_t tid, NameKey key, bool exclusive) {
  const int64_t begin = scheduler_.now().ns;
  co_await lock(key.first).take(true);
  DentryRef dentry = co_await find(tid, key, exclusive);
  if (dentry->file) {
    history_.saw(number(), key, dentry->file, {begin, scheduler_.now().ns}, who(tid, "create"));
    lock(key.first).release();
    co_return;
  }
  const uint64_t epoch = epoch_;
  auto arrival = std::make_shared<Arrival<Changed>>(scheduler_);
  co_await scheduler_.sleep(Delay::KernelQueue);
  daemon_.on_create(tid, key, exclusive, arrival);
  const Changed answer = co_await arrival->wait();
  if (answer.error == 0) {
    dentry->file = answer.file;
    dentry->valid = false;
    dentry->epoch = epoch;
  }
  lock(key.first).release();
  const int64_t end = scheduler_.now().ns;
  history_.returned({number(), answer.calls}, end);
  if (answer.error == EEXIST) {
    history_.saw_some(number(), key, {begin, end}, who(tid, "create"));
  } else {
    history_.saw(number(), key, answer.file, {begin, end}, who(tid, "create"));
  }
  scheduler_.trace(node_, -1, "process t{} create {}: {} error {} since {}", tid, to_text(key),
                   to_text(answer.file), answer.error, begin / 1000);
}

Co<> NameKernel::remove(uint32_t tid, NameKey key) {
  const int64_t begin = scheduler_.now().ns;
  co_await lock(key.first).take(true);
  DentryRef dentry = co_await find(tid, key, false);
  if (!dentry->file) {
    history_.saw(number(), key, {}, {begin, scheduler_.now().ns}, who(tid, "unlink"));
    lock(key.first).release();
    co_return;
  }
  auto arrival = std::make_shared<Arrival<Changed>>(scheduler_);
  co_await scheduler_.sleep(Delay::KernelQueue);
  daemon_.on_remove(tid, key, arrival);
  const Changed answer = co_await arrival->wait();
  dentry->valid = false;
  if (answer.error == 0 && hashed(key) == dentry) dentries_.erase(key);
  lock(key.first).release();
  const int64_t end = scheduler_.now().ns;
  history_.returned({number(), answer.calls}, end);
  if (answer.error == ENOENT) history_.saw(number(), key, {}, {begin, end}, who(tid, "unlink"));
  scheduler_.trace(node_, -1, "process t{} unlink {}: error {} since {}", tid, to_text(key),
                   answer.error, begin / 1000);
}

Co<> NameKernel::rename(uint32_t tid, NameKey from, NameKey to, bool exchange) {
  const int64_t begin = scheduler_.now().ns;
  const FileId first = std::min(from.first, to.first), second = std::max(from.first, to.first);
  co_await lock(first).take(true);
  if (second != first) co_await lock(second).take(true);
  DentryRef source = co_await find(tid, from, false);
  DentryRef target;
  if (source->file) target = co_await find(tid, to, true);
  const bool asks = source->file && (!exchange || target->file) && source->file != target->file;
  if (!source->file)
    history_.saw(number(), from, {}, {begin, scheduler_.now().ns}, who(tid, "rename"));
  if (source->file && exchange && !target->file)
    history_.saw(number(), to, {}, {begin, scheduler_.now().ns}, who(tid, "exchange"));
  if (asks) {
    auto arrival = std::make_shared<Arrival<Changed>>(scheduler_);
    co_await scheduler_.sleep(Delay::KernelQueue);
    daemon_.on_rename(tid, from, to, exchange, arrival);
    const Changed answer = co_await arrival->wait();
    if (answer.error == 0) {
      // Also one that somebody dropped meanwhile: d_move() hashes it anew.
      dentries_.erase(from);
      dentries_[to] = source;
      if (exchange) dentries_[from] = target;
    } else {
      source->valid = target->valid = false;
      if (hashed(from) == source) dentries_.erase(from);
      if (hashed(to) == target) dentries_.erase(to);
    }
    const int64_t end = scheduler_.now().ns;
    history_.returned({number(), answer.calls}, end);
    if (answer.error == ENOENT && !exchange)
      history_.saw(number(), from, {}, {begin, end}, who(tid, "rename"));
    scheduler_.trace(node_, -1, "process t{} rename {} {}: error {} since {}", tid, to_text(from),
                     to_text(to), answer.error, begin / 1000);
  }
  if (second != first) lock(second).release();
  lock(first).release();
}

Co<> NameKernel::list(uint32_t tid, FileId dir, const std::vector<std::string>& universe) {
  const int64_t begin = scheduler_.now().ns;
  co_await lock(dir).take(false);
  auto arrival = std::make_shared<Arrival<Listed>>(scheduler_);
  co_await scheduler_.sleep(Delay::KernelQueue);
  daemon_.on_list(tid, dir, arrival);
  const Listed answer = co_await arrival->wait();
  lock(dir).release();
  for (const std::string& name : universe) {
    auto it = answer.names.find(name);
    history_.saw(number(), {dir, name},
                 it == answer.names.end() ? NameValue{} : NameValue{it->second},
                 {begin, scheduler_.now().ns}, who(tid, "readdir"));
  }
}

Co<bool> NameKernel::expire(NameKey key) {
  ++counts_.expiries;
  InodeLock& directory = lock(key.first);
  if (directory.busy()) ++counts_.expiries_blocked;
  co_await directory.take(true);
  DentryRef dentry = hashed(key);
  const bool found = dentry != nullptr && (dentry->file || expires_absent_);
  if (found) dentry->valid = false;
  scheduler_.trace(node_, -1, "kernel  expires {}{}", to_text(key), found ? "" : ": not there");
  directory.release();
  co_return found;
}

void NameKernel::advance_epoch() {
  ++counts_.epochs;
  ++epoch_;
  scheduler_.trace(node_, -1, "kernel  epoch {}", epoch_);
}

std::string NameKernel::dump() const {
  std::string out;
  for (const auto& [dir, lock] : locks_)
    if (lock.busy()) out += fmt::format("  n{} d{}: its inode lock is held\n", node_, dir.inode);
  return out;
}

}  // namespace vremote::sim
