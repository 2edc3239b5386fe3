#include "node/locks_at_home.h"

#include "coherence/reclaimed_locks.h"

namespace vremote::node {

using namespace coherence;

void LocksAtHome::note(const LockCall& call) {
  std::lock_guard lock(mutex_);
  std::vector<LockTable::Ticket> woken, cancelled;
  switch (call.action) {
    case LockAction::Try:
    case LockAction::Wait:
    case LockAction::Reclaim:
      (void)locks_.set({.file = call.file,
                        .kind = call.kind,
                        .owner = {{}, call.owner},
                        .type = call.type,
                        .range = {call.start, call.end},
                        .pid = call.pid,
                        .wait = false,
                        .ticket = {}},
                       woken);
      break;
    case LockAction::Release:
      locks_.release(call.file, call.kind, {{}, call.owner}, woken, cancelled);
      break;
    case LockAction::Test:
    case LockAction::Cancel:
    case LockAction::Refuse:
      break;
  }
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
