#include "node/agent/agent_service.h"

#include <limits.h>
#include <spdlog/spdlog.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/overload.h"
#include "coherence/operation_needs.h"
#include "fuse/reply.h"
#include "node/agent/inode_table.h"
#include "node/agent/lock_circles.h"
#include "node/guardian/guardian_table.h"
#include "node/guardian/known_to_hang.h"

namespace vremote::node {

using namespace coherence;

namespace {

// More pieces than one writev takes are joined first.
constexpr size_t kPiecesMax = IOV_MAX - 8;

Status reply_data(const Waiting& waiting, const std::vector<Bytes>& pieces, uint64_t length) {
  if (pieces.size() > kPiecesMax) {
    std::vector<std::byte> joined;
    joined.reserve(length);
    for (const Bytes& piece : pieces)
      joined.insert(joined.end(), piece.view().begin(), piece.view().end());
    return waiting.channel->reply(waiting.unique, std::span<const std::byte>(joined));
  }
  std::vector<iovec> parts;
  parts.reserve(pieces.size());
  for (const Bytes& piece : pieces)
    parts.push_back({const_cast<std::byte*>(piece.data()), piece.size()});
  return waiting.channel->reply(waiting.unique, std::span<const iovec>(parts));
}

}  // namespace

AgentService::AgentService(std::string home_name, const AgentOptions& options, bool local,
                           Send send, Environment environment)
    : home_name_(std::move(home_name)),
      local_(local),
      send_(std::move(send)),
      environment_(std::move(environment)) {
  AgentOptions share = options;
  share.dirty_max_bytes = options.dirty_max_bytes / kShards;
  for (size_t i = 0; i < kShards; ++i) {
    shards_[i] = std::make_unique<Shard>(share);
    shards_[i]->index = i;
  }
}

AgentService::~AgentService() {
  for (auto& shard : shards_) shard->timer.cancel();
}

// ---- carrying out

void AgentService::carry_out(Shard& shard, AgentActions& actions, std::vector<After>& after) {
  for (AgentAction& action : actions) {
    std::visit(
        Overload{
            [&](ReplyData& a) {
              auto it = shard.pending.find(a.token);
              if (it == shard.pending.end()) return;
              const Pending& pending = it->second;
              Status sent = pending.refused
                                ? pending.waiting.channel->reply_error(pending.waiting.unique, EIO)
                                : reply_data(pending.waiting, a.pieces, a.length);
              if (!sent) spdlog::warn("reply to a read: {}", sent.error().what);
              const bool fill = pending.kind == Pending::Kind::Fill;
              environment_.metrics->record(fill ? Latency::Fill : Latency::DirectRead,
                                           net::EventLoop::now().ns - pending.started_ns);
              if (fill) environment_.metrics->add(Counter::FillBytes, a.length);
              if (fill && environment_.guardian != nullptr)
                environment_.guardian->fill_ended(pending.waiting.unique);
              shard.pending.erase(it);
            },
            [&](ReplyWritten& a) {
              // Before its program can know of it.
              if (auto it = shard.pending.find(a.token); it != shard.pending.end() &&
                                                         environment_.guardian != nullptr &&
                                                         shard.agent.owes(it->second.file))
                environment_.guardian->set_owes(it->second.slot, true);
              answer(shard, a.token, {.offset = a.offset, .length = a.length}, after);
            },
            [&](ReplyOpened& a) { answer(shard, a.token, {}, after); },
            [&](ReplyAttributes& a) {
              answer(shard, a.token, {.attributes = a.attributes, .may_cache = a.may_cache}, after);
            },
            [&](ReplyFlushed& a) {
              if (auto it = shard.pending.find(a.token); it != shard.pending.end())
                note_debts(shard.agent, it->second.file);
              answer(shard, a.token, {.error = a.error}, after);
            },
            [&](ReplyTruncateReady& a) { answer(shard, a.token, {}, after); },
            [&](ReplyEntries& a) { answer(shard, a.token, {}, after); },
            [&](ReplyError& a) { answer(shard, a.token, {.error = a.error}, after); },
            [&](StartPurge& a) { start_blocking([this, a] { purge(a); }); },
            [&](DropAttributes& a) {
              if (const auto node = environment_.inodes->find(this, a.file))
                if (auto done = environment_.notify_channel()->invalidate_attributes(*node); !done)
                  spdlog::debug("attributes of an inode: {}", done.error().what);
            },
            [&](PushSize& a) { environment_.purge_threads->submit([this, a] { push_size(a); }); },
            [&](LookAtSize& a) {
              environment_.purge_threads->submit([this, a] { look_at_size(a); });
            },
            [&](SettleSize& a) { start_blocking([this, a] { settle(a); }); },
            [&](ClaimPages& a) {
              after.push_back(
                  {.then = [this, a](Answer) { claim_pages(a); }, .answer = {}, .waiting = {}});
            },
            [&](EndTruncation& a) {
              after.push_back({.then = [this, file = a.file](Answer) { end_truncation(file); },
                               .answer = {},
                               .waiting = {}});
            },
            [&](TellOpen& a) {
              after.push_back(
                  {.then = [this, a](Answer) { tell_open(a); }, .answer = {}, .waiting = {}});
            },
            [&](SendToHome& a) {
              const FileId file = file_of(a.message);
              note_sent(shard, a.message);
              if (local_) {
                std::lock_guard lock(shard.outbox_mutex);
                shard.outbox.emplace_back(file, std::move(a.message));
              } else {
                send_(file, std::move(a.message), shard.session);
              }
            },
            [&](Rescue& a) {
              if (environment_.rescue) environment_.rescue(home_name_, std::move(a));
            },
            [&](EntriesLost& a) {
              shard.names.lost(a.dir);
              shard.listings.forget(a.dir);
            },
            [&](EndNames& a) { end_names(shard, a, after); },
        },
        action);
  }
}

void AgentService::purge(const StartPurge& a) {
  const int64_t started = net::EventLoop::now().ns;
  const std::optional<uint64_t> node = environment_.inodes->find(this, a.file);
  if (node) {
    const uint64_t length = a.range.end >= kPageEnd ? 0 : a.range.byte_length();
    const KnownToHang known(environment_.guardian, *node, a.range.byte_offset(), length);
    if (auto done =
            environment_.notify_channel()->invalidate_data(*node, a.range.byte_offset(), length);
        !done)
      spdlog::debug("purge: {}", done.error().what);
  }
  if (environment_.take_back) environment_.take_back();
  environment_.metrics->record(Latency::Purge, net::EventLoop::now().ns - started);
  with(shard_of(a.file), [&](Agent& agent, Instant now, AgentActions& next) {
    agent.purge_returned(now, a.purge, a.file, next);
  });
}

void AgentService::start_blocking(HelperThreads::Job job) {
  {
    std::lock_guard lock(held_mutex_);
    if (holding_) {
      held_.push_back(std::move(job));
      return;
    }
  }
  environment_.purge_threads->submit(std::move(job));
}

// For the latencies: a recall until its ack, a flush until the home has it. Under the shard's lock.
void AgentService::note_sent(Shard& shard, const ToHome& message) {
  const Instant now = lease_clock();
  if (const auto* flush = std::get_if<Flush>(&message))
    shard.under_way.emplace(flush->flush, Shard::Flushing{now, !flush->extents.empty()});
  if (const auto* ack = std::get_if<RecallAck>(&message)) {
    if (auto it = shard.recalls.find(ack->recall); it != shard.recalls.end()) {
      environment_.metrics->record(Latency::Recall, now - it->second);
      shard.recalls.erase(it);
    }
  }
}

void AgentService::note_received(Shard& shard, const ToAgent& message, Instant now) {
  if (const auto* recall = std::get_if<Recall>(&message))
    shard.recalls.emplace(recall->recall, now);
  if (const auto* ack = std::get_if<FlushAck>(&message)) {
    bool bytes = false;
    if (auto it = shard.under_way.find(ack->flush); it != shard.under_way.end()) {
      environment_.metrics->record(Latency::Flush, now - it->second.since);
      bytes = it->second.bytes;
      shard.under_way.erase(it);
    }
    note_flushed(*ack, bytes, now);
  }
}

void AgentService::note_flushed(const FlushAck& ack, bool bytes, Instant now) {
  if (ack.error == 0) {
    if (!bytes) return;
    if (const uint64_t untold = not_stored_.succeeded(ack.file); untold != 0)
      spdlog::info("{}: bytes for inode {} are stored again; they were not {} more times",
                   home_name_, ack.file.inode, untold);
  } else if (ack.error == ESTALE) {
    // A file that was written, removed and closed: nobody can miss the bytes. After a restart of
    // the home it may have been one that is still open.
    if (home_restarted_)
      spdlog::warn(
          "{}: bytes for inode {} have no file any more: it was removed, or its origin restarted",
          home_name_, ack.file.inode);
  } else if (const auto tell = not_stored_.failed(now, ack.file, ack.error);
             tell != RepeatedErrors::Tell::Nothing) {
    spdlog::error("{}: bytes for inode {} could not be stored: {}; said once until they can be{}",
                  home_name_, ack.file.inode, strerror(ack.error), RepeatedErrors::of_others(tell));
  }
}

// Under the shard's lock, as whatever makes debts.
void AgentService::note_debts(const Agent& agent, FileId file) {
  if (environment_.guardian != nullptr && !agent.owes(file))
    environment_.inodes->owes_nothing(this, file);
}

void AgentService::answer(Shard& shard, Token token, Answer answer, std::vector<After>& after) {
  auto it = shard.pending.find(token);
  if (it == shard.pending.end()) return;
  Pending& pending = it->second;
  if (pending.kind == Pending::Kind::Then || pending.kind == Pending::Kind::Write) {
    after.push_back(
        {std::move(pending.then), std::move(answer), pending.waiting, pending.started_ns});
  } else {
    Status sent = answer.error != 0
                      ? pending.waiting.channel->reply_error(pending.waiting.unique, answer.error)
                      : pending.waiting.channel->reply(pending.waiting.unique,
                                                       fuse::write_out(answer.length));
    if (!sent) spdlog::warn("reply: {}", sent.error().what);
    if (pending.kind == Pending::Kind::Fill && environment_.guardian != nullptr)
      environment_.guardian->fill_ended(pending.waiting.unique);
  }
  shard.pending.erase(it);
}

void AgentService::finish(After& after) {
  if (after.then) {
    after.then(std::move(after.answer));
  } else {
    answer_write(after.waiting, after.answer.error, after.answer.length, after.started_ns);
  }
}

void AgentService::answer_write(const Waiting& to, int error, uint32_t length,
                                std::optional<int64_t> started_ns) {
  if (started_ns)
    environment_.metrics->record(Latency::DirectWrite, net::EventLoop::now().ns - *started_ns);
  // The kernel may let the writer run before this call returns: under the shard's lock its next
  // write would wait for us, two context switches more. Nothing depends on the order: the writer
  // goes on by itself whenever it is scheduled (fills are another matter, K11).
  Status sent = error != 0 ? to.channel->reply_error(to.unique, error)
                           : to.channel->reply(to.unique, fuse::write_out(length));
  if (!sent) spdlog::warn("reply: {}", sent.error().what);
}

void AgentService::arm(Shard& shard) {
  const std::optional<Instant> next = shard.agent.next_deadline();
  if (!next || (shard.armed && *shard.armed <= *next)) return;
  shard.armed = next;
  net::EventLoop* loop = environment_.loops[shard.index % environment_.loops.size()];
  // The agent's clock is not the loop's: only the way from now to then is the same.
  shard.timer = loop->call_after(std::max<int64_t>(*next - lease_clock(), 0), [this, &shard] {
    {
      std::lock_guard lock(shard.mutex);
      shard.armed.reset();
    }
    with(shard, [](Agent& agent, Instant now, AgentActions& actions) { agent.tick(now, actions); });
  });
}

void AgentService::deliver_outbox(Shard& shard) {
  std::unique_lock lock(shard.outbox_mutex);
  if (shard.delivering) return;
  shard.delivering = true;
  while (!shard.outbox.empty()) {
    auto [file, message] = std::move(shard.outbox.front());
    shard.outbox.pop_front();
    lock.unlock();
    send_(file, std::move(message), shard.session);
    lock.lock();
  }
  shard.delivering = false;
}

Token AgentService::add_pending(Shard& shard, Pending pending) {
  const Token token = pending.waiting.unique != 0
                          ? pending.waiting.unique
                          : (next_token_.fetch_add(1, std::memory_order_relaxed) << 1 | 1);
  pending.started_ns = net::EventLoop::now().ns;
  shard.pending.insert_or_assign(token, std::move(pending));
  return token;
}

// ---- the network

void AgentService::receive(ToAgent&& message) {
  if (auto* reply = std::get_if<Reply>(&message)) {
    PendingCall pending;
    {
      std::lock_guard lock(calls_mutex_);
      auto it = calls_.find(reply->call);
      if (it == calls_.end()) return;
      pending = std::move(it->second);
      calls_.erase(it);
      unheard_.heard(reply->call);
    }
    if (const auto* lock = std::get_if<LockCall>(&pending.call.operation);
        lock != nullptr && !local_)
      locks_.note(*lock, reply->error);
    // What this machine's own power failure takes there is nobody left to ask for.
    if (reply->error == 0 && !local_)
      for (FileId changed : changed_files(pending.call.operation)) {
        Shard& shard = shard_of(changed);
        std::lock_guard lock(shard.mutex);
        // As in forget().
        shard.agent.changed_at_home(changed, environment_.inodes->find(this, changed).has_value());
      }
    pending.then(std::move(*reply));
    return;
  }
  if (const auto* follow = std::get_if<FollowOwner>(&message)) {
    environment_.circles->receive(this, *follow);
    return;
  }
  const FileId file = std::visit(
      Overload{[](const Reply&) { return FileId{}; }, [](const auto& m) { return m.file; }},
      message);
  with(shard_of(file), [&](Agent& agent, Instant now, AgentActions& actions) {
    note_received(shard_of(file), message, now);
    const bool stored = std::holds_alternative<FlushAck>(message);
    std::visit(Overload{[](Reply&) {}, [](FollowOwner&) {},
                        [&](auto& m) { agent.receive(now, std::move(m), actions); }},
               message);
    if (stored) note_debts(agent, file);
  });
}

void AgentService::follow(FollowWait&& message) {
  if (!can_follow_ || (environment_.backlogged && environment_.backlogged())) return;
  const FileId file = message.file;
  send_(file, std::move(message), shard_of(file).session);
}

void AgentService::refuse_wait(FileId file, uint64_t call) {
  if (!can_follow_) return;
  AgentService::call({}, LockCall{.file = file, .action = LockAction::Refuse, .waiting_call = call},
                     [](Reply&&) {});
}

bool AgentService::holds_range(uint64_t owner) { return locks_.holds_range(owner); }

void AgentService::flush_all() {
  for (auto& shard : shards_)
    with(*shard,
         [](Agent& agent, Instant now, AgentActions& actions) { agent.flush_all(now, actions); });
}

bool AgentService::idle_dirty() {
  for (auto& shard : shards_) {
    std::lock_guard lock(shard->mutex);
    if (!shard->agent.idle_dirty()) return false;
  }
  return true;
}

bool AgentService::owes(FileId file) {
  Shard& shard = shard_of(file);
  std::lock_guard lock(shard.mutex);
  return shard.agent.owes(file);
}

AgentCounts AgentService::counts() {
  AgentCounts sum;
  for (auto& shard : shards_) {
    std::lock_guard lock(shard->mutex);
    sum += shard->agent.counts();
  }
  return sum;
}

AgentStatistics AgentService::statistics() {
  AgentStatistics sum;
  for (auto& shard : shards_) {
    std::lock_guard lock(shard->mutex);
    sum += shard->agent.statistics();
  }
  return sum;
}

}  // namespace vremote::node
