#include "node/guardian/guardian_locks.h"

#include <algorithm>

namespace vremote::node {

void GuardianLocks::note(const GuardianLock& lock) {
  std::lock_guard guard(mutex_);
  add(lock);
}

void GuardianLocks::add(const GuardianLock& lock) {
  const Key key{lock.handle, lock.owner, lock.kind};
  const auto [known, fresh] = known_.try_emplace(key, Place{lock.node, {}});
  if (!fresh) return;
  owned_.insert({lock.node, lock.owner, lock.kind, lock.handle});
  known->second.slot = take_slot();
  if (known->second.slot) {
    write(*known->second.slot, key, lock.node);
  } else {
    unnoted_.insert(key);
    tell_unnoted();
  }
}

void GuardianLocks::drop(uint64_t node, uint8_t kind, uint64_t owner) {
  std::lock_guard guard(mutex_);
  for (auto it = owned_.lower_bound({node, owner, kind, 0});
       it != owned_.end() && it->node == node && it->owner == owner && it->kind == kind;) {
    const Key key{it->handle, owner, kind};
    ++it;  // remove() takes it away
    remove(known_.find(key));
  }
}

void GuardianLocks::drop(uint64_t handle) {
  std::lock_guard guard(mutex_);
  for (auto it = known_.lower_bound({handle, 0, 0});
       it != known_.end() && it->first.handle == handle;)
    it = remove(it);
}

GuardianLocks::Known::iterator GuardianLocks::remove(Known::iterator known) {
  const Key key = known->first;
  const Place place = known->second;
  owned_.erase({place.node, key.owner, key.kind, key.handle});
  const auto next = known_.erase(known);
  if (!place.slot) {
    unnoted_.erase(key);
    tell_unnoted();
    return next;
  }
  memory_.slot[*place.slot].handle.store(0, std::memory_order_release);
  free_.push_back(*place.slot);
  // One whose inode nobody knows cannot be noted.
  const auto waits = std::ranges::find_if(
      unnoted_, [&](const Key& unnoted) { return known_.at(unnoted).node != 0; });
  if (waits == unnoted_.end()) return next;
  Place& its = known_.at(*waits);
  its.slot = take_slot();
  write(*its.slot, *waits, its.node);
  unnoted_.erase(waits);
  tell_unnoted();
  return next;
}

void GuardianLocks::write(uint32_t at, const Key& key, uint64_t node) {
  auto& slot = memory_.slot[at];
  slot.node = node;
  slot.owner = key.owner;
  slot.kind = key.kind;
  slot.handle.store(key.handle, std::memory_order_release);
  if (at >= memory_.used.load(std::memory_order_relaxed))
    memory_.used.store(at + 1, std::memory_order_release);
}

std::optional<uint32_t> GuardianLocks::take_slot() {
  if (!free_.empty()) {
    const uint32_t slot = free_.back();
    free_.pop_back();
    return slot;
  }
  const uint32_t used = memory_.used.load(std::memory_order_relaxed);
  if (used >= kMax) return std::nullopt;
  return used;
}

void GuardianLocks::tell_unnoted() {
  memory_.without_slot.store(unnoted_before_ + static_cast<uint32_t>(unnoted_.size()));
}

void GuardianLocks::learn() {
  std::lock_guard guard(mutex_);
  known_.clear();
  owned_.clear();
  unnoted_.clear();
  free_.clear();
  unnoted_before_ = memory_.without_slot.load();
  const uint32_t used = std::min<uint32_t>(memory_.used.load(), kMax);
  for (uint32_t i = 0; i < used; ++i) {
    auto& slot = memory_.slot[i];
    const Key key{slot.handle.load(std::memory_order_acquire), slot.owner,
                  static_cast<uint8_t>(slot.kind)};
    // Whoever wrote it may have been out of its mind: what is there twice would be dropped once.
    if (key.handle != 0 && known_.try_emplace(key, Place{slot.node, i}).second) {
      owned_.insert({slot.node, key.owner, key.kind, key.handle});
    } else {
      slot.handle.store(0);
      free_.push_back(i);
    }
  }
}

void GuardianLocks::learn_all(std::span<const GuardianLock> held) {
  std::lock_guard guard(mutex_);
  if (unnoted_before_ == 0) return;  // all of them have room
  unnoted_before_ = 0;
  for (const GuardianLock& lock : held) {
    const Key key{lock.handle, lock.owner, lock.kind};
    if (!known_.try_emplace(key, Place{lock.node, {}}).second) continue;
    owned_.insert({lock.node, lock.owner, lock.kind, lock.handle});
    unnoted_.insert(key);
  }
  tell_unnoted();
}

std::optional<std::vector<GuardianLock>> GuardianLocks::all() const {
  if (memory_.without_slot.load() != 0) return std::nullopt;
  std::vector<GuardianLock> found;
  const uint32_t used = std::min<uint32_t>(memory_.used.load(), kMax);
  for (uint32_t i = 0; i < used; ++i)
    if (const auto& slot = memory_.slot[i]; slot.handle.load(std::memory_order_acquire) != 0)
      found.push_back({slot.handle.load(std::memory_order_relaxed), slot.node, slot.owner,
                       static_cast<uint8_t>(slot.kind)});
  return found;
}

}  // namespace vremote::node
