#include "node/agent_service.h"

#include <limits.h>
#include <spdlog/spdlog.h>
#include <sys/uio.h>
#include <time.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <map>
#include <thread>

#include "base/overload.h"
#include "coherence/operation_needs.h"
#include "coherence/reclaimed_locks.h"
#include "fuse/reply.h"
#include "node/guardian_table.h"
#include "node/inode_table.h"
#include "node/kernel_names.h"
#include "node/lock_circles.h"

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

// The operation, if it gives a file another size.
const SetAttributesCall* truncation(const Operation& operation) {
  const auto* set = std::get_if<SetAttributesCall>(&operation);
  return set != nullptr && set->has_size ? set : nullptr;
}

// How long a page may be locked by somebody who may wait for us.
constexpr std::chrono::seconds kClearPatience{1};
// More pieces than one writev takes are joined first.
constexpr size_t kPiecesMax = IOV_MAX - 8;
// Of the writes that are answered at once the time is taken of one in so many: it costs as much as
// their bookkeeping.
constexpr uint64_t kTimedWrites = 16;

// Should the daemon be killed meanwhile, its guardian knows what this thread waits for.
class KnownToHang {
 public:
  KnownToHang(GuardianTable* guardian, uint64_t node, uint64_t offset, uint64_t length)
      : guardian_(guardian) {
    if (guardian_ != nullptr) number_ = guardian_->purge_begins(node, offset, length);
  }
  ~KnownToHang() {
    if (guardian_ != nullptr) guardian_->purge_ended(number_);
  }
  KnownToHang(const KnownToHang&) = delete;
  KnownToHang& operator=(const KnownToHang&) = delete;

 private:
  GuardianTable* const guardian_;
  size_t number_ = 0;
};

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

template <typename Event>
void AgentService::with(Shard& shard, Event event) {
  std::vector<After> after;
  {
    std::lock_guard lock(shard.mutex);
    AgentActions actions;
    event(shard.agent, lease_clock(), actions);
    carry_out(shard, actions, after);
    arm(shard);
  }
  if (local_) deliver_outbox(shard);
  for (After& a : after) finish(a);
}

