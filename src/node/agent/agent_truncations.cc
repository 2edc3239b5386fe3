// Files that get another size: from a program's call until its kernel may hear of it (K8, K20).
#include <spdlog/spdlog.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <utility>

#include "node/agent/agent_service.h"
#include "node/agent/inode_table.h"
#include "node/guardian/known_to_hang.h"

namespace vremote::node {

using namespace coherence;

namespace {

// How long a page may be locked by somebody who may wait for us.
constexpr std::chrono::seconds kClearPatience{1};

}  // namespace

// The operation, if it gives a file another size.
const SetAttributesCall* AgentService::truncation(const Operation& operation) {
  const auto* set = std::get_if<SetAttributesCall>(&operation);
  return set != nullptr && set->has_size ? set : nullptr;
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
      then = pending.go_on(
          [ended, size = cut->size](Reply&& reply) { ended(reply.error == 0, size); });
      break;
    }
  }
  if (!then) return ended(false, 0);
  then(Reply{.call = 0, .error = EIO, .outcome = {}});
}

}  // namespace vremote::node
