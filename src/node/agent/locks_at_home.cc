#include "node/agent/locks_at_home.h"

#include "coherence/reclaimed_locks.h"

namespace vremote::node {

using namespace coherence;

void LocksAtHome::note(const LockCall& call, int error) {
  std::lock_guard lock(mutex_);
  note_lock(locks_, call, error);
}

bool LocksAtHome::holds_range(uint64_t owner) {
  std::lock_guard lock(mutex_);
  return locks_.holds_range({{}, owner});
}

std::vector<LocksAtHome::Held> LocksAtHome::all() {
  std::lock_guard lock(mutex_);
  return locks_.all();
}

std::vector<LocksAtHome::Held> LocksAtHome::to_reclaim(std::span<const LockCall> under_way) {
  std::lock_guard lock(mutex_);
  return locks_to_reclaim(locks_, under_way);
}

std::vector<LocksAtHome::Held> LocksAtHome::take_all() {
  std::lock_guard lock(mutex_);
  std::vector<Held> held = locks_.all();
  locks_ = LockTable();
  return held;
}

}  // namespace vremote::node
