#include "sim/node.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>

#include "base/overload.h"
#include "sim/home_driver.h"

namespace vremote::sim {

using namespace coherence;

namespace {

int file_number(FileId file) { return static_cast<int>(file.inode) - 1; }

}  // namespace

Node::Node(Scheduler& scheduler, History& history, const Breaks& breaks, NodeId id,
           const AgentOptions& agent, const KernelOptions& kernel, Hooks hooks, Clock clock)
    : scheduler_(scheduler),
      history_(history),
      breaks_(breaks),
      id_(id),
      hooks_(std::move(hooks)),
      clock_(clock),
      gate_(scheduler,
            [this] {
              guardian_ = false;
              kernel_.daemon_listens();
            }),
      agent_(agent),
      kernel_(scheduler, history, *this, static_cast<int>(id.value), kernel),
      purge_slot_(scheduler),
      settle_ns_(agent.settle_ns) {}

void Node::take(FileId file, AgentActions& actions) {
  for (AgentAction& action : actions) perform(file, action);
  if (catches_up_ && agent_.counts().waiting == 0) catches_up_ = false;
  hooks_.changed(id_, file);
  schedule_tick();
}

void Node::perform(FileId file, AgentAction& action) {
  const int f = file_number(file);
  std::visit(
      Overload{
          [&](ReplyData& a) {
            Answer answer;
            for (const Bytes& piece : a.pieces)
              answer.bytes.insert(answer.bytes.end(), piece.view().begin(), piece.view().end());
            if (answer.bytes.size() != a.length)
              scheduler_.fail(fmt::format("ReplyData on n{} says {} bytes and has {}", id_.value,
                                          a.length, answer.bytes.size()));
            scheduler_.trace(number(), f, "agent   answers t{} with {} bytes", a.token, a.length);
            kernel_.answer(a.token, std::move(answer));
          },
          [&](ReplyWritten& a) {
            scheduler_.trace(number(), f, "agent   wrote t{} at {}+{}", a.token, a.offset,
                             a.length);
            kernel_.answer(a.token,
                           Answer{.offset = a.offset, .length = a.length, .early = interrupting_});
          },
          [&](ReplyOpened& a) {
            scheduler_.trace(number(), f, "agent   opened t{}", a.token);
            kernel_.answer(a.token, Answer{});
          },
          [&](ReplyAttributes& a) {
            scheduler_.trace(number(), f, "agent   attributes t{} size {}", a.token,
                             a.attributes.size);
            Answer answer;
            answer.attributes = a.attributes;
            answer.may_cache = a.may_cache;
            answer.size_was_pushed = after_push_;
            kernel_.answer(a.token, std::move(answer));
          },
          [&](ReplyFlushed& a) {
            scheduler_.trace(number(), f, "agent   flushed t{} error {}", a.token, a.error);
            if (hooks_.syncs && a.error == 0) {
              calls_.at(send_call(std::nullopt, 0, SyncCall{fsyncs_.at(a.token), false})).fsync =
                  a.token;
              return;
            }
            fsyncs_.erase(a.token);
            kernel_.answer(a.token, Answer{.error = a.error});
          },
          [&](ReplyTruncateReady& a) {
            auto it = truncations_.find(a.token);
            if (it == truncations_.end()) {
              scheduler_.fail(
                  fmt::format("ReplyTruncateReady for a token nobody waits for on n{}", id_.value));
              return;
            }
            scheduler_.trace(number(), f, "agent   ready to truncate t{}", a.token);
            SetAttributesCall set;
            set.file = it->second.file;
            set.has_size = true;
            set.size = it->second.size;
            const Truncation truncation = it->second;
            truncations_.erase(it);
            send_call(truncation, 0, std::move(set));
          },
          [&](ReplyEntries& a) { kernel_.answer(a.token, Answer{}); },
          [&](ReplyError& a) {
            scheduler_.trace(number(), f, "agent   error t{} {}", a.token, a.error);
            if (truncations_.erase(a.token) > 0 && !hooks_.rescue)
              scheduler_.fail("no errors in this world: a truncation failed");
            // The judge must know that no loss was told.
            const int32_t error = fsyncs_.erase(a.token) > 0 ? ETIME : a.error;
            if (!ended_.contains(a.token)) kernel_.answer(a.token, Answer{.error = error});
          },
          [&](StartPurge& a) {
            scheduler_.trace(number(), f, "agent   purge p{} pages {}-{}", a.purge, a.range.first,
                             a.range.end >= kPageEnd ? 0 : a.range.end);
            scheduler_.spawn(run_purge(a.purge, a.file, a.range));
          },
          [&](DropAttributes& a) {
            scheduler_.trace(number(), f, "agent   drops the kernel's attributes");
            kernel_.drop_attributes(a.file);
          },
          [&](PushSize& a) {
            scheduler_.trace(number(), f, "agent   pushes size {}", a.size);
            kernel_.push_begins(a.file, a.size);
            scheduler_.spawn(run_push(a));
          },
          [&](LookAtSize& a) {
            scheduler_.trace(number(), f, "agent   looks for size {}", a.size);
            scheduler_.spawn(look_at_size(a));
          },
          [&](SettleSize& a) {
            scheduler_.trace(number(), f, "agent   settles size {}, s{}{}", a.size, a.settle,
                             a.behind_truncation ? " behind a truncation" : "");
            scheduler_.spawn(run_settle(a));
          },
          [&](ClaimPages& a) {
            scheduler_.trace(number(), f, "agent   claims {} ranges held back", a.pages.size());
            claims_[next_call_] = {a.claim, a.file};
            send_call(std::nullopt, 0, ReclaimCall{a.file, false, a.pages});
          },
          [&](EndTruncation& a) { end_truncation(a.file); },
          [&](TellOpen&) { scheduler_.fail("no file loses its last name in this world"); },
          [&](SendToHome& a) {
            scheduler_.trace(number(), f, "agent   sends {}", describe(a.message));
            hooks_.send(id_, std::move(a.message));
          },
          [&](EntriesLost&) {},
          [&](Rescue& a) {
            if (!hooks_.rescue) {
              scheduler_.fail("no session ends in this world");
              return;
            }
            for (const Extent& e : a.extents)
              scheduler_.trace(number(), file_number(a.file), "agent   rescues {}+{}", e.offset,
                               e.bytes.size());
            hooks_.rescue(a);
          },
          [&](EndNames&) { scheduler_.fail("the kernel was given no names in this world"); }},
      action);
}

Co<> Node::run_push(PushSize wanted) {
  co_await scheduler_.sleep(Delay::KernelQueue);
  const bool there = kernel_.knows(wanted.file);
  co_await kernel_.push_size(wanted.file, wanted.size);
  co_await scheduler_.sleep(Delay::PurgeReport);
  push_ended(wanted.push, wanted.file, there);
}

void Node::push_ended(uint64_t id, FileId file, bool there) {
  gate_.enter(Door::Own, [this, id, file, there] {
    AgentActions actions;
    agent_.size_pushed(now(), id, file, there, actions);
    after_push_ = true;
    take(file, actions);
    after_push_ = false;
  });
}

Co<> Node::look_at_size(LookAtSize wanted) {
  const Instant give_up = scheduler_.now() + settle_ns_;
  for (int64_t pause_ns = 2'000; scheduler_.now() < give_up; pause_ns *= 2) {
    if (kernel_.size_at_least(wanted.file, wanted.size)) {
      co_await scheduler_.sleep(Delay::PurgeReport);
      push_ended(wanted.push, wanted.file, true);
      co_return;
    }
    co_await Scheduler::Sleep{scheduler_, pause_ns};
  }
}

// One helper asks until it is seen that the size is there, and goes away; each question may stay in
// the kernel for longer.
Co<> Node::run_settle(SettleSize settle) {
  const Instant give_up = scheduler_.now() + settle_ns_;
  auto asking = std::make_shared<uint32_t>(1);
  if (settle.behind_truncation) {
    ++*asking;
    struct Pass {
      static Co<> run(Node& node, SettleSize what, std::shared_ptr<uint32_t> count) {
        co_await node.scheduler_.sleep(Delay::KernelQueue);
        co_await node.kernel_.inode_lock_passes(what.file);
        co_await node.end_settle(what, count);
      }
    };
    scheduler_.spawn(Pass::run(*this, settle, asking));
  }
  co_await scheduler_.sleep(Delay::KernelQueue);
  int64_t pause_ns = 2'000;
  while (!kernel_.size_at_most(settle.file, settle.size) && scheduler_.now() < give_up) {
    if (!settle.behind_truncation && *asking == 1) {
      ++*asking;
      struct Ask {
        static Co<> run(Node& node, SettleSize what, std::shared_ptr<uint32_t> count) {
          co_await node.kernel_.own_stat(what.file);
          co_await node.end_settle(what, count);
        }
      };
      scheduler_.spawn(Ask::run(*this, settle, asking));
    }
    co_await Scheduler::Sleep{scheduler_, pause_ns};
    pause_ns *= 2;
  }
  if (kernel_.size_at_most(settle.file, settle.size)) {
    co_await scheduler_.sleep(Delay::PurgeReport);
    scheduler_.trace(number(), file_number(settle.file), "kernel  size settled s{}", settle.settle);
    gate_.enter(Door::Own, [this, settle] {
      AgentActions actions;
      agent_.size_settled(now(), settle.settle, settle.file, actions);
      take(settle.file, actions);
    });
  }
  co_await end_settle(settle, asking);
}

Co<> Node::end_settle(SettleSize settle, std::shared_ptr<uint32_t> asking) {
  if (--*asking != 0) co_return;
  co_await scheduler_.sleep(Delay::PurgeReport);
  scheduler_.trace(number(), file_number(settle.file), "kernel  settle s{} ended", settle.settle);
  gate_.enter(Door::Own, [this, settle] {
    AgentActions actions;
    agent_.settle_ended(now(), settle.settle, settle.file, actions);
    take(settle.file, actions);
  });
}

Co<> Node::run_purge(PurgeId id, FileId file, PageRange range) {
  if (breaks_.fixed_purge_pool) {
    while (purges_running_ > 0) co_await purge_slot_.wait();
  }
  ++purges_running_;
  co_await scheduler_.sleep(Delay::KernelQueue);  // a helper thread takes it up
  co_await kernel_.purge(file, range);
  --purges_running_;
  purge_slot_.wake_all();
  co_await scheduler_.sleep(Delay::PurgeReport);
  scheduler_.trace(number(), file_number(file), "kernel  purge p{} returned", id);
  gate_.enter(Door::Own, [this, id, file] {
    if (!breaks_.purges_before_taking_back) take_back();
    AgentActions actions;
    agent_.purge_returned(now(), id, file, actions);
    take(file, actions);
  });
}

void Node::schedule_tick() {
  std::optional<Instant> due = agent_.next_deadline();
  // By this machine's clock.
  if (due)
    due = scheduler_.now() + (clock_.drift_ppm == 0
                                  ? *due - now()
                                  : clock_.world_ns(std::max<int64_t>(*due - now(), 0)));
  tick_.set(due, [this] {
    gate_.enter(Door::Own, [this] {
      AgentActions actions;
      agent_.tick(now(), actions);
      // Many files may have moved: those of the actions are traced under the first.
      for (AgentAction& action : actions) perform(FileId{}, action);
      hooks_.changed(id_, FileId{});
      schedule_tick();
    });
  });
}

uint64_t Node::send_call(std::optional<Truncation> truncation, Token waits, Operation operation) {
  const uint64_t id = next_call_++;
  Call call{.call = id, .caller = {}, .operation = std::move(operation)};
  PendingCall& pending = calls_[id] = PendingCall{call, truncation, waits};
  if (std::holds_alternative<SyncCall>(call.operation)) pending.sync_begun = agent_.sync_begins();
  if (is_noted(call.operation)) unheard_.made(id);
  call.heard_below = unheard_.heard_below(id);
  hooks_.send(id_, std::move(call));
  return id;
}

void Node::replied(const Reply& reply, AgentActions& actions) {
  auto it = calls_.find(reply.call);
  if (it == calls_.end()) {
    if (!hooks_.rescue) scheduler_.fail("a reply nobody waits for");
    return;
  }
  const PendingCall call = std::move(it->second);
  calls_.erase(it);
  unheard_.heard(reply.call);
  int32_t error = reply.error;
  if (error == 0)
    for (FileId changed : changed_files(call.call.operation)) agent_.changed_at_home(changed);
  if (std::holds_alternative<SyncCall>(call.call.operation))
    error = agent_.synced(coherence::file_of(call.call.operation), call.sync_begun, error,
                          call.sync_begun, call.who);
  if (call.fsync != 0) {
    fsyncs_.erase(call.fsync);
    kernel_.answer(call.fsync, Answer{.error = error});
    return;
  }
  if (auto claim = claims_.find(reply.call); claim != claims_.end()) {
    agent_.claimed(now(), claim->second.first, claim->second.second, reply.error == 0, actions);
    claims_.erase(claim);
    return;
  }
  if (call.truncation && call.told) {
    size_untold_ = size_untold_ || reply.error == 0;
    agent_.truncation_ended(now(), call.truncation->file, reply.error == 0, call.truncation->size,
                            actions);
    return;
  }
  if (call.truncation && ended_.contains(call.truncation->token)) {
    const Truncation& t = *call.truncation;
    agent_.truncation_goes_on(now(), t.file, actions);
    agent_.truncate_done(now(), t.file, false, t.size, true, actions);
    agent_.truncation_ended(now(), t.file, reply.error == 0, t.size, actions);
    return;
  }
  if (call.truncation) {
    const Truncation& t = *call.truncation;
    const auto* made = std::get_if<coherence::Node>(&reply.outcome);
    if (reply.error == 0 && made != nullptr &&
        agent_.tail_is_shown(now(), t.file, made->size_before, t.size, actions)) {
      scheduler_.spawn(clear_tail(t, made->size_before));
      return;
    }
    agent_.truncate_done(now(), t.file, reply.error == 0, t.size, true, actions);
    kernel_.answer(t.token, Answer{.error = reply.error});
    return;
  }
  if (call.waits == 0) return;
  NameResult& result = name_waits_.at(call.waits);
  result.error = error;
  scheduler_.resume_after(scheduler_.draw(Delay::WakeUp), result.handle);
}

void Node::end_truncations() {
  for (Token token : kernel_.end_truncations()) ended_.insert(token);
}

// As AgentService::clear_tail().
Co<> Node::clear_tail(Truncation t, uint64_t before) {
  co_await scheduler_.sleep(Delay::KernelQueue);
  const uint64_t end = std::min(t.size, ((before >> kPageShift) + 1) << kPageShift);
  scheduler_.trace(number(), file_number(t.file), "agent   clears {}+{}", before, end - before);
  co_await kernel_.store_zeroes(t.file, before, end - before);
  co_await scheduler_.sleep(Delay::PurgeReport);
  gate_.enter(Door::Own, [this, t] {
    AgentActions actions;
    agent_.truncate_done(now(), t.file, true, t.size, true, actions);
    if (!ended_.contains(t.token)) kernel_.answer(t.token, Answer{});
    take(t.file, actions);
  });
}

// As AgentService::end_truncation().
void Node::end_truncation(FileId file) {
  for (auto& [id, call] : calls_) {
    if (!call.truncation || call.told || call.truncation->file != file) continue;
    call.told = true;
    const Truncation t = *call.truncation;
    scheduler_.trace(number(), file_number(file), "agent   does not wait for t{} any more",
                     t.token);
    AgentActions actions;
    agent_.truncation_goes_on(now(), file, actions);
    agent_.truncate_done(now(), file, false, t.size, true, actions);
    if (!ended_.contains(t.token)) kernel_.answer(t.token, Answer{.error = EIO});
    take(file, actions);
    return;
  }
}

bool Node::brings_back() {
  AgentActions actions;
  agent_.claim_held_back(now(), actions);
  take(FileId{}, actions);
  return agent_.brought_back();
}

void Node::deliver(FileId file, ToAgent message) {
  scheduler_.trace(number(), file_number(file), "agent   gets {}", describe(message));
  AgentActions actions;
  std::visit(Overload{[&](Reply& reply) { replied(reply, actions); },
                      [](FollowOwner&) {},  // tried in wait_circles_test.cc
                      [&](auto& other) { agent_.receive(now(), std::move(other), actions); }},
             message);
  take(file, actions);
}

void Node::flush_all() {
  AgentActions actions;
  agent_.flush_all(now(), actions);
  take(FileId{}, actions);
}

void Node::on_read(Token token, FileId file, uint64_t offset, uint32_t size, bool fill) {
  gate_.enter(Door::Kernel, [=, this] {
    AgentActions actions;
    agent_.read(
        now(),
        ReadEvent{.token = token, .file = file, .offset = offset, .size = size, .fill = fill},
        actions);
    take(file, actions);
  });
}

void Node::on_write(Token token, FileId file, uint64_t offset, Bytes bytes, bool append,
                    uint64_t handle) {
  gate_.enter(Door::Kernel, [=, this, bytes = std::move(bytes)]() mutable {
    AgentActions actions;
    const WriteNowEvent direct{.file = file,
                               .offset = offset,
                               .bytes = bytes.view(),
                               .append = append,
                               .handle = handle,
                               .now_wall = scheduler_.wall()};
    if (const auto went = agent_.write_now(now(), direct)) {
      actions.push_back(ReplyWritten{token, went->offset, static_cast<uint32_t>(bytes.size())});
      take(file, actions);
      return;
    }
    WriteEvent event{.token = token,
                     .file = file,
                     .offset = offset,
                     .bytes = std::move(bytes),
                     .append = append,
                     .handle = handle,
                     .now_wall = scheduler_.wall()};
    agent_.write(now(), std::move(event), actions);
    take(file, actions);
  });
}

bool Node::takes_write_backs() const { return guardian_ || gate_.runs(); }

bool Node::is_shown_growth() const {
  return !hooks_.rescue || (leases_good() && !catches_up_ && !size_untold_);
}

void Node::on_write_back(FileId file, uint64_t offset, Bytes bytes) {
  if (gate_.dead()) {  // the guardian keeps it
    hooks_.rescue(Rescue{file, {{offset, std::move(bytes)}}, {}});
    return;
  }
  gate_.enter(Door::Kernel, [=, this, bytes = std::move(bytes)]() mutable {
    if (!hooks_.rescue &&
        agent_.held(file, Resource::Data, offset >> kPageShift) != LeaseMode::Exclusive) {
      scheduler_.fail(fmt::format("write-back without Exclusive: n{} f{} page {}", id_.value,
                                  file_number(file), offset >> kPageShift));
    }
    AgentActions actions;
    agent_.write_back(now(), file, offset, std::move(bytes), scheduler_.wall(), actions);
    take(file, actions);
  });
}

void Node::on_open(Token token, FileId file, bool reads, bool may_map) {
  gate_.enter(Door::Kernel, [=, this] {
    AgentActions actions;
    agent_.open(now(), token, file, {.reads = reads, .may_map = may_map}, actions);
    take(file, actions);
  });
}

void Node::on_release(FileId file, bool reads, bool may_map) {
  gate_.enter(Door::Kernel, [=, this] {
    AgentActions actions;
    agent_.close(now(), file, {.reads = reads, .may_map = may_map}, actions);
    take(file, actions);
  });
}

void Node::on_get_attributes(Token token, FileId file, bool own) {
  gate_.enter(Door::Kernel, [=, this] {
    AgentActions actions;
    agent_.attributes(now(), token, file, own, actions);
    take(file, actions);
  });
}

void Node::on_fsync(Token token, FileId file) {
  gate_.enter(Door::Kernel, [=, this] {
    fsyncs_[token] = file;
    AgentActions actions;
    agent_.flush(now(), token, file, actions);
    take(file, actions);
  });
}

void Node::on_set_size(Token token, FileId file, uint64_t size) {
  if (guardian_)
    scheduler_.after(Delay::KernelQueue, [this] {
      if (guardian_) end_truncations();
    });
  gate_.enter(Door::Kernel, [=, this] {
    if (ended_.contains(token)) return;  // the guardian has read it
    truncations_[token] = Truncation{token, file, size};
    AgentActions actions;
    agent_.truncate(now(), token, file, size, actions);
    take(file, actions);
  });
}

void Node::on_interrupt(Token token, FileId file) {
  gate_.enter(Door::Kernel, [=, this] {
    AgentActions actions;
    agent_.interrupt(now(), token, file, actions);
    interrupting_ = true;
    take(file, actions);
    interrupting_ = false;
  });
}

void Node::on_forget(FileId file) {
  gate_.enter(Door::Kernel, [=, this] {
    AgentActions actions;
    agent_.forget(now(), file, actions);
    take(file, actions);
  });
}

Co<int32_t> Node::call(Operation operation, Opener who) {
  co_await scheduler_.sleep(Delay::KernelQueue);
  const Token token = next_name_++;
  name_waits_[token] = {};
  gate_.enter(Door::Kernel, [this, token, who, operation = std::move(operation)]() mutable {
    calls_.at(send_call(std::nullopt, token, std::move(operation))).who = who;
  });
  NameWait wait{*this, token};
  const int32_t error = co_await wait;
  co_return error;
}

std::string Node::dump() const {
  std::string out = kernel_.dump();
  const AgentCounts c = agent_.counts();
  out += fmt::format(
      "  n{} agent: {} requests wait, {} recalls to ack, {} purges under way, {} dirty bytes, {} "
      "resident pages\n",
      id_.value, c.waiting, c.recalls_pending, c.purges_in_flight, c.dirty_bytes, c.resident_pages);
  for (const auto& [id, call] : calls_) {
    if (call.truncation)
      out += fmt::format("  n{} f{} truncation to {} sent, not answered\n", id_.value,
                         file_number(call.truncation->file), call.truncation->size);
    else
      out += fmt::format("  n{} call {} sent, not answered\n", id_.value, id);
  }
  return out;
}

}  // namespace vremote::sim
