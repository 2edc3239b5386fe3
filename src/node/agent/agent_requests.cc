// The kernel's requests for the bytes and attributes of files, on their way to the agent.
#include <time.h>

#include "node/agent/agent_service.h"
#include "node/agent/inode_table.h"
#include "node/guardian/guardian_table.h"

namespace vremote::node {

using namespace coherence;

namespace {

Timestamp wall_now() {
  timespec t{};
  // Not the coarse clock: the origin's file system may stamp more finely (Linux 6.13), and a later
  // write must not look older.
  clock_gettime(CLOCK_REALTIME, &t);
  return {t.tv_sec, static_cast<uint32_t>(t.tv_nsec)};
}

// Of the writes that are answered at once the time is taken of one in so many: it costs as much as
// their bookkeeping.
constexpr uint64_t kTimedWrites = 16;

}  // namespace

void AgentService::read(Waiting waiting, FileId file, uint64_t offset, uint32_t size, bool fill) {
  Shard& shard = shard_of(file);
  with(shard, [&](Agent& agent, Instant now, AgentActions& actions) {
    const Token token =
        add_pending(shard, {.kind = fill ? Pending::Kind::Fill : Pending::Kind::Read,
                            .file = file,
                            .waiting = waiting,
                            .then = {},
                            .what = "read",
                            .offset = offset,
                            .length = size});
    agent.read(now, {.token = token, .file = file, .offset = offset, .size = size, .fill = fill},
               actions);
  });
}

void AgentService::write(Waiting waiting, FileId file, Placement at, Bytes bytes, Then then) {
  Shard& shard = shard_of(file);
  with(shard, [&](Agent& agent, Instant now, AgentActions& actions) {
    const Token token =
        add_pending(shard, {.kind = then ? Pending::Kind::Then : Pending::Kind::Write,
                            .file = file,
                            .waiting = waiting,
                            .then = std::move(then),
                            .what = "write",
                            .offset = at.offset,
                            .length = bytes.size(),
                            .slot = at.slot});
    agent.write(now,
                {.token = token,
                 .file = file,
                 .offset = at.offset,
                 .bytes = std::move(bytes),
                 .append = at.append,
                 .handle = at.handle,
                 .now_wall = wall_now()},
                actions);
  });
}

bool AgentService::write_now(Waiting waiting, FileId file, Placement at,
                             std::span<const std::byte> bytes) {
  Shard& shard = shard_of(file);
  const Instant now = lease_clock();
  bool timed = false;
  {
    std::lock_guard lock(shard.mutex);
    const auto done = shard.agent.write_now(now, {.file = file,
                                                  .offset = at.offset,
                                                  .bytes = bytes,
                                                  .append = at.append,
                                                  .handle = at.handle,
                                                  .now_wall = wall_now()});
    if (!done) return false;
    if (environment_.guardian != nullptr) environment_.guardian->set_owes(at.slot, true);
    if (done->new_deadline) arm(shard);
    timed = ++shard.written_now % kTimedWrites == 0;
  }
  answer_write(
      waiting, 0, static_cast<uint32_t>(bytes.size()),
      timed ? std::optional(net::EventLoop::now().ns - (lease_clock() - now)) : std::nullopt);
  return true;
}

void AgentService::write_back(FileId file, uint32_t slot, uint64_t offset, Bytes bytes) {
  with(shard_of(file), [&](Agent& agent, Instant now, AgentActions& actions) {
    agent.write_back(now, file, offset, std::move(bytes), wall_now(), actions);
    if (environment_.guardian != nullptr) environment_.guardian->set_owes(slot, true);
  });
}

void AgentService::open(FileId file, Opening opening, Then then, uint32_t tid) {
  Shard& shard = shard_of(file);
  with(shard, [&](Agent& agent, Instant now, AgentActions& actions) {
    agent.open(
        now,
        add_pending(
            shard,
            {.file = file, .waiting = {nullptr, 0, tid}, .then = std::move(then), .what = "open"}),
        file, opening, actions);
  });
}

void AgentService::close(FileId file, Opening opening, uint64_t handle) {
  with(shard_of(file), [&](Agent& agent, Instant now, AgentActions& actions) {
    agent.close(now, file, opening, actions, handle);
  });
}

void AgentService::directory_closed(FileId dir, uint64_t handle) {
  Shard& shard = shard_of(dir);
  std::lock_guard lock(shard.mutex);
  shard.agent.directory_closed(dir, handle);
}

void AgentService::attributes(Waiting waiting, FileId file, bool own, Then then) {
  Shard& shard = shard_of(file);
  with(shard, [&](Agent& agent, Instant now, AgentActions& actions) {
    agent.attributes(
        now,
        add_pending(
            shard,
            {.file = file, .waiting = waiting, .then = std::move(then), .what = "attributes"}),
        file, own, actions);
  });
}

void AgentService::flush(Waiting waiting, const Sync& sync, Then then) {
  uint64_t asked = UINT64_MAX;
  {
    std::lock_guard lock(syncs_mutex_);
    if (auto it = syncs_.find(sync.request); it != syncs_.end()) asked = it->second.sync.asked;
  }
  Shard& shard = shard_of(sync.file);
  with(shard, [&](Agent& agent, Instant now, AgentActions& actions) {
    agent.flush(
        now,
        add_pending(
            shard,
            {.file = sync.file, .waiting = waiting, .then = std::move(then), .what = "fsync"}),
        sync.file, actions, sync.who, asked);
  });
}

void AgentService::sync_asked(const Sync& sync) {
  Shard& shard = shard_of(sync.file);
  std::lock_guard lock(shard.mutex);
  std::lock_guard syncs(syncs_mutex_);
  auto [it, fresh] = syncs_.try_emplace(sync.request);
  it->second.inherited = false;
  if (fresh)
    it->second.sync = {
        .request = sync.request, .asked = shard.agent.sync_begins(), .begun = UINT64_MAX};
}

void AgentService::sync_begins(const Sync& sync) {
  Shard& shard = shard_of(sync.file);
  std::lock_guard lock(shard.mutex);
  std::lock_guard syncs(syncs_mutex_);
  auto it = syncs_.find(sync.request);
  // The daemon before may have made the call, and what was flushed since is not in it.
  if (it != syncs_.end() && it->second.sync.begun == UINT64_MAX)
    it->second.sync.begun = shard.agent.sync_begins();
}

int AgentService::synced(const Sync& sync, const Reply& reply) {
  Shard& shard = shard_of(sync.file);
  std::lock_guard lock(shard.mutex);
  KeptHome::Sync moments;
  {
    std::lock_guard syncs(syncs_mutex_);
    auto it = syncs_.find(sync.request);
    if (it == syncs_.end()) return reply.error;
    moments = it->second.sync;
    syncs_.erase(it);
  }
  // What was given up here has no number of a call.
  const bool by_disk =
      reply.call != 0 && (reply.error == EIO || reply.error == ENOSPC || reply.error == EDQUOT);
  const int told =
      shard.agent.synced(sync.file, moments.begun, reply.error, moments.asked, sync.who, by_disk);
  note_debts(shard.agent, sync.file);
  return told;
}

void AgentService::sync_ended(const Sync& sync) {
  std::lock_guard lock(syncs_mutex_);
  syncs_.erase(sync.request);
}

bool AgentService::may_be_mapped(FileId file) {
  Shard& shard = shard_of(file);
  std::lock_guard lock(shard.mutex);
  return shard.agent.may_be_mapped(file);
}

std::optional<uint32_t> AgentService::peek_mode(FileId file) {
  Shard& shard = shard_of(file);
  std::lock_guard lock(shard.mutex);
  if (!shard.agent.leases_good(lease_clock())) return std::nullopt;
  return shard.agent.peek_mode(file);
}

bool AgentService::has_no_xattrs(FileId file) {
  Shard& shard = shard_of(file);
  std::lock_guard lock(shard.mutex);
  return shard.agent.leases_good(lease_clock()) && shard.agent.has_no_xattrs(file);
}

std::optional<uint32_t> AgentService::waiting_thread(uint64_t unique) {
  for (auto& shard : shards_) {
    std::lock_guard lock(shard->mutex);
    if (auto it = shard->pending.find(unique); it != shard->pending.end())
      return it->second.waiting.tid;
  }
  std::lock_guard lock(calls_mutex_);
  for (const auto& [id, pending] : calls_)
    if (pending.waiting.unique == unique) return pending.waiting.tid;
  return std::nullopt;
}

void AgentService::interrupt(uint64_t unique) {
  // Which file it is about is not told: a rare event, so every waiting request of every shard is
  // asked.
  for (auto& shard : shards_)
    with(*shard, [&](Agent& agent, Instant now, AgentActions& actions) {
      auto it = shard->pending.find(unique);
      if (it != shard->pending.end()) agent.interrupt(now, unique, it->second.file, actions);
    });
  ThenReply then;
  {
    std::lock_guard lock(calls_mutex_);
    for (auto it = calls_.begin(); it != calls_.end(); ++it) {
      if (it->second.waiting.unique != unique) continue;
      then = std::move(it->second.then);
      unheard_.heard(it->first);
      calls_.erase(it);  // its reply, if there is ever one, finds nobody
      break;
    }
  }
  if (then) then(Reply{.call = 0, .error = EINTR, .outcome = {}});
}

void AgentService::forget(FileId file) {
  with(shard_of(file), [&](Agent& agent, Instant now, AgentActions& actions) {
    // Under the lock: a lookup answered meanwhile has a node number in the table, and its fills
    // come after us.
    if (!environment_.inodes->find(this, file)) agent.forget(now, file, actions);
  });
}

}  // namespace vremote::node
