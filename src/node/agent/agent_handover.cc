// From one daemon of this node to the next: what goes on at a home (docs/architecture.md,
// "Upgrades").
#include <algorithm>

#include "node/agent/agent_service.h"

namespace vremote::node {

using namespace coherence;

namespace {

// Ids that the daemon before may have used after it was asked.
constexpr uint64_t kIdsBetween = 1 << 20;

}  // namespace

void AgentService::hold(bool on) {
  std::vector<HelperThreads::Job> held;
  {
    std::lock_guard lock(held_mutex_);
    holding_ = on;
    if (!on) held.swap(held_);
  }
  for (HelperThreads::Job& job : held) environment_.purge_threads->submit(std::move(job));
}

bool AgentService::must_let_go() {
  const Instant now = lease_clock();
  bool good = true;
  for (auto& shard : shards_) {
    std::lock_guard lock(shard->mutex);
    if (shard->agent.must_purge(now)) return true;
    good = good && shard->agent.leases_good(now);
  }
  if (good) return false;
  // Names, of which the agents do not know.
  std::lock_guard lock(held_mutex_);
  return !held_.empty();
}

bool AgentService::can_be_handed_over() {
  for (auto& shard : shards_) {
    std::lock_guard lock(shard->mutex);
    if (!shard->agent.can_be_handed_over()) return false;
    std::lock_guard outbox(shard->outbox_mutex);
    if (shard->delivering || !shard->outbox.empty()) return false;
  }
  return true;
}

KeptHome AgentService::kept() {
  KeptHome out;
  for (auto& shard : shards_) {
    std::lock_guard lock(shard->mutex);
    out.next_id = std::max(out.next_id, shard->agent.next_id() + kIdsBetween);
    out.next_sync = std::max(out.next_sync, shard->agent.next_sync());
    for (KeptFile& file : shard->agent.kept_files()) {
      if (local_) {  // a home that begins anew has given and asked nothing
        file.seen = 0;
        file.told_in_use = false;
        file.recalls.clear();
        file.shows.clear();
      }
      out.files.push_back(std::move(file));
    }
  }
  out.next_call = next_call_.load() + kIdsBetween;
  {
    std::lock_guard lock(syncs_mutex_);
    for (const auto& [request, syncing] : syncs_) out.syncs.push_back(syncing.sync);
  }
  std::ranges::sort(out.syncs, {}, &KeptHome::Sync::request);
  // A home on this machine begins anew, has carried out nothing that it has not replied to, and
  // tells itself which locks are held.
  if (local_) return out;
  for (const LockTable::Held& h : locks_.all()) out.locks.push_back(h.reclaim());
  std::lock_guard lock(calls_mutex_);
  for (const auto& [id, pending] : calls_)
    out.calls.push_back({pending.call, pending.waiting.request});
  std::ranges::sort(out.calls, {}, [](const KeptHome::Call& c) { return c.call.call; });
  return out;
}

void AgentService::take_over(const KeptHome& kept) {
  for (auto& shard : shards_) {
    std::lock_guard lock(shard->mutex);
    shard->agent.take_over_syncs(kept.next_sync);
  }
  {
    std::lock_guard lock(syncs_mutex_);
    for (const KeptHome::Sync& sync : kept.syncs)
      syncs_.insert_or_assign(sync.request, Syncing{.sync = sync, .inherited = true});
  }
  for (const KeptFile& file : kept.files) {
    Shard& shard = shard_of(file.file);
    std::lock_guard lock(shard.mutex);
    shard.agent.take_over(file, kept.next_id);
    for (const Recall& recall : file.recalls) asked_before_.emplace_back(recall);
    for (const ShowSize& show : file.shows) asked_before_.emplace_back(show);
  }
  next_call_ = std::max(next_call_.load(), kept.next_call);
  for (const LockCall& lock : kept.locks) locks_.note(lock);
  std::lock_guard lock(calls_mutex_);
  for (const KeptHome::Call& kept_call : kept.calls) {
    const uint64_t id = kept_call.call.call;
    if (is_noted(kept_call.call.operation)) unheard_.made(id);
    // Whoever waited for it says so when its request comes again; it may be gone.
    calls_.insert_or_assign(id, PendingCall{.call = kept_call.call,
                                            .then = [](Reply&&) {},
                                            .waiting = {},
                                            .started_ns = net::EventLoop::now().ns});
    if (kept_call.request != 0) inherited_.insert_or_assign(kept_call.request, id);
  }
}

std::optional<Operation> AgentService::inherited(uint64_t request) {
  std::lock_guard lock(calls_mutex_);
  auto it = inherited_.find(request);
  if (it == inherited_.end()) return std::nullopt;
  auto call = calls_.find(it->second);
  if (call == calls_.end()) return std::nullopt;
  return call->second.call.operation;
}

}  // namespace vremote::node
