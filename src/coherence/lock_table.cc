#include "coherence/lock_table.h"

#include <algorithm>
#include <unordered_set>

#include "base/check.h"

namespace vremote::coherence {
namespace {

size_t index(LockKind kind) { return static_cast<size_t>(kind); }

bool excludes(LockType a, LockType b) { return a == LockType::Write || b == LockType::Write; }

}  // namespace

bool LockTable::conflicts(const HeldLock& lock, const Request& request) {
  return request.type != LockType::Unlock && lock.owner != request.owner &&
         lock.range.overlaps(request.range) && excludes(lock.type, request.type);
}

bool LockTable::conflicts(const Request& earlier, const Request& request) {
  return earlier.kind == request.kind && earlier.owner != request.owner &&
         earlier.range.overlaps(request.range) && excludes(earlier.type, request.type);
}

// L1 and L3: nothing held and nobody earlier in line is in the way.
bool LockTable::grantable(const FileLocks& locks, std::list<Request>::const_iterator before,
                          const Request& request) const {
  for (const HeldLock& lock : locks.held[index(request.kind)])
    if (conflicts(lock, request)) return false;
  // An owner that holds a lock here already may not be made to wait behind those who wait for it.
  for (const HeldLock& lock : locks.held[index(request.kind)])
    if (lock.owner == request.owner && lock.range.overlaps(request.range)) return true;
  if (request.passes_line) return true;
  for (auto it = locks.waiting.begin(); it != before; ++it)
    if (conflicts(*it, request)) return false;
  return true;
}

bool LockTable::holds_range(const LockOwner& owner) const {
  const auto found = owners_.find(owner);
  return found != owners_.end() && found->second.held > 0;
}

bool LockTable::holds_some_of(const Request& request) const {
  const auto found = files_.find(request.file);
  return found != files_.end() &&
         std::ranges::any_of(found->second.held[index(request.kind)], [&](const HeldLock& lock) {
           return lock.owner == request.owner && lock.range.overlaps(request.range);
         });
}

bool LockTable::holds_too_many(const Request& request, size_t most) const {
  const auto of_node = held_of_.find(request.owner.node);
  if (of_node == held_of_.end() || of_node->second < most) return false;
  if (request.type != LockType::Unlock) return true;
  const auto found = files_.find(request.file);
  return found != files_.end() &&
         std::ranges::any_of(found->second.held[index(request.kind)], [&](const HeldLock& lock) {
           return lock.owner == request.owner && lock.range.start < request.range.start &&
                  request.range.end < lock.range.end;
         });
}

void LockTable::holds(LockKind kind, const LockOwner& owner, ptrdiff_t more) {
  if (more == 0) return;
  const auto of_node = held_of_.try_emplace(owner.node).first;
  of_node->second += static_cast<size_t>(more);
  if (of_node->second == 0) held_of_.erase(of_node);
  if (kind != LockKind::Range) return;
  const auto at = owners_.try_emplace(owner).first;
  at->second.held += static_cast<size_t>(more);
  forget_if_idle(at);
}

void LockTable::forget_if_idle(
    std::unordered_map<LockOwner, Owner, LockOwnerHash>::iterator owner) {
  if (owner->second.held == 0 && owner->second.waiting.empty()) owners_.erase(owner);
}

void LockTable::wait_in_line(FileLocks& locks, const Request& request) {
  locks.waiting.push_back(request);
  if (request.kind == LockKind::Range)
    owners_[request.owner].waiting.push_back(&locks.waiting.back());
}

template <class Predicate>
size_t LockTable::leave_line(FileLocks& locks, Predicate gone) {
  return locks.waiting.remove_if([&](const Request& request) {
    if (!gone(request)) return false;
    if (request.kind == LockKind::Range) {
      const auto owner = owners_.find(request.owner);
      std::erase(owner->second.waiting, &request);
      forget_if_idle(owner);
    }
    return true;
  });
}

template <class Predicate>
size_t LockTable::let_go(FileLocks& locks, LockKind kind, Predicate gone) {
  return std::erase_if(locks.held[index(kind)], [&](const HeldLock& lock) {
    if (!gone(lock)) return false;
    holds(kind, lock.owner, -1);
    return true;
  });
}

LockTable::Decision LockTable::set(Request request, std::vector<Ticket>& woken) {
  FileLocks& locks = files_[request.file];
  request.passes_line = request.kind == LockKind::Range && !locks.waiting.empty() &&
                        request.type != LockType::Unlock &&
                        (request.holds_elsewhere || holds_range(request.owner));
  if (request.type == LockType::Unlock || grantable(locks, locks.waiting.end(), request)) {
    place(locks, request);
    wake(request.file, woken);
    return Decision::Done;
  }
  if (!request.wait) return Decision::Conflict;
  if (request.kind == LockKind::Range && !mistakes_.has(Mistake::AllowCircles) &&
      closes_circle(request))
    return Decision::Deadlock;
  const auto converts = [&](const HeldLock& lock) { return lock.owner == request.owner; };
  const bool lets_go =
      request.kind == LockKind::Flock && let_go(locks, LockKind::Flock, converts) > 0;
  wait_in_line(locks, request);
  if (lets_go) wake(request.file, woken);
  return Decision::Waits;
}

// Whether an owner that stands in the way of `request` waits, directly or through others, for the
// request's own owner.
bool LockTable::closes_circle(const Request& request) const {
  // Most who wait hold nothing and wait nowhere else: nobody can wait for them.
  if (!owners_.contains(request.owner)) return false;
  std::unordered_set<LockOwner, LockOwnerHash> seen;
  std::vector<const Request*> todo{&request};
  size_t steps = 0;
  bool closed = false;
  const auto in_the_way = [&](const LockOwner& owner) {
    if (owner == request.owner) {
      closed = true;
    } else if (const auto waits = owners_.find(owner); waits != owners_.end() &&
                                                       !waits->second.waiting.empty() &&
                                                       seen.insert(owner).second) {
      todo.insert(todo.end(), waits->second.waiting.begin(), waits->second.waiting.end());
    }
  };
  while (!todo.empty() && !closed && steps < kCircleStepsMax) {
    const Request* waiter = todo.back();
    todo.pop_back();
    const FileLocks& locks = files_.at(waiter->file);
    for (const HeldLock& lock : locks.held[index(LockKind::Range)]) {
      ++steps;
      if (conflicts(lock, *waiter)) in_the_way(lock.owner);
    }
    for (const Request& earlier : locks.waiting) {
      if (&earlier == waiter || waiter->passes_line) break;
      ++steps;
      if (conflicts(earlier, *waiter)) in_the_way(earlier.owner);
    }
  }
  return closed;
}

LockTable::Ways LockTable::in_the_way(FileId file, Ticket ticket, uint64_t since, size_t most,
                                      size_t longest) const {
  const auto asked = files_.find(file);
  if (asked == files_.end()) return {};
  const auto start = std::ranges::find(asked->second.waiting, ticket, &Request::ticket);
  if (start == asked->second.waiting.end() || start->kind != LockKind::Range) return {};
  Ways ways{.since = since == 0 ? start->since : since, .owners = {}};
  if (start->since > ways.since || longest == 0) return ways;
  struct Step {
    const Request* waiter;
    size_t before;  // of `steps`
    size_t length;  // to this one, itself included
  };
  std::vector<Step> steps{{&*start, 0, 1}};
  std::unordered_set<LockOwner, LockOwnerHash> seen{start->owner};
  size_t looked_at = 0;
  const auto through = [&](size_t at) {
    std::vector<Ticket> tickets{steps[at].waiter->ticket};
    while (at != 0) {
      at = steps[at].before;
      tickets.push_back(steps[at].waiter->ticket);
    }
    std::ranges::reverse(tickets);
    return tickets;
  };
  for (size_t at = 0; at < steps.size() && looked_at < kWayStepsMax; ++at) {
    const Request* const waiter = steps[at].waiter;
    const auto in_the_way = [&](const LockOwner& owner) {
      if (ways.owners.size() == most || !seen.insert(owner).second) return;
      ways.owners.push_back({owner, waiter->file, through(at)});
      const auto waits = owners_.find(owner);
      if (waits == owners_.end() || steps[at].length == longest) return;
      for (const Request* next : waits->second.waiting) {
        if (++looked_at >= kWayStepsMax) return;
        if (next->since <= ways.since) steps.push_back({next, at, steps[at].length + 1});
      }
    };
    const FileLocks& locks = files_.at(waiter->file);
    for (const HeldLock& lock : locks.held[index(LockKind::Range)]) {
      if (++looked_at >= kWayStepsMax) break;
      if (conflicts(lock, *waiter)) in_the_way(lock.owner);
    }
    for (const Request& earlier : locks.waiting) {
      if (&earlier == waiter || waiter->passes_line || ++looked_at >= kWayStepsMax) break;
      if (conflicts(earlier, *waiter)) in_the_way(earlier.owner);
    }
  }
  return ways;
}

// L2.
void LockTable::place(FileLocks& locks, const Request& request) {
  std::vector<HeldLock>& held = locks.held[index(request.kind)];
  std::vector<HeldLock> rest;
  rest.reserve(held.size() + 2);
  HeldLock added{request.owner, request.type, request.range, request.pid};
  const auto of_owner = [&](const HeldLock& lock) { return lock.owner == request.owner; };
  const ptrdiff_t before = std::ranges::count_if(held, of_owner);
  for (const HeldLock& lock : held) {
    const bool touches =
        lock.type == request.type &&
        lock.range.start <= (added.range.end == UINT64_MAX ? UINT64_MAX : added.range.end + 1) &&
        added.range.start <= (lock.range.end == UINT64_MAX ? UINT64_MAX : lock.range.end + 1);
    if (lock.owner != request.owner || (!lock.range.overlaps(request.range) && !touches)) {
      rest.push_back(lock);
      continue;
    }
    if (lock.type == request.type) {
      added.range.start = std::min(added.range.start, lock.range.start);
      added.range.end = std::max(added.range.end, lock.range.end);
      continue;
    }
    if (lock.range.start < request.range.start) {
      HeldLock front = lock;
      front.range.end = request.range.start - 1;
      rest.push_back(front);
    }
    if (lock.range.end > request.range.end) {
      HeldLock back = lock;
      back.range.start = request.range.end + 1;
      rest.push_back(back);
    }
  }
  if (request.type != LockType::Unlock) rest.push_back(added);
  held = std::move(rest);
  holds(request.kind, request.owner, std::ranges::count_if(held, of_owner) - before);
}

void LockTable::wake(FileId file, std::vector<Ticket>& woken) {
  auto found = files_.find(file);
  if (found == files_.end()) return;
  FileLocks& locks = found->second;
  for (auto it = locks.waiting.begin(); it != locks.waiting.end();) {
    if (!grantable(locks, it, *it)) {
      ++it;
      continue;
    }
    place(locks, *it);
    if (!mistakes_.has(Mistake::WakeNobody)) woken.push_back(it->ticket);
    leave_line(locks, [&](const Request& request) { return &request == &*it; });
    it =
        locks.waiting.begin();  // a downgrade may have let go of something an earlier one waits for
  }
  if (locks.empty()) files_.erase(found);
}

std::optional<HeldLock> LockTable::test(const Request& request) const {
  auto found = files_.find(request.file);
  if (found == files_.end()) return std::nullopt;
  for (const HeldLock& lock : found->second.held[index(request.kind)])
    if (conflicts(lock, request)) return lock;
  return std::nullopt;
}

bool LockTable::cancel(FileId file, Ticket ticket, std::vector<Ticket>& woken) {
  auto found = files_.find(file);
  if (found == files_.end()) return false;
  const size_t gone =
      leave_line(found->second, [&](const Request& request) { return request.ticket == ticket; });
  if (gone > 0) wake(file, woken);
  return gone > 0;
}

void LockTable::release(FileId file, LockKind kind, LockOwner owner, std::vector<Ticket>& woken,
                        std::vector<Ticket>& cancelled) {
  auto found = files_.find(file);
  if (found == files_.end()) return;
  FileLocks& locks = found->second;
  for (const Request& request : locks.waiting)
    if (request.kind == kind && request.owner == owner) cancelled.push_back(request.ticket);
  leave_line(locks, [&](const Request& request) {
    return request.kind == kind && request.owner == owner;
  });
  let_go(locks, kind, [&](const HeldLock& lock) { return lock.owner == owner; });
  wake(file, woken);
}

void LockTable::node_gone(NodeId node, std::vector<Ticket>& woken) {
  std::vector<FileId> touched;
  for (auto& [file, locks] : files_) {
    size_t gone =
        leave_line(locks, [&](const Request& request) { return request.owner.node == node; });
    for (LockKind kind : {LockKind::Range, LockKind::Flock})
      gone += let_go(locks, kind, [&](const HeldLock& lock) { return lock.owner.node == node; });
    if (gone > 0) touched.push_back(file);
  }
  for (FileId file : touched) wake(file, woken);
}

LockCall LockTable::Held::reclaim() const {
  return {.file = file,
          .action = LockAction::Reclaim,
          .kind = kind,
          .type = lock.type,
          .owner = lock.owner.id,
          .start = lock.range.start,
          .end = lock.range.end,
          .pid = lock.pid};
}

std::vector<LockTable::Held> LockTable::all() const {
  std::vector<Held> out;
  for (const auto& [file, locks] : files_)
    for (LockKind kind : {LockKind::Range, LockKind::Flock})
      for (const HeldLock& lock : locks.held[static_cast<size_t>(kind)])
        out.push_back({file, kind, lock});
  return out;
}

std::vector<LockTable::Blocker> LockTable::blockers() const {
  std::vector<Blocker> out;
  for (const auto& [file, locks] : files_) {
    if (locks.waiting.empty()) continue;
    for (const auto& held : locks.held)
      for (const HeldLock& lock : held)
        for (const Request& request : locks.waiting)
          if (lock.owner.node != request.owner.node && conflicts(lock, request)) {
            if (out.empty() || out.back().file != file || out.back().node != lock.owner.node)
              out.push_back({file, lock.owner.node});
            break;
          }
  }
  return out;
}

size_t LockTable::held() const {
  size_t n = 0;
  for (const auto& [file, locks] : files_) n += locks.held[0].size() + locks.held[1].size();
  return n;
}

size_t LockTable::waiting() const {
  size_t n = 0;
  for (const auto& [file, locks] : files_) n += locks.waiting.size();
  return n;
}

std::vector<LockTable::BlockedRequest> LockTable::blocked_requests(size_t most,
                                                                   size_t most_ahead) const {
  std::vector<BlockedRequest> out;
  for (const auto& [file, locks] : files_) {
    for (auto it = locks.waiting.begin(); it != locks.waiting.end(); ++it) {
      if (out.size() == most) return out;
      BlockedRequest& blocked = out.emplace_back(BlockedRequest{*it, {}});
      std::vector<HeldLock>& held_by = blocked.held_by;
      for (const HeldLock& lock : locks.held[index(it->kind)])
        if (conflicts(lock, *it) && held_by.size() < most_ahead) held_by.push_back(lock);
      if (it->passes_line) continue;
      for (auto ahead = locks.waiting.begin(); ahead != it && held_by.size() < most_ahead; ++ahead)
        if (conflicts(*ahead, *it))
          held_by.push_back({ahead->owner, ahead->type, ahead->range, ahead->pid});
    }
  }
  return out;
}

void LockTable::check() const {
  std::map<NodeId, size_t> held_of;
  for (const auto& [file, locks] : files_)
    for (const auto& held : locks.held)
      for (const HeldLock& lock : held) ++held_of[lock.owner.node];
  VR_CHECK_MSG(held_of == held_of_, "the locks of each node are counted");
  std::unordered_map<LockOwner, std::pair<size_t, size_t>, LockOwnerHash> counted;
  for (const auto& [file, locks] : files_) {
    for (const HeldLock& lock : locks.held[index(LockKind::Range)]) ++counted[lock.owner].first;
    for (const Request& request : locks.waiting)
      if (request.kind == LockKind::Range) ++counted[request.owner].second;
    for (const auto& held : locks.held) {
      for (size_t i = 0; i < held.size(); ++i) {
        VR_CHECK(held[i].range.start <= held[i].range.end && held[i].type != LockType::Unlock);
        for (size_t j = 0; j < i; ++j) {
          const bool overlap = held[i].range.overlaps(held[j].range);
          VR_CHECK_MSG(
              !overlap || (held[i].owner != held[j].owner && !excludes(held[i].type, held[j].type)),
              "L1: two locks in conflict");
        }
      }
    }
    for (auto it = locks.waiting.begin(); it != locks.waiting.end(); ++it)
      VR_CHECK_MSG(!grantable(locks, it, *it), "L3: one waits for nothing");
  }
  VR_CHECK(counted.size() == owners_.size());
  for (const auto& [owner, of] : owners_)
    VR_CHECK(counted[owner] == std::pair(of.held, of.waiting.size()));
}

}  // namespace vremote::coherence
