// Which locks a node claims from a home that has restarted (R2).
//
// A lock whose release, or exchange for a weaker one, was under way is not the node's any more: the
// old home may have done that, and given the lock to another, who claims it too. Nor is an flock
// whose exchange for a stronger one waited: the old one goes first, and others may get it (L2).
// Whoever gives a lock up does not rely on it from the call on.
//
// Pure.
#pragma once

#include <algorithm>
#include <cerrno>
#include <span>
#include <vector>

#include "coherence/lock_table.h"

namespace vremote::coherence {

// Notes what has become of this call: the home's answer, or EIO where nobody knows.
inline void note_lock(LockTable& held, const LockCall& call, int error = 0) {
  std::vector<LockTable::Ticket> woken, cancelled;
  if (error != 0) {
    // It waited, or may have: an flock that it was to take the place of is gone (L2). With other
    // errors the home has not made it wait.
    if (call.action == LockAction::Wait && call.kind == LockKind::Flock &&
        (error == EINTR || error == EIO))
      held.release(call.file, call.kind, {{}, call.owner}, woken, cancelled);
    return;
  }
  if (call.action == LockAction::Release)
    held.release(call.file, call.kind, {{}, call.owner}, woken, cancelled);
  if (call.action != LockAction::Try && call.action != LockAction::Wait &&
      call.action != LockAction::Reclaim)
    return;
  const LockTable::Request request{.file = call.file,
                                   .kind = call.kind,
                                   .owner = {{}, call.owner},
                                   .type = call.type,
                                   .range = {call.start, call.end},
                                   .pid = call.pid,
                                   .wait = false,
                                   .ticket = {}};
  if (held.set(request, woken) != LockTable::Decision::Conflict) return;
  // What others of this node had there is gone: they wait to exchange an flock (L2), or the answer
  // to an unlock is still under way. All else is theirs.
  for (const LockTable::Held& h : held.all()) {
    if (h.file != call.file || h.kind != call.kind || !LockTable::conflicts(h.lock, request))
      continue;
    LockTable::Request gone = request;
    gone.owner = h.lock.owner;
    gone.type = LockType::Unlock;
    (void)held.set(gone, woken);
  }
  (void)held.set(request, woken);
}

// `held`: what the home had told this node that it has. `under_way`: the calls without a reply, in
// the order in which they were made.
inline std::vector<LockTable::Held> locks_to_reclaim(LockTable held,
                                                     std::span<const LockCall> under_way) {
  std::vector<LockTable::Ticket> woken, cancelled;
  const auto set = [&](const LockCall& call, LockType type, LockRange range, uint32_t pid) {
    (void)held.set({.file = call.file,
                    .kind = call.kind,
                    .owner = {{}, call.owner},
                    .type = type,
                    .range = range,
                    .pid = pid,
                    .ticket = {}},
                   woken);
  };
  for (const LockCall& call : under_way) {
    const LockRange range{call.start, call.end};
    if (call.action == LockAction::Release) {
      held.release(call.file, call.kind, {{}, call.owner}, woken, cancelled);
      continue;
    }
    if (call.action != LockAction::Try && call.action != LockAction::Wait) continue;
    if (call.type == LockType::Unlock) set(call, LockType::Unlock, range, call.pid);
    if (call.kind == LockKind::Flock && call.action == LockAction::Wait &&
        call.type == LockType::Write)
      for (const LockTable::Held& h : held.all())
        if (h.file == call.file && h.kind == call.kind && h.lock.owner.id == call.owner &&
            h.lock.type == LockType::Read)
          held.release(call.file, call.kind, {{}, call.owner}, woken, cancelled);
    if (call.type != LockType::Read) continue;
    for (const LockTable::Held& h : held.all())
      if (h.file == call.file && h.kind == call.kind && h.lock.owner.id == call.owner &&
          h.lock.type == LockType::Write && h.lock.range.overlaps(range))
        set(call, LockType::Read,
            {std::max(h.lock.range.start, range.start), std::min(h.lock.range.end, range.end)},
            h.lock.pid);
  }
  return held.all();
}

}  // namespace vremote::coherence
