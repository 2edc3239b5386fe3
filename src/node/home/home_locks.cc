// Calls on locks, and searches for circles of those who wait for them.
#include <algorithm>
#include <cerrno>
#include <ctime>

#include "coherence/wait_circles.h"
#include "net/event_loop.h"
#include "node/home/home_service.h"

namespace vremote::node {

using namespace coherence;

namespace {

// Locks that one node may hold, as one of which counts each range of an owner in a file.
constexpr size_t kLocksMax = 256 << 10;

// Messages of searches for circles between two ticks, of one node: a second's worth is some
// thousands.
constexpr size_t kFollowedMax = 1000;

// Other homes compare it with theirs: a clock that all machines share, more or less. Never 0.
uint64_t time_of_day() {
  struct timespec now {};
  ::clock_gettime(CLOCK_REALTIME, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec) + 1;
}

}  // namespace

void HomeService::reply_lock(FileId file, LockTable::Ticket ticket, int error, Outcome outcome,
                             std::vector<FileId>& touched) {
  if (auto waiter = lock_waiters_.find(ticket); waiter != lock_waiters_.end()) {
    file = waiter->second.file;
    lock_waiters_.erase(waiter);
    if (auto it = lock_waiters_of_.find(ticket.node); --it->second == 0) lock_waiters_of_.erase(it);
  }
  Reply reply{.call = ticket.call, .error = error, .outcome = std::move(outcome)};
  queues_.push(file, [this, file, node = ticket.node, reply = std::move(reply)](bool) mutable {
    deliver_(node, file, std::move(reply));
    return true;
  });
  touched.push_back(file);
}

void HomeService::lock(NodeId node, const Call& call) {
  const LockCall& c = std::get<LockCall>(call.operation);
  const LockTable::Ticket ticket{node, call.call};
  LockTable::Request request{.file = c.file,
                             .kind = c.kind,
                             .owner = {node, c.owner},
                             .type = c.type,
                             .range = {c.start, c.end},
                             .pid = c.pid,
                             .wait = c.action == LockAction::Wait,
                             .ticket = ticket,
                             .holds_elsewhere = c.holds_elsewhere,
                             .since = follows_ && follows_(node) ? time_of_day() : 0};
  const bool may_reclaim = c.action == LockAction::Reclaim && may_bring_back(node);
  std::vector<FileId> touched;
  {
    std::lock_guard guard(locks_mutex_);
    std::vector<LockTable::Ticket> woken, cancelled;
    switch (c.action) {
      case LockAction::Reclaim: {
        // Nobody else has been given anything yet.
        std::lock_guard grace(grace_mutex_);
        if (!may_reclaim || !grace_.may_reclaim()) {
          reply_lock(c.file, ticket, EAGAIN, {}, touched);
          break;
        }
      }
        [[fallthrough]];
      case LockAction::Try:
      case LockAction::Wait:
        if (locks_.holds_too_many(request, kLocksMax)) {
          reply_lock(c.file, ticket, ENOLCK, {}, touched);
          break;
        }
        if (const auto waiting = lock_waiters_of_.find(node);
            request.wait && waiting != lock_waiters_of_.end() && waiting->second >= kRequestsMax) {
          // One more may not wait. Its owner keeps an flock that it wanted to exchange.
          request.wait = false;
          const bool done = locks_.set(request, woken) == LockTable::Decision::Done;
          reply_lock(c.file, ticket, done ? 0 : ENOLCK, {}, touched);
          break;
        }
        switch (locks_.set(request, woken)) {
          case LockTable::Decision::Done:
            reply_lock(c.file, ticket, 0, {}, touched);
            break;
          case LockTable::Decision::Conflict:
            if (c.action != LockAction::Reclaim && waits_for_fence(node, call, request)) break;
            reply_lock(c.file, ticket, EAGAIN, {}, touched);
            break;
          case LockTable::Decision::Deadlock:
            reply_lock(c.file, ticket, EDEADLK, {}, touched);
            break;
          case LockTable::Decision::Waits:
            ++lock_waiters_of_[node];
            lock_waiters_.emplace(ticket, LockWaiter{c.file, net::EventLoop::now()});
            break;
        }
        break;
      case LockAction::Test: {
        if (waits_for_fence(node, call, request)) break;
        LockState state;
        if (auto in_the_way = locks_.test(request))
          state = {.free = false,
                   .type = in_the_way->type,
                   .start = in_the_way->range.start,
                   .end = in_the_way->range.end,
                   .pid = in_the_way->owner.node == node ? in_the_way->pid : 0};
        reply_lock(c.file, ticket, 0, state, touched);
        break;
      }
      case LockAction::Cancel:
        if (locks_.cancel(c.file, {node, c.waiting_call}, woken))
          cancelled.push_back({node, c.waiting_call});
        reply_lock(c.file, ticket, 0, {}, touched);
        break;
      case LockAction::Refuse:
        if (locks_.cancel(c.file, {node, c.waiting_call}, woken))
          reply_lock(c.file, {node, c.waiting_call}, EDEADLK, {}, touched);
        reply_lock(c.file, ticket, 0, {}, touched);
        break;
      case LockAction::Release:
        locks_.release(c.file, c.kind, request.owner, woken, cancelled);
        reply_lock(c.file, ticket, 0, {}, touched);
        break;
    }
    for (LockTable::Ticket t : woken) reply_lock(c.file, t, 0, {}, touched);
    for (LockTable::Ticket t : cancelled) reply_lock(c.file, t, EINTR, {}, touched);
  }
  pump(touched);
}

bool HomeService::waits_for_fence(NodeId node, const Call& call,
                                  const LockTable::Request& request) {
  if (!watch_) return false;
  const auto holder = locks_.test(request);
  if (!holder || holder->owner.node == node) return false;
  const auto heard = watch_->heard(holder->owner.node);
  {
    std::lock_guard lock(patience_mutex_);
    if (!heard || !patience_.expired(watched_at_.load(), *heard)) return false;
  }
  if (size_t& of_node = behind_fence_of_[node]; ++of_node > kRequestsMax) return false;
  behind_fence_.emplace_back(node, call);
  watch_->fence({.node = holder->owner.node,
                 .file = request.file,
                 .fence = true,
                 .waited_ns = watched_at_.load() - *heard,
                 .why = "it was not heard of for the lease term and another wants its lock"});
  return true;
}

bool HomeService::holds_range(const LockOwner& owner) const {
  std::lock_guard lock(locks_mutex_);
  return locks_.holds_range(owner);
}

HomeService::LockCounts HomeService::lock_counts() const {
  std::lock_guard lock(locks_mutex_);
  return {locks_.held(), locks_.waiting()};
}

// No order matters here (wait_circles.h, C3).
void HomeService::follow(NodeId node, const FollowWait& asked) {
  std::vector<std::pair<NodeId, FollowOwner>> next;
  {
    std::lock_guard lock(locks_mutex_);
    size_t& followed = followed_[node];
    if (++followed > kFollowedMax) return;
    next = coherence::follow(locks_, lock_table_number_, node, asked);
    followed += next.size();
  }
  for (auto& [to, message] : next) {
    const FileId file = message.file;
    if (follows_ && follows_(to)) deliver_(to, file, std::move(message));
  }
}

}  // namespace vremote::node
