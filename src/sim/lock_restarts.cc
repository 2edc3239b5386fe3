// The sessions of a world of locks: the home's daemon is killed and started again, sessions end.
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <string>
#include <utility>

#include "coherence/operation_needs.h"
#include "coherence/reclaimed_locks.h"
#include "sim/lock_world.h"

namespace vremote::sim {

using namespace coherence;

namespace {

constexpr int64_t kTerm = 50'000'000;

FileId root() { return {0, 1, 100}; }

}  // namespace

Grace::Member LockWorld::member(uint32_t node) const {
  return {"n" + std::to_string(node), node + uint64_t{1},
          breaks_.forgets_epochs ? 0 : nodes_[node].epoch};
}

void LockWorld::draw_restarts() {
  for (uint64_t left = more_.between(1, 3); left > 0; --left) {
    const auto at = static_cast<int64_t>(more_.below(kTerm / 5));
    const uint32_t node = static_cast<uint32_t>(more_.below(node_count_));
    if (more_.chance(25)) {
      scheduler_->after(at, [this, node] {
        if (!home_lives_ || !has_session(node)) return;
        end_session(node);
        connect_later(node, kTerm / 5);
      });
      continue;
    }
    const auto lasts = static_cast<int64_t>(more_.below(kTerm / 10));
    scheduler_->after(at, [this] { kill_home(); });
    scheduler_->after(at + lasts, [this] { start_home(); });
  }
}

void LockWorld::restart_home(int64_t within_ns, int64_t lasts_at_most_ns) {
  const auto at = static_cast<int64_t>(more_.below(static_cast<uint64_t>(within_ns)));
  const auto lasts = static_cast<int64_t>(more_.below(static_cast<uint64_t>(lasts_at_most_ns)));
  scheduler_->after(at, [this] { kill_home(); });
  scheduler_->after(at + lasts, [this] { start_home(); });
}

// ---- a node

void LockWorld::submit(uint32_t n, uint64_t id, const LockCall& call) {
  nodes_[n].calls[id] = call;
  if (nodes_[n].connected) send(n, id, call);
}

// Each file has its lane.
void LockWorld::send(uint32_t n, uint64_t id, const LockCall& call) {
  to_home_[n]->send(call.file, [this, session = nodes_[n].session, id, call] {
    arrives(session, Call{.call = id, .caller = {}, .operation = call});
  });
}

void LockWorld::answered(uint32_t n, uint64_t id, int error) {
  Node& node = nodes_[n];
  auto sent = node.calls.find(id);
  if (sent == node.calls.end()) {
    scheduler_->fail(fmt::format("a call is answered once: {}", id));
    return;
  }
  const LockCall call = sent->second;
  node.calls.erase(sent);
  note_lock(node.held, call, error);
  if (call.action == LockAction::Reclaim) {
    if (error != 0)
      scheduler_->fail(
          fmt::format("who comes back in time keeps its locks: n{} o{} has lost {}-{} of f{} ({})",
                      n, call.owner, call.start, call.end, call.file.inode, error));
    bring_back(n);
    return;
  }
  ArrivalOf<int> arrival = std::move(calls_.at(id));
  calls_.erase(id);
  answered_at_[id] = node.fences;
  arrival->set(error);
}

// As Bond::connected() and AgentService::reset().
void LockWorld::connected(uint32_t n, uint64_t session, bool may_reclaim) {
  Node& node = nodes_[n];
  const bool same_home = std::exchange(node.home_life, home_life_) == home_life_;
  may_reclaim = may_reclaim && !same_home;
  scheduler_->trace(static_cast<int>(n), -1, "session {} stands{}", session,
                    may_reclaim ? ", brings back what it had" : "");
  node.session = session;
  node.connected = node.welcomed = true;
  std::erase_if(node.calls, [](const auto& call) { return is_claim(Operation(call.second)); });
  std::vector<std::pair<uint64_t, LockCall>> again(node.calls.begin(), node.calls.end());
  if (may_reclaim) {
    std::vector<LockCall> under_way;
    under_way.reserve(again.size());
    for (const auto& [id, call] : again) under_way.push_back(call);
    if (breaks_.claims_given_up) under_way.clear();
    for (const LockTable::Held& held : locks_to_reclaim(node.held, under_way))
      submit(n, next_call_++, held.reclaim());
  } else {
    node.held = LockTable();
  }
  for (const auto& [id, call] : again) send(n, id, call);
  node.bringing_back = may_reclaim;
  bring_back(n);
}

// As NodeDaemon::bring_back() and AgentService::brings_back().
void LockWorld::bring_back(uint32_t n) {
  Node& node = nodes_[n];
  if (!node.bringing_back) return;
  for (const auto& [id, call] : node.calls)
    if (is_claim(Operation(call)) && !breaks_.done_before_claims) return;
  node.bringing_back = false;
  to_home_[n]->send(root(), [this, session = node.session] {
    arrives(session, Call{.call = 0, .caller = {}, .operation = ReclaimCall{root(), true, {}}});
  });
}

void LockWorld::connect_later(uint32_t n, int64_t at_most_ns) {
  const auto late = static_cast<int64_t>(more_.below(static_cast<uint64_t>(at_most_ns)));
  scheduler_->after(late, [this, n, life = home_life_] {
    if (life == home_life_ && home_lives_ && !nodes_[n].dead && !has_session(n)) begin_session(n);
  });
}

// ---- the home

bool LockWorld::has_session(uint32_t n) const {
  return std::ranges::any_of(node_of_, [n](const auto& session) { return session.second == n; });
}

void LockWorld::arrives(uint64_t session, ToHome message) {
  if (!home_lives_ || !node_of_.contains(session)) return;
  if (gate_.admit(NodeId{static_cast<uint32_t>(session)}, message) != GraceGate::Verdict::Serve)
    return;
  const Call& call = std::get<Call>(message);
  const NodeId node{static_cast<uint32_t>(session)};
  if (const auto* lock = std::get_if<LockCall>(&call.operation))
    return at_home(node, call.call, *lock);
  (void)members_.brought_back(node, false);
  end_grace_if_over();
}

// A reply: in order, and not the last ones of a daemon that was killed.
void LockWorld::tell(uint64_t session, Scheduler::Function what) {
  const uint32_t n = node_of_.at(session);
  from_home_[n]->send(
      {}, [this, n, session, number = ++nodes_[n].sent, what = std::move(what)]() mutable {
        Node& node = nodes_[n];
        if (node.session != session || number > node.cut) return;
        node.arrived = number;
        what();
      });
}

void LockWorld::kill_home() {
  if (!home_lives_) return;
  scheduler_->trace(-1, -1, "home    is killed");
  home_lives_ = false;
  ++counts_.restarts;
  for (Node& node : nodes_)
    node.cut = std::min(node.cut, node.arrived + more_.below(node.sent - node.arrived + 1));
}

void LockWorld::start_home() {
  if (home_lives_) return;
  const std::vector<Grace::Member> noted = members_.to_note();
  scheduler_->trace(-1, -1, "home    starts again, {} nodes had a session", noted.size());
  home_lives_ = true;
  ++home_life_;
  table_ = LockTable(breaks_.protocol);
  gate_ = GraceGate(1 << 16, breaks_.protocol);
  node_of_.clear();
  members_ = Members();
  if (!noted.empty()) {
    members_.restarted(noted, scheduler_->now() + kTerm);
    gate_.close();
  }
  scheduler_->after(kTerm, [this, life = home_life_] {
    if (life == home_life_ && home_lives_) end_grace_if_over();
  });
  for (uint32_t n = 0; n < node_count_; ++n)
    connect_later(n, more_.chance(15) ? 2 * kTerm : kTerm / 5);
}

void LockWorld::begin_session(uint32_t n) {
  const uint64_t session = next_session_++;
  if (std::exchange(nodes_[n].welcomed, false)) ++nodes_[n].epoch;
  node_of_[session] = n;
  const bool may_reclaim = members_.may_reclaim(member(n), scheduler_->now());
  members_.began(NodeId{static_cast<uint32_t>(session)}, member(n), scheduler_->now());
  // What its last session had sent is not heard any more.
  nodes_[n].connected = false;
  from_home_[n]->send({}, [this, n, session, may_reclaim] {
    if (!node_of_.contains(session) || !home_lives_) return;
    nodes_[n].sent = nodes_[n].arrived = 0;
    nodes_[n].cut = ~uint64_t{0};
    connected(n, session, may_reclaim);
  });
}

void LockWorld::end_session(uint32_t n) {
  holds_nothing(n);
  if (!home_lives_) return;
  for (auto it = node_of_.begin(); it != node_of_.end(); ++it) {
    if (it->second != n) continue;
    const NodeId session{static_cast<uint32_t>(it->first)};
    scheduler_->trace(-1, -1, "home    session {} of n{} is over", session.value, n);
    node_of_.erase(it);
    members_.ended(session);
    gate_.node_gone(session);
    std::vector<LockTable::Ticket> woken;
    table_.node_gone(session, woken);
    table_.check();
    for (LockTable::Ticket t : woken) reply(t, 0);
    break;
  }
  nodes_[n].cut = nodes_[n].arrived;
  nodes_[n].connected = false;
}

// Its leases are over.
void LockWorld::holds_nothing(uint32_t n) {
  ++nodes_[n].fences;
  for (Process& process : processes_)
    if (process.node == n) process.held.assign(files_, Held{});
}

void LockWorld::end_grace_if_over() {
  const auto missing = members_.grace_ended(scheduler_->now());
  if (!missing) return;
  scheduler_->trace(-1, -1, "home    the grace is over, {} are missing", missing->size());
  for (uint32_t n = 0; n < node_count_; ++n)
    for (const Grace::Member& late : *missing) {
      if (!late.same_daemon(member(n))) continue;
      const bool here = has_session(n);
      end_session(n);
      if (here && !nodes_[n].dead) connect_later(n, kTerm / 5);
    }
  while (auto kept = gate_.next()) {
    const Call& call = std::get<Call>(kept->second);
    at_home(kept->first, call.call, std::get<LockCall>(call.operation));
  }
}

}  // namespace vremote::sim
