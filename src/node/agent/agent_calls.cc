// Operations at the home: each is answered once.
#include <cerrno>
#include <utility>

#include "coherence/operation_needs.h"
#include "node/agent/agent_service.h"

namespace vremote::node {

using namespace coherence;

uint64_t AgentService::call(Caller caller, Operation operation, ThenReply then, Waiting waiting) {
  const uint64_t id = reserve_call(waiting.request, operation);
  call_as(id, std::move(caller), std::move(operation), std::move(then), waiting);
  return id;
}

void AgentService::call_as(uint64_t id, Caller caller, Operation operation, ThenReply then,
                           Waiting waiting) {
  const auto is_under_way = [&] {
    std::lock_guard lock(calls_mutex_);
    if (calls_.contains(id)) return true;
    unheard_.heard(id);
    return false;
  };
  if (environment_.backlogged && !gives_up(operation) && environment_.backlogged() &&
      !is_under_way()) {
    then(Reply{.call = id, .error = EHOSTDOWN, .outcome = {}});
    return;
  }
  Call message{.call = id, .caller = std::move(caller), .operation = std::move(operation)};
  const FileId file = file_of(message.operation);
  const int64_t started = net::EventLoop::now().ns;
  ThenReply timed = [this, started, then = std::move(then)](Reply&& reply) mutable {
    environment_.metrics->record(Latency::Call, net::EventLoop::now().ns - started);
    then(std::move(reply));
  };
  // In order with what the file's agent sends, and with its reset: that sends again what is here.
  Shard& shard = shard_of(file);
  {
    std::lock_guard lock(shard.mutex);
    {
      std::lock_guard calls_lock(calls_mutex_);
      auto [it, fresh] = calls_.try_emplace(id);
      it->second.then = std::move(timed);
      it->second.waiting = waiting;
      it->second.started_ns = started;
      if (!fresh) return;  // the daemon before has made it
      it->second.call = message;
      message.heard_below = heard_below(message);
    }
    if (local_) {
      std::lock_guard outbox(shard.outbox_mutex);
      shard.outbox.emplace_back(file, std::move(message));
    } else {
      send_(file, std::move(message), shard.session);
    }
  }
  if (local_) deliver_outbox(shard);
}

uint64_t AgentService::heard_below(const Call& call) const {
  return is_noted(call.operation) ? unheard_.heard_below(call.call) : 0;
}

uint64_t AgentService::reserve_call(uint64_t request, const Operation& operation) {
  const bool noted = is_noted(operation);
  if (!noted && request == 0) return next_call_.fetch_add(1, std::memory_order_relaxed);
  std::lock_guard lock(calls_mutex_);
  if (request != 0) {
    if (auto it = inherited_.find(request); it != inherited_.end()) {
      const uint64_t id = it->second;
      inherited_.erase(it);
      auto call = calls_.find(id);
      if (call != calls_.end() && call->second.call.operation.index() == operation.index())
        return id;
    }
  }
  const uint64_t id = next_call_.fetch_add(1, std::memory_order_relaxed);
  if (noted) unheard_.made(id);
  return id;
}

void AgentService::fail_late_calls() {
  bool late = false;
  with(*shards_.front(), [&](Agent& agent, Instant now, AgentActions& actions) {
    late = agent.out_of_patience(now, actions);
  });
  if (!late) return;
  std::vector<ThenReply> failed;
  std::vector<FileId> truncated;
  std::vector<LockCall> taken_back;
  {
    std::lock_guard lock(calls_mutex_);
    for (auto it = calls_.begin(); it != calls_.end();) {
      PendingCall& pending = it->second;
      const auto* lock_call = std::get_if<LockCall>(&pending.call.operation);
      if (const auto* cut = truncation(pending.call.operation)) {
        if (!pending.goes_on) truncated.push_back(cut->file);
        ++it;
      } else if (is_claim(pending.call.operation)) {
        ++it;  // no program waits for it
      } else if (lock_call != nullptr && lock_call->action != LockAction::Test) {
        if (!pending.goes_on && lock_call->action != LockAction::Release) {
          failed.push_back(pending.go_on());
          for (LockCall& next : locks_.to_take_back(*lock_call, it->first))
            taken_back.push_back(std::move(next));
        }
        ++it;
      } else {
        failed.push_back(std::move(pending.then));
        unheard_.heard(it->first);
        it = calls_.erase(it);  // its reply, if there is ever any, finds nobody
      }
    }
  }
  // Before their callers can ask for these locks again.
  for (LockCall& next : taken_back) call({}, std::move(next), [](Reply&&) {});
  for (FileId file : truncated) end_truncation(file);
  for (ThenReply& then : failed) then(Reply{.call = 0, .error = EIO, .outcome = {}});
}

void AgentService::let_closers_go() {
  {
    std::lock_guard lock(shards_.front()->mutex);
    if (shards_.front()->agent.leases_good(lease_clock())) return;
  }
  std::vector<ThenReply> closers;
  {
    std::lock_guard lock(calls_mutex_);
    for (auto& [id, pending] : calls_) {
      const auto* release = std::get_if<LockCall>(&pending.call.operation);
      if (release == nullptr || release->action != LockAction::Release || pending.goes_on) continue;
      closers.push_back(pending.go_on());
    }
  }
  for (ThenReply& then : closers) then(Reply{.call = 0, .error = 0, .outcome = {}});
}

}  // namespace vremote::node