void AgentService::carry_out(Shard& shard, AgentActions& actions, std::vector<After>& after) {
  for (AgentAction& action : actions) {
    std::visit(
        Overload{
            [&](ReplyData& a) {
              auto it = shard.pending.find(a.token);
              if (it == shard.pending.end()) return;
              const Pending& pending = it->second;
              if (auto sent = reply_data(pending.waiting, a.pieces, a.length); !sent)
                spdlog::warn("reply to a read: {}", sent.error().what);
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
            [&](StartPurge& a) {
              start_blocking([this, a] {
                const int64_t started = net::EventLoop::now().ns;
                const std::optional<uint64_t> node = environment_.inodes->find(this, a.file);
                if (node) {
                  const uint64_t length = a.range.end >= kPageEnd ? 0 : a.range.byte_length();
                  const KnownToHang known(environment_.guardian, *node, a.range.byte_offset(),
                                          length);
                  if (auto done = environment_.notify_channel()->invalidate_data(
                          *node, a.range.byte_offset(), length);
                      !done)
                    spdlog::debug("purge: {}", done.error().what);
                }
                if (environment_.take_back) environment_.take_back();
                environment_.metrics->record(Latency::Purge, net::EventLoop::now().ns - started);
                with(shard_of(a.file), [&](Agent& agent, Instant now, AgentActions& next) {
                  agent.purge_returned(now, a.purge, a.file, next);
                });
              });
            },
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
              const auto told = [this, claim = a.claim, file = a.file](Reply&& reply) {
                with(shard_of(file), [&](Agent& agent, Instant now, AgentActions& next) {
                  agent.claimed(now, claim, file, reply.error == 0, next);
                });
              };
              after.push_back({.then =
                                   [this, a, told](Answer) {
                                     call({}, ReclaimCall{a.file, false, a.pages}, told);
                                   },
                               .answer = {},
                               .waiting = {}});
            },
            [&](EndTruncation& a) {
              after.push_back({.then = [this, file = a.file](Answer) { end_truncation(file); },
                               .answer = {},
                               .waiting = {}});
            },
            [&](TellOpen& a) {
              const auto told = [this, a](Reply&& reply) {
                with(shard_of(a.file), [&](Agent& agent, Instant now, AgentActions& next) {
                  agent.open_told(now, a.tell, a.file, reply.error == 0, next);
                });
              };
              after.push_back({.then =
                                   [this, a, told](Answer) {
                                     call({}, ReclaimCall{a.file, false, {}}, told);
                                   },
                               .answer = {},
                               .waiting = {}});
            },
            [&](SendToHome& a) {
              const FileId file = file_of(a.message);
              note_sent(shard, a.message);
              if (local_) {
                std::lock_guard lock(shard.outbox_mutex);
                shard.outbox.emplace_back(file, std::move(a.message));
              } else {
                send_(file, std::move(a.message));
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

void AgentService::end_names(Shard& shard, const EndNames& a, std::vector<After>& after) {
  const auto ended = [this, a] {
    with(shard_of(a.dir), [&](Agent& agent, Instant now, AgentActions& next) {
      agent.names_ended(now, a.ending, a.dir, next);
    });
  };
  {
    std::lock_guard lock(held_mutex_);
    if (holding_) {
      held_.push_back([this, a, ended] {
        const std::optional<uint64_t> node = environment_.inodes->find(this, a.dir);
        if (!node || environment_.kernel_names->end(*node, true, net::EventLoop::now(), ended))
          ended();
      });
      return;
    }
  }
  const std::optional<uint64_t> node = environment_.inodes->find(this, a.dir);
  const bool at_once = a.at_once || shard.names.changing(a.dir);
  if (!node || environment_.kernel_names->end(*node, at_once, net::EventLoop::now(), ended))
    after.push_back({.then = [ended](Answer) { ended(); }, .answer = {}, .waiting = {}});
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
  if (const auto* flush = std::get_if<Flush>(&message)) shard.under_way.emplace(flush->flush, now);
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
    if (ack->error == ESTALE) {
      // A file that was written, removed and closed: nobody can miss the bytes. After a restart of
      // the home it may have been one that is still open.
      if (home_restarted_)
        spdlog::warn(
            "{}: bytes for inode {} have no file any more: it was removed, or its origin restarted",
            home_name_, ack->file.inode);
    } else if (ack->error != 0) {
      spdlog::error("{}: bytes for inode {} could not be stored: {}", home_name_, ack->file.inode,
                    strerror(ack->error));
    }
    if (auto it = shard.under_way.find(ack->flush); it != shard.under_way.end()) {
      environment_.metrics->record(Latency::Flush, now - it->second);
      shard.under_way.erase(it);
    }
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
    send_(file, std::move(message));
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

// ---- the kernel's requests

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

void AgentService::close(FileId file, Opening opening) {
  with(shard_of(file), [&](Agent& agent, Instant now, AgentActions& actions) {
    agent.close(now, file, opening, actions);
  });
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

void AgentService::flush(Waiting waiting, FileId file, Then then) {
  Shard& shard = shard_of(file);
  with(shard, [&](Agent& agent, Instant now, AgentActions& actions) {
    agent.flush(
        now,
        add_pending(shard,
                    {.file = file, .waiting = waiting, .then = std::move(then), .what = "fsync"}),
        file, actions);
  });
}

void AgentService::truncate(uint32_t tid, FileId file, uint64_t size, Then ready) {
  Shard& shard = shard_of(file);
  with(shard, [&](Agent& agent, Instant now, AgentActions& actions) {
    agent.truncate(now,
                   add_pending(shard, {.file = file,
                                       .waiting = {nullptr, 0, tid},
                                       .then = std::move(ready),
                                       .what = "truncate"}),
                   file, size, actions);
  });
}

template <class Event>
void AgentService::of_truncation(FileId file, Event event) {
  with(shard_of(file), [&](Agent& agent, Instant now, AgentActions& actions) {
    event(agent, now, actions);
    note_debts(agent, file);
  });
}

void AgentService::truncation_replied(FileId file, uint64_t size, bool under_lock, bool told,
                                      Reply&& reply, ThenReply then) {
  if (told) {
    of_truncation(file, [&](Agent& agent, Instant now, AgentActions& actions) {
      agent.truncation_goes_on(now, file, actions);
      agent.truncate_done(now, file, false, size, under_lock, actions);
      agent.truncation_ended(now, file, reply.error == 0, size, actions);
    });
    return then(Reply{.call = 0, .error = EIO, .outcome = {}});
  }
  const auto* made = std::get_if<Node>(&reply.outcome);
  const uint64_t before = made == nullptr ? size : made->size_before;
  bool shown = false;
  of_truncation(file, [&](Agent& agent, Instant now, AgentActions& actions) {
    shown = reply.error == 0 && agent.tail_is_shown(now, file, before, size, actions);
    if (!shown) agent.truncate_done(now, file, reply.error == 0, size, under_lock, actions);
  });
  if (!shown) return then(std::move(reply));
  clear_tail(file, before, size, under_lock, std::move(reply), std::move(then));
}

// To the end of its page at most. Blocks.
void AgentService::zero_page(FileId file, uint64_t from, uint64_t end) {
  end = std::min(end, ((from >> kPageShift) + 1) << kPageShift);
  const auto node = environment_.inodes->find(this, file);
  if (!node || end <= from) return;
  const std::vector<std::byte> zeroes(end - from);
  const KnownToHang known(environment_.guardian, *node, from, end - from);
  if (const Status done = environment_.notify_channel()->store(*node, from, zeroes); !done)
    spdlog::debug("zeroes behind the old end of a file: {}", done.error().what);
}

// K20. The page's lock may be held by somebody who waits for a write-back that the kernel holds
// back until the truncation is answered (sync(2)): then it is answered EIO, and goes on.
void AgentService::clear_tail(FileId file, uint64_t before, uint64_t size, bool under_lock,
                              Reply&& reply, ThenReply then) {
  struct Clearing {
    std::mutex mutex;
    std::condition_variable changed;
    bool cleared = false, given_up = false;
    Reply reply;
    ThenReply then;
  };
  auto clearing = std::make_shared<Clearing>();
  clearing->reply = std::move(reply);
  clearing->then = std::move(then);
  environment_.purge_threads->submit([=, this] {
    zero_page(file, before, size);
    bool late = false;
    {
      std::lock_guard lock(clearing->mutex);
      clearing->cleared = true;
      late = clearing->given_up;
    }
    clearing->changed.notify_all();
    of_truncation(file, [&](Agent& agent, Instant now, AgentActions& actions) {
      if (late) {
        agent.truncation_ended(now, file, true, size, actions);
      } else {
        agent.truncate_done(now, file, true, size, under_lock, actions);
      }
    });
    if (!late) clearing->then(std::move(clearing->reply));
  });
  environment_.purge_threads->submit([=, this] {
    std::unique_lock lock(clearing->mutex);
    if (clearing->changed.wait_for(lock, kClearPatience, [&] { return clearing->cleared; })) return;
    // Before the lock is free: truncation_ended() must find it.
    of_truncation(file, [&](Agent& agent, Instant now, AgentActions& actions) {
      agent.truncation_goes_on(now, file, actions);
      agent.truncate_done(now, file, false, size, under_lock, actions);
    });
    clearing->given_up = true;
    lock.unlock();
    clearing->then(Reply{.call = 0, .error = EIO, .outcome = {}});
  });
}

void AgentService::size_told(FileId file, uint64_t size) {
  with(shard_of(file), [&](Agent& agent, Instant now, AgentActions& actions) {
    agent.size_told(now, file, size, actions);
  });
}

// An inode that is open and that the kernel does not know is one whose CREATE has just been
// answered.
void AgentService::push_size(const PushSize& wanted) {
  bool there = false;
  for (int64_t pause_us = 50;; pause_us *= 2) {
    if (const auto node = environment_.inodes->find(this, wanted.file)) {
      const KnownToHang known(environment_.guardian, *node, wanted.size - 1, 1);
      const Status done = environment_.notify_channel()->push_size(*node, wanted.size);
      there = done.has_value();
      if (!there && done.error().code != ENOENT)
        spdlog::debug("push of a size: {}", done.error().what);
    }
    if (there || !wanted.open || pause_us > 20'000) break;
    std::this_thread::sleep_for(std::chrono::microseconds(pause_us));
  }
  with(shard_of(wanted.file), [&](Agent& agent, Instant now, AgentActions& next) {
    agent.size_pushed(now, wanted.push, wanted.file, there, next);
  });
}

void AgentService::look_at_size(const LookAtSize& wanted) {
  fuse::OwnView* view = environment_.own_view();
  const std::optional<uint64_t> node = environment_.inodes->find(this, wanted.file);
  if (view == nullptr || !node) return;
  const auto file = view->open(*node);
  if (!file) {
    spdlog::debug("size of a file: {}", file.error().what);
    return;
  }
  const Instant give_up = net::EventLoop::now() + kPushPatience;
  for (int64_t pause_us = 50; net::EventLoop::now() < give_up;
       pause_us = std::min<int64_t>(2 * pause_us, 5'000)) {
    if (const auto seen = fuse::OwnView::look(*file); seen && seen->size >= wanted.size) {
      with(shard_of(wanted.file), [&](Agent& agent, Instant now, AgentActions& next) {
        agent.size_pushed(now, wanted.push, wanted.file, true, next);
      });
      return;
    }
    std::this_thread::sleep_for(std::chrono::microseconds(pause_us));
  }
}

// Several threads share a settle; the last of them ends it.
struct AgentService::Settling {
  SettleSize settle;
  Fd file;
  std::atomic<uint32_t> asking{1};
};

void AgentService::settle(const SettleSize& wanted) {
  auto settling = std::make_shared<Settling>();
  settling->settle = wanted;
  fuse::OwnView* view = environment_.own_view();
  const std::optional<uint64_t> node = environment_.inodes->find(this, wanted.file);
  if (view != nullptr && node) {
    if (auto file = view->open(*node)) {
      settling->file = std::move(*file);
    } else if (file.error().code != ESTALE) {
      spdlog::debug("size of a file: {}", file.error().what);
    }
  }
  if (!settling->file.valid()) {  // the kernel does not know it, or cannot be asked
    settled(wanted);
    settle_ended(settling);
    return;
  }
  if (wanted.under_lock) {
    ++settling->asking;
    environment_.purge_threads->submit([this, settling] {
      fuse::OwnView::pass_lock(settling->file);
      settle_ended(settling);
    });
  }
  const Instant give_up = net::EventLoop::now() + kSettlePatience;
  for (int64_t pause_ns = 20'000; net::EventLoop::now() < give_up;
       pause_ns = std::min<int64_t>(2 * pause_ns, 5'000'000)) {
    const auto seen = fuse::OwnView::look(settling->file);
    if (!seen ||
        (seen->size <= wanted.size && (!wanted.access || *wanted.access == seen->access))) {
      settled(wanted);
      break;
    }
    if (!wanted.behind_truncation && settling->asking == 1) {
      ++settling->asking;
      environment_.purge_threads->submit([this, view, settling] {
        view->ask(settling->file);
        settle_ended(settling);
      });
    }
    std::this_thread::sleep_for(std::chrono::nanoseconds(pause_ns));
  }
  // An O_TRUNC: what cuts the pages holds no lock, and follows the size at once.
  if (wanted.behind_truncation && !wanted.under_lock)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  settle_ended(settling);
}

void AgentService::settled(const SettleSize& wanted) {
  with(shard_of(wanted.file), [&](Agent& agent, Instant now, AgentActions& actions) {
    agent.size_settled(now, wanted.settle, wanted.file, actions);
  });
}

void AgentService::settle_ended(const std::shared_ptr<Settling>& settling) {
  if (--settling->asking != 0) return;
  const SettleSize& wanted = settling->settle;
  with(shard_of(wanted.file), [&](Agent& agent, Instant now, AgentActions& actions) {
    agent.settle_ended(now, wanted.settle, wanted.file, actions);
  });
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

void AgentService::list(Waiting waiting, const Caller& caller, FileId dir, uint64_t cookie,
                        uint32_t bytes_max, bool attributes, ThenReply then) {
  Then leased = [this, waiting, caller, dir, cookie, bytes_max, attributes,
                 then = std::move(then)](Answer lease) mutable {
    if (lease.error != 0) {
      then(Reply{.call = 0, .error = lease.error, .outcome = {}});
      return;
    }
    if (std::optional<DirectoryPage> known = listed_before(dir, cookie)) {
      environment_.metrics->add(Counter::HitsWithoutMessage);
      then(Reply{.call = 0, .error = 0, .outcome = std::move(*known)});
      return;
    }
    const uint64_t asked = name_changes(dir);
    ThenReply listed = [this, dir, cookie, asked, then = std::move(then)](Reply&& reply) mutable {
      if (const auto* page = std::get_if<DirectoryPage>(&reply.outcome)) {
        Shard& shard = shard_of(dir);
        std::lock_guard lock(shard.mutex);
        if (shard.agent.may_give_names(dir) && !shard.names.changing(dir) &&
            shard.names.changes() == asked)
          shard.listings.remember(dir, cookie, *page);
        if (shard.agent.has_entries(dir))
          for (const DirectoryEntry& entry : page->entries)
            if (entry.file.generation != 0 && entry.name != "." && entry.name != "..")
              shard.names.remember(dir, entry.name, entry.file, asked);
      }
      then(std::move(reply));
    };
    call(caller, ReadDirectoryCall{dir, cookie, bytes_max, attributes}, std::move(listed), waiting);
  };
  Shard& shard = shard_of(dir);
  with(shard, [&](Agent& agent, Instant now, AgentActions& actions) {
    agent.entries(
        now,
        add_pending(shard,
                    {.file = dir, .waiting = waiting, .then = std::move(leased), .what = "names"}),
        dir, actions);
  });
}

std::optional<DirectoryPage> AgentService::listed_before(FileId dir, uint64_t cookie) {
  Shard& shard = shard_of(dir);
  std::lock_guard lock(shard.mutex);
  if (!shard.agent.leases_good(lease_clock()) || !shard.agent.may_give_names(dir) ||
      shard.names.changing(dir))
    return std::nullopt;
  const DirectoryPage* page = shard.listings.find(dir, cookie);
  return page == nullptr ? std::nullopt : std::optional(*page);
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

// ---- names

void AgentService::lookup(Waiting waiting, const Caller& caller, FileId dir, std::string name,
                          ThenFile then) {
  Shard& shard = shard_of(dir);
  NameCache::Answer known;
  bool has_lease = false;
  {
    std::lock_guard lock(shard.mutex);
    has_lease = shard.agent.has_entries(dir) && shard.agent.leases_good(lease_clock());
    if (has_lease) known = shard.names.find(dir, name);
  }
  if (known.known) {
    environment_.metrics->add(Counter::HitsWithoutMessage);
    if (known.file) {
      then(*known.file);
    } else {
      then(fail(ENOENT));
    }
    return;
  }
  if (has_lease) {
    lookup_at_home(waiting, caller, dir, std::move(name), std::move(then));
    return;
  }
  Then leased = [this, waiting, caller, dir, name = std::move(name),
                 then = std::move(then)](Answer lease) mutable {
    if (lease.error != 0) {
      then(fail(lease.error));
      return;
    }
    lookup_at_home(waiting, caller, dir, std::move(name), std::move(then));
  };
  with(shard, [&](Agent& agent, Instant now, AgentActions& actions) {
    agent.entries(
        now,
        add_pending(shard,
                    {.file = dir, .waiting = waiting, .then = std::move(leased), .what = "names"}),
        dir, actions);
  });
}

bool AgentService::give_name(uint64_t node, FileId dir, const std::string& name,
                             std::optional<FileId> file, uint32_t tid) {
  Shard& shard = shard_of(dir);
  std::lock_guard lock(shard.mutex);
  if (!shard.agent.leases_good(lease_clock()) || !shard.agent.may_give_names(dir)) return false;
  const NameCache::Answer known = shard.names.find(dir, name);
  if (!known.known || known.file != file) return false;
  if (!environment_.kernel_names->give(node, name, file.has_value(), tid, net::EventLoop::now()))
    return false;
  shard.agent.names_given(dir);
  return true;
}

uint64_t AgentService::name_changes(FileId dir) {
  Shard& shard = shard_of(dir);
  std::lock_guard lock(shard.mutex);
  return shard.names.changes();
}

void AgentService::forget_name(FileId dir, const std::string& name) {
  Shard& shard = shard_of(dir);
  std::lock_guard lock(shard.mutex);
  shard.names.forget(dir, name);
}

void AgentService::lookup_at_home(Waiting waiting, const Caller& caller, FileId dir,
                                  std::string name, ThenFile then) {
  LookupCall operation{dir, name};
  const uint64_t asked = name_changes(dir);
  ThenReply found = [this, dir, asked, name = std::move(name),
                     then = std::move(then)](Reply&& reply) mutable {
    const Node* node = std::get_if<Node>(&reply.outcome);
    const std::optional<FileId> file =
        reply.error == 0 && node != nullptr ? std::optional(node->file) : std::nullopt;
    if (file || reply.error == ENOENT) {
      // Replies and recalls of one directory come in the home's order: with the lease here, this is
      // still so.
      Shard& shard = shard_of(dir);
      std::lock_guard lock(shard.mutex);
      if (shard.agent.has_entries(dir)) shard.names.remember(dir, name, file, asked);
    }
    if (file) {
      then(*file);
    } else {
      then(fail(reply.error != 0 ? reply.error : EIO));
    }
  };
  call(caller, std::move(operation), std::move(found), waiting);
}

// ---- operations

uint64_t AgentService::call(Caller caller, Operation operation, ThenReply then, Waiting waiting) {
  const uint64_t id = reserve_call(waiting.request, operation.index());
  call_as(id, std::move(caller), std::move(operation), std::move(then), waiting);
  return id;
}

void AgentService::call_as(uint64_t id, Caller caller, Operation operation, ThenReply then,
                           Waiting waiting) {
  const auto is_under_way = [&] {
    std::lock_guard lock(calls_mutex_);
    return calls_.contains(id);
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
  {
    std::lock_guard lock(calls_mutex_);
    auto [it, fresh] = calls_.try_emplace(id);
    it->second.then = std::move(timed);
    it->second.waiting = waiting;
    it->second.started_ns = started;
    if (!fresh) return;  // the daemon before has made it
    it->second.call = message;
  }
  // In order with what the file's agent sends.
  Shard& shard = shard_of(file);
  {
    std::lock_guard lock(shard.mutex);
    if (local_) {
      std::lock_guard outbox(shard.outbox_mutex);
      shard.outbox.emplace_back(file, std::move(message));
    } else {
      send_(file, std::move(message));
    }
  }
  if (local_) deliver_outbox(shard);
}

uint64_t AgentService::reserve_call(uint64_t request, size_t kind) {
  if (request != 0) {
    std::lock_guard lock(calls_mutex_);
    if (auto it = inherited_.find(request); it != inherited_.end()) {
      const uint64_t id = it->second;
      inherited_.erase(it);
      auto call = calls_.find(id);
      if (call != calls_.end() && call->second.call.operation.index() == kind) return id;
    }
  }
  return next_call_.fetch_add(1, std::memory_order_relaxed);
}

void AgentService::call_changing(std::vector<Change> changes, Caller caller, Operation operation,
                                 ThenReply then, uint32_t tid, uint64_t request) {
  for (const Change& change : changes) {
    Shard& shard = shard_of(change.dir);
    std::lock_guard lock(shard.mutex);
    shard.names.begin_change(change.dir);
    shard.listings.forget(change.dir);
  }
  const auto* rename = std::get_if<RenameCall>(&operation);
  const bool followed = rename == nullptr || follow_rename(*rename, changes, tid);
  const bool makes = rename == nullptr && !std::holds_alternative<RemoveCall>(operation);
  call(std::move(caller), std::move(operation),
       [this, changes = std::move(changes), followed, makes,
        then = std::move(then)](Reply&& reply) mutable {
         for (const Change& change : changes) {
           Shard& shard = shard_of(change.dir);
           std::lock_guard lock(shard.mutex);
           shard.names.end_change(change.dir, change.name);
           // The kernel is told not to keep what is made: it may have been told to keep that there
           // is none.
           if (makes && reply.error == 0)
             environment_.kernel_names->renewed(change.node, change.name);
         }
         if (!followed) environment_.kernel_names->end_all();
         then(std::move(reply));
       },
       {nullptr, 0, tid, request});
}

// The kernel takes its right to use the old name along to the new one.
bool AgentService::follow_rename(const RenameCall& rename, const std::vector<Change>& changes,
                                 uint32_t tid) {
  VR_CHECK(changes.size() == 2);
  const auto follow = [&](const Change& from, const Change& to) {
    Shard& shard = shard_of(to.dir);
    std::lock_guard lock(shard.mutex);
    const bool leased =
        shard.agent.leases_good(lease_clock()) && shard.agent.may_give_names(to.dir);
    if (leased) shard.agent.names_given(to.dir);
    return environment_.kernel_names->move(from.node, from.name, to.node, to.name, leased, tid);
  };
  const bool there = follow(changes[0], changes[1]);
  const bool back = (rename.flags & RENAME_EXCHANGE) == 0 || follow(changes[1], changes[0]);
  return there && back;
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
    }
    if (const auto* lock = std::get_if<LockCall>(&pending.call.operation);
        lock != nullptr && !local_ && reply->error == 0)
      note_lock(*lock);
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
  send_(file, std::move(message));
}

void AgentService::refuse_wait(FileId file, uint64_t call) {
  if (!can_follow_) return;
  AgentService::call({}, LockCall{.file = file, .action = LockAction::Refuse, .waiting_call = call},
                     [](Reply&&) {});
}

bool AgentService::holds_range(uint64_t owner) {
  std::lock_guard lock(locks_mutex_);
  return locks_.holds_range({{}, owner});
}

void AgentService::renew(Instant until) {
  for (auto& shard : shards_)
    with(*shard, [&](Agent& agent, Instant now, AgentActions& actions) {
      agent.renew(now, until, actions);
    });
}

void AgentService::fail_calls() {
  std::vector<ThenReply> failed;
  std::vector<FileId> truncated;
  {
    std::lock_guard lock(calls_mutex_);
    for (auto it = calls_.begin(); it != calls_.end();) {
      if (const auto* cut = truncation(it->second.call.operation)) {
        if (!it->second.goes_on) truncated.push_back(cut->file);
        ++it;
        continue;
      }
      failed.push_back(std::move(it->second.then));
      it = calls_.erase(it);  // its reply, if there is ever any, finds nobody
    }
  }
  for (FileId file : truncated) end_truncation(file);
  for (ThenReply& then : failed) then(Reply{.call = 0, .error = EIO, .outcome = {}});
}

void AgentService::note_lock(const LockCall& call) {
  std::lock_guard lock(locks_mutex_);
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

void AgentService::reclaim_locks(Agent::Dirty dirty) {
  std::map<uint64_t, LockCall> under_way;  // in the order in which they were made
  {
    std::lock_guard lock(calls_mutex_);
    for (const auto& [id, pending] : calls_)
      if (const auto* call = std::get_if<LockCall>(&pending.call.operation))
        under_way.emplace(id, *call);
  }
  std::vector<LockCall> calls;
  for (const auto& [id, call] : under_way) calls.push_back(call);
  std::vector<LockTable::Held> held;
  {
    std::lock_guard lock(locks_mutex_);
    const bool fenced = dirty == Agent::Dirty::Fenced;
    held = fenced ? locks_.all() : locks_to_reclaim(locks_, calls);
    if (fenced) locks_ = LockTable();
  }
  if (dirty == Agent::Dirty::Fenced) {
    for (const LockTable::Held& h : held)
      spdlog::error("{}: process {} has lost its lock on inode {}: the session was ended",
                    home_name_, h.lock.pid, h.file.inode);
    return;
  }
  for (const LockTable::Held& h : held)
    call({}, h.reclaim(), [this, h](Reply&& reply) {
      if (reply.error == 0 || reply.error == EIO)
        return;  // EIO: another session, it is asked again
      note_lock({.file = h.file,
                 .kind = h.kind,
                 .type = LockType::Unlock,
                 .owner = h.lock.owner.id,
                 .start = h.lock.range.start,
                 .end = h.lock.range.end});
      spdlog::error("{}: process {} has lost its lock on inode {}: {}", home_name_, h.lock.pid,
                    h.file.inode, strerror(reply.error));
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
  for (auto& shard : shards_)
    with(*shard, [&](Agent& agent, Instant now, AgentActions& actions) {
      agent.claim_held_back(now, actions);
      all = all && agent.brought_back();
    });
  return all;
}

// Its caller is told EIO. The home may carry it out yet: what becomes of it is looked after.
void AgentService::end_truncation(FileId file) {
  const auto ended = [this, file](bool done, uint64_t size) {
    of_truncation(file, [&](Agent& agent, Instant now, AgentActions& actions) {
      agent.truncation_ended(now, file, done, size, actions);
    });
  };
  of_truncation(file, [&](Agent& agent, Instant now, AgentActions& actions) {
    agent.truncation_goes_on(now, file, actions);
  });
  ThenReply then;
  {
    std::lock_guard lock(calls_mutex_);
    for (auto& [id, pending] : calls_) {
      const auto* cut = truncation(pending.call.operation);
      if (cut == nullptr || cut->file != file || pending.goes_on) continue;
      pending.goes_on = true;
      then = std::exchange(pending.then, [ended, size = cut->size](Reply&& reply) {
        ended(reply.error == 0, size);
      });
      break;
    }
  }
  if (!then) return ended(false, 0);
  then(Reply{.call = 0, .error = EIO, .outcome = {}});
}

void AgentService::reset(Agent::Dirty dirty, bool nothing_sent) {
  if (!nothing_sent) home_restarted_ = true;
  for (auto& shard : shards_)
    with(*shard, [&](Agent& agent, Instant now, AgentActions& actions) {
      agent.reset(now, dirty, actions);
      shard->recalls.clear();
      shard->under_way.clear();
    });
  // In the order in which they were made: of two for one file the later must not come first.
  std::vector<uint64_t> again, lost;
  const bool kept = dirty == Agent::Dirty::Kept || nothing_sent;
  {
    std::lock_guard lock(calls_mutex_);
    for (const auto& [id, pending] : calls_)
      (is_made_again(pending.call.operation, kept) ? again : lost).push_back(id);
  }
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
      message = it->second.call;
    }
    const FileId file = file_of(message.operation);
    send_(file, std::move(message));
  }
}

void AgentService::took_over(bool same_session) {
  {
    std::lock_guard lock(calls_mutex_);
    inherited_.clear();  // all that was waited for is here again
  }
  for (auto& shard : shards_)
    with(*shard, [&](Agent& agent, Instant now, AgentActions& actions) {
      agent.took_over(now, same_session, actions);
    });
  for (ToAgent& message : std::exchange(asked_before_, {})) receive(std::move(message));
  if (same_session) return;
  reclaim_locks(Agent::Dirty::Kept);
  tell_open_files();
  if (!local_) return;
  std::lock_guard lock(locks_mutex_);
  locks_ = LockTable();  // the home has them
}

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
