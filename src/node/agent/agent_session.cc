// What this node has at a home from one session to the next (docs/protocol.md, "Time" and "A home
// that restarts").
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>

#include "coherence/operation_needs.h"
#include "node/agent/agent_service.h"

namespace vremote::node {

using namespace coherence;

void AgentService::renew(Instant until) {
  for (auto& shard : shards_)
    with(*shard, [&](Agent& agent, Instant now, AgentActions& actions) {
      agent.renew(now, until, actions);
    });
}

void AgentService::reclaim_locks(Agent::Dirty dirty) {
  if (dirty == Agent::Dirty::Fenced) return lose_locks(locks_.take_all(), "the session was ended");
  std::map<uint64_t, LockCall> under_way;  // in the order in which they were made
  {
    std::lock_guard lock(calls_mutex_);
    for (const auto& [id, pending] : calls_)
      if (const auto* call = std::get_if<LockCall>(&pending.call.operation))
        under_way.emplace(id, *call);
  }
  std::vector<LockCall> calls;
  calls.reserve(under_way.size());
  for (const auto& [id, call] : under_way) calls.push_back(call);
  for (const LockTable::Held& h : locks_.to_reclaim(calls))
    call({}, h.reclaim(), [this, h](Reply&& reply) {
      if (reply.error == 0 || reply.error == EIO)
        return;  // EIO: another session, it is asked again
      locks_.note({.file = h.file,
                   .kind = h.kind,
                   .type = LockType::Unlock,
                   .owner = h.lock.owner.id,
                   .start = h.lock.range.start,
                   .end = h.lock.range.end});
      lose_locks({h}, strerror(reply.error));
    });
}

// Whoever relies on a lock that is another's now must not write. What it has asked for and waits
// since before would come to the home with the next session.
void AgentService::lose_locks(const LocksAtHome::AllHeld& lost, const std::string& why) {
  if (lost.empty() || !environment_.locks_lost) return;
  fail_waits(environment_.locks_lost(this, lost, why));
}

void AgentService::fail_waits(const std::set<uint64_t>& handles) {
  if (handles.empty()) return;
  for (auto& shard : shards_)
    with(*shard, [&](Agent& agent, Instant now, AgentActions& actions) {
      for (auto& [token, pending] : shard->pending) {
        if (!handles.contains(pending.waiting.handle)) continue;
        pending.refused = true;  // a fill cannot be given up
        agent.interrupt(now, token, pending.file, actions, EIO);
      }
    });
  std::vector<ThenReply> failed;
  std::vector<LockCall> cancelled;
  {
    std::lock_guard lock(calls_mutex_);
    for (auto it = calls_.begin(); it != calls_.end();) {
      PendingCall& pending = it->second;
      const Operation& operation = pending.call.operation;
      const auto* asked = std::get_if<LockCall>(&operation);
      const bool tests = asked != nullptr && asked->action == LockAction::Test;
      if (!handles.contains(pending.waiting.handle)) {
        ++it;
      } else if (tests || std::holds_alternative<SyncCall>(operation)) {
        failed.push_back(std::move(pending.then));
        unheard_.heard(it->first);
        it = calls_.erase(it);
      } else {
        if (asked != nullptr && asked->type != LockType::Unlock) {
          if (asked->action == LockAction::Wait)
            cancelled.push_back(
                {.file = asked->file, .action = LockAction::Cancel, .waiting_call = it->first});
          // Nobody believes to have it.
          LockCall unlock = *asked;
          unlock.action = LockAction::Try;
          unlock.type = LockType::Unlock;
          failed.push_back(pending.go_on([this, unlock](Reply&& reply) {
            if (reply.error == 0) call({}, unlock, [](Reply&&) {});
          }));
        }
        ++it;
      }
    }
  }
  for (LockCall& next : cancelled) call({}, std::move(next), [](Reply&&) {});
  for (ThenReply& then : failed) then(Reply{.call = 0, .error = EIO, .outcome = {}});
}

void AgentService::claim_pages(const ClaimPages& a) {
  call({}, ReclaimCall{a.file, false, a.pages},
       [this, claim = a.claim, file = a.file](Reply&& reply) {
         with(shard_of(file), [&](Agent& agent, Instant now, AgentActions& next) {
           agent.claimed(now, claim, file, reply.error == 0, next);
         });
       });
}

void AgentService::tell_open(const TellOpen& a) {
  call({}, ReclaimCall{a.file, false, {}}, [this, a](Reply&& reply) {
    with(shard_of(a.file), [&](Agent& agent, Instant now, AgentActions& next) {
      agent.open_told(now, a.tell, a.file, reply.error == 0, next);
    });
  });
}

// A file whose last name goes must stay for them.
void AgentService::tell_open_files() {
  std::vector<FileId> open;
  for (auto& shard : shards_) {
    std::lock_guard lock(shard->mutex);
    for (FileId file : shard->agent.open_files()) open.push_back(file);
  }
  for (FileId file : open) call({}, ReclaimCall{file, false, {}}, [](Reply&&) {});
}

bool AgentService::brings_back() {
  bool all = true;
  {
    // Each file has its lane: what says that all is there must not overtake them.
    std::lock_guard lock(calls_mutex_);
    for (const auto& [id, pending] : calls_) all = all && !is_claim(pending.call.operation);
  }
  for (auto& shard : shards_)
    with(*shard, [&](Agent& agent, Instant now, AgentActions& actions) {
      agent.claim_held_back(now, actions);
      all = all && agent.brought_back();
    });
  return all;
}

void AgentService::begin_session(uint32_t session) {
  for (auto& shard : shards_) {
    std::lock_guard lock(shard->mutex);
    shard->session = session;
  }
}

void AgentService::reset(Agent::Dirty dirty, Begun begun) {
  if (!begun.nothing_sent) home_restarted_ = true;
  std::vector<uint64_t> again, lost;
  const bool kept = dirty == Agent::Dirty::Kept || begun.nothing_sent;
  for (auto& shard : shards_)
    with(*shard, [&](Agent& agent, Instant now, AgentActions& actions) {
      shard->session = begun.session;
      agent.reset(now, dirty, actions, begun.disk_has_lost);
      shard->recalls.clear();
      shard->under_way.clear();
      std::lock_guard lock(calls_mutex_);
      for (const auto& [id, pending] : calls_) {
        const Operation& operation = pending.call.operation;
        if (&shard_of(file_of(operation)) != shard.get()) continue;
        (is_made_again(operation, kept, begun.disk_has_lost) ? again : lost).push_back(id);
      }
    });
  // In the order in which they were made: of two for one file the later must not come first.
  std::ranges::sort(again);
  reclaim_locks(dirty);
  tell_open_files();
  for (uint64_t id : lost) {
    // The home may or may not have carried it out before it stopped: the caller must look.
    Reply reply{.call = id, .error = EIO, .outcome = {}};
    receive(std::move(reply));
  }
  for (uint64_t id : again) {
    Call message;
    {
      std::lock_guard lock(calls_mutex_);
      auto it = calls_.find(id);
      if (it == calls_.end()) continue;
      // The home has nothing of this node, and nobody waits for it.
      if (dirty == Agent::Dirty::Fenced && it->second.goes_on &&
          std::holds_alternative<LockCall>(it->second.call.operation)) {
        unheard_.heard(id);
        calls_.erase(it);
        continue;
      }
      message = it->second.call;
      message.heard_below = heard_below(message);
    }
    const FileId file = file_of(message.operation);
    send_(file, std::move(message), begun.session);
  }
}

void AgentService::took_over(bool same_session) {
  {
    std::lock_guard lock(calls_mutex_);
    inherited_.clear();  // all that was waited for is here again
  }
  {
    std::lock_guard lock(syncs_mutex_);
    std::erase_if(syncs_, [](const auto& entry) { return entry.second.inherited; });
  }
  for (auto& shard : shards_)
    with(*shard, [&](Agent& agent, Instant now, AgentActions& actions) {
      agent.took_over(now, same_session, actions);
    });
  for (ToAgent& message : std::exchange(asked_before_, {})) receive(std::move(message));
  if (same_session) return;
  reclaim_locks(Agent::Dirty::Kept);
  tell_open_files();
  if (local_) (void)locks_.take_all();  // the home has them
}

}  // namespace vremote::node
