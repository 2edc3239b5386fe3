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

LocksAtHome::AllHeld LocksAtHome::all() {
  std::lock_guard lock(mutex_);
  return locks_.all();
}

LocksAtHome::AllHeld LocksAtHome::to_reclaim(std::span<const LockCall> under_way) {
  std::lock_guard lock(mutex_);
  return locks_to_reclaim(locks_, under_way);
}

std::vector<LockCall> LocksAtHome::to_take_back(const LockCall& late, uint64_t call) {
  std::vector<LockCall> out;
  const bool waits = late.action == LockAction::Wait, tries = late.action == LockAction::Try;
  if (late.type == LockType::Unlock || (!waits && !tries)) return out;
  if (waits) out.push_back({.file = late.file, .action = LockAction::Cancel, .waiting_call = call});
  std::lock_guard lock(mutex_);
  if (locks_.holds_some_of({.file = late.file,
                            .kind = late.kind,
                            .owner = {{}, late.owner},
                            .range = {late.start, late.end},
                            .ticket = {}}))
    return out;
  LockCall unlock = late;
  unlock.action = LockAction::Try;
  unlock.type = LockType::Unlock;
  out.push_back(unlock);
  return out;
}

LocksAtHome::AllHeld LocksAtHome::take_all() {
  std::lock_guard lock(mutex_);
  AllHeld held = locks_.all();
  locks_ = LockTable();
  return held;
}

}  // namespace vremote::node
