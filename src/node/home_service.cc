#include "node/home_service.h"

#include <spdlog/spdlog.h>
#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <thread>

#include "base/overload.h"
#include "base/random_number.h"
#include "coherence/wait_circles.h"
#include "net/event_loop.h"

namespace vremote::node {

using namespace coherence;

namespace {

// The kernel's view of a size can be older than a truncation: a mapped store beyond the true end
// must not bring the file back.
void cut_extents(std::vector<Extent>& extents, uint64_t size) {
  for (Extent& extent : extents)
    if (extent.offset + extent.bytes.size() > size)
      extent.bytes = extent.bytes.part(0, extent.offset < size ? size - extent.offset : 0);
  std::erase_if(extents, [](const Extent& extent) { return extent.bytes.empty(); });
}

// Messages of searches for circles between two ticks, of one node: a second's worth is some
// thousands.
constexpr size_t kFollowedMax = 1000;

// Other homes compare it with theirs: a clock that all machines share, more or less. Never 0.
uint64_t time_of_day() {
  struct timespec now {};
  ::clock_gettime(CLOCK_REALTIME, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec) + 1;
}

// Recalls looked at in one tick: the oldest.
constexpr size_t kBlockersMax = 4096;

uint64_t work_of(const Flush& flush) {
  uint64_t bytes = 0;
  for (const Extent& extent : flush.extents) bytes += extent.bytes.size();
  return bytes;
}
uint64_t work_of(const Fetch& fetch) {
  return std::min(fetch.range.byte_length(), store::kReadMax);
}

}  // namespace

HomeService::HomeService(std::vector<std::unique_ptr<store::Store>> stores,
                         HelperThreads& disk_threads, Metrics& metrics, Deliver deliver,
                         GiveUp give_up, UndoneWork::Throttle throttle, Mistakes mistakes)
    : stores_(std::move(stores)),
      metrics_(metrics),
      deliver_(std::move(deliver)),
      give_up_(std::move(give_up)),
      undone_(std::move(throttle)),
      disk_threads_(disk_threads),
      queues_(disk_threads),
      mistakes_(mistakes),
      home_(mistakes),
      locks_(mistakes),
      lock_table_number_(random_number()),
      grace_(2 * kRequestsMax, mistakes) {}

HomeService::~HomeService() = default;

store::Store* HomeService::store_of(FileId file) const {
  return file.export_index < stores_.size() ? stores_[file.export_index].get() : nullptr;
}

void HomeService::begin_grace() { grace_.close(); }

void HomeService::end_grace() {
  for (;;) {
    std::lock_guard draining(drain_mutex_);
    std::unique_lock lock(grace_mutex_);
    auto kept = grace_.next();
    if (!kept) {
      lock.unlock();
      let_go_held();
      return;
    }
    lock.unlock();
    receive_now(kept->first, std::move(kept->second));
  }
}

// Who has them open has said so by now: behind what came of that.
void HomeService::let_go_held() {
  const std::vector<FileId> files = std::exchange(pinned_for_grace_, {});
  {
    std::lock_guard lock(mutex_);
    for (FileId file : files)
      queues_.push(file, [this, file](bool) {
        store_of(file)->unpin(file);
        return true;
      });
  }
  pump(files);
}

void HomeService::remember_calls(std::unique_ptr<CallLog> log,
                                 std::function<uint64_t(NodeId)> incarnation) {
  call_log_ = std::move(log);
  incarnation_of_ = std::move(incarnation);
}

void HomeService::receive(NodeId node, ToHome&& message) {
  if (!passes_grace(message)) {
    std::unique_lock lock(grace_mutex_);
    switch (grace_.admit(node, message)) {
      case GraceGate::Verdict::Serve:
        break;
      case GraceGate::Verdict::Kept:
        return;
      case GraceGate::Verdict::TooMany:
        lock.unlock();
        give_up(node, "more requests than a node may have waiting");
        return;
    }
  }
  receive_now(node, std::move(message));
}

// Its files are open there, or it has nothing more to bring back.
void HomeService::reclaim(NodeId node, const Call& call) {
  const auto& c = std::get<ReclaimCall>(call.operation);
  if (c.done) {
    deliver_(node, c.file, Reply{.call = call.call, .error = 0, .outcome = {}});
    if (brought_back_) brought_back_(node, false);
    return;
  }
  std::vector<FileId> touched{c.file};
  if (!c.pages.empty()) {
    std::scoped_lock lock(grace_mutex_, mutex_);
    HomeActions actions;
    const int error = !grace_.may_reclaim()                             ? ESTALE
                      : home_.reclaimed(node, c.file, c.pages, actions) ? 0
                                                                        : EBUSY;
    enqueue(std::move(actions), touched);
    queues_.push(c.file, [this, node, file = c.file, id = call.call, error](bool) {
      deliver_(node, file, Reply{.call = id, .error = error, .outcome = {}});
      return true;
    });
  } else {
    std::lock_guard lock(mutex_);
    HomeActions actions;
    home_.opened(node, c.file, actions);
    enqueue(std::move(actions), touched);
    // Behind the pin.
    queues_.push(c.file, [this, node, file = c.file, id = call.call](bool) {
      const bool there = store_of(file)->pinned(file);
      if (!there) {
        // What this lets go of was never pinned.
        std::lock_guard again(mutex_);
        HomeActions none;
        home_.receive(node, Release{.file = file, .seen = 0, .leases = false}, none);
      }
      deliver_(node, file, Reply{.call = id, .error = there ? 0 : ESTALE, .outcome = {}});
      return true;
    });
  }
  pump(touched);
}

// A file without a name lives as long as somebody has it open: whoever made it has, from now on.
// Until the home knows that, the store keeps it.
void HomeService::note_nameless(const Running& running, FileId file) {
  std::vector<FileId> touched{file};
  {
    std::lock_guard lock(mutex_);
    HomeActions actions;
    bool abandoned = false;
    {
      // Once that is said, node_gone() comes for what is noted here.
      std::lock_guard operations(operations_mutex_);
      abandoned = running.abandoned;
    }
    if (!abandoned) home_.opened(running.node, file, actions);
    enqueue(std::move(actions), touched);
    queues_.push(file, [this, file](bool) {
      store_of(file)->unpin(file);
      return true;
    });
  }
  pump(touched);
}

// It is pinned for a node that is gone. `nameless`: or will perhaps be so.
void HomeService::leave_behind(FileId file, const std::string& name, bool is_back, bool nameless) {
  bool kept = nameless;
  if (kept) {
    std::lock_guard lock(left_behind_mutex_);
    kept = left_behind_.add(file, name, is_back, net::EventLoop::now());
  }
  if (!kept) store_of(file)->unpin(file);
}

void HomeService::came_back(const std::string& name) {
  std::lock_guard lock(left_behind_mutex_);
  left_behind_.came_back(name, net::EventLoop::now());
}

void HomeService::let_go_departed() {
  for (const auto& store : stores_)
    if (store->has_old_departed())
      disk_threads_.submit([&store = *store] { store.let_go_departed(); });
  std::vector<FileId> old;
  {
    std::lock_guard lock(left_behind_mutex_);
    old = left_behind_.take_old(net::EventLoop::now());
  }
  if (old.empty()) return;
  disk_threads_.submit([this, old = std::move(old)] {
    for (FileId file : old) store_of(file)->unpin(file);
  });
}

void HomeService::receive_now(NodeId node, ToHome&& message) {
  if (store_of(file_of(message)) == nullptr) {
    give_up(node, "a message about an export that does not exist");
    return;
  }
  {
    std::lock_guard lock(left_mutex_);
    if (left_.contains(node)) return;
  }
  if (auto* call = std::get_if<Call>(&message)) {
    if (std::holds_alternative<LeaveCall>(call->operation)) {
      leave(node, *call);
      return;
    }
    if (std::holds_alternative<LockCall>(call->operation)) {
      lock(node, *call);
      return;
    }
    if (std::holds_alternative<ReclaimCall>(call->operation)) {
      reclaim(node, *call);
      return;
    }
    start(node, std::move(*call));
    return;
  }
  if (const auto* asked = std::get_if<FollowWait>(&message)) {
    follow(node, *asked);
    return;
  }
  if (const auto* flush = std::get_if<Flush>(&message); flush != nullptr && watch_) {
    std::lock_guard lock(patience_mutex_);
    patience_.progress(node, flush->file, watched_at_.load());
  }
  std::vector<FileId> touched;
  {
    std::lock_guard lock(mutex_);
    HomeActions actions;
    if (const auto* ack = std::get_if<RecallAck>(&message); ack != nullptr && !ack->busy)
      if (auto it = sent_recalls_.find(ack->recall);
          it != sent_recalls_.end() && it->second.node == node)
        sent_recalls_.erase(it);
    if (const auto* shown = std::get_if<SizeShown>(&message))
      if (auto it = sent_recalls_.find(shown->show);
          it != sent_recalls_.end() && it->second.node == node)
        sent_recalls_.erase(it);
    std::visit(Overload{[](Call&) {}, [](FollowWait&) {},
                        [&](auto& m) { home_.receive(node, std::move(m), actions); }},
               message);
    enqueue(std::move(actions), touched);
  }
  pump(touched);
}

void HomeService::leave(NodeId node, const Call& call) {
  {
    std::lock_guard lock(left_mutex_);
    left_.insert(node);
  }
  if (brought_back_) brought_back_(node, true);
  node_gone(node);
  spdlog::info("session {} has left", node.value);
  deliver_(node, file_of(call.operation), Reply{.call = call.call, .error = 0, .outcome = {}});
}

void HomeService::watch(Watch watch) {
  patience_ = Patience(watch.options);
  watch_ = std::move(watch);
}

void HomeService::tick(Instant now) {
  let_go_departed();
  {
    std::lock_guard lock(locks_mutex_);
    followed_.clear();
  }
  if (!watch_) return;
  std::vector<Patience::Blocker> blockers;
  {
    std::lock_guard lock(mutex_);
    for (const Home::PendingRecall& recall : home_.pending_recalls(kBlockersMax))
      blockers.push_back({recall.id, recall.node, recall.file});
  }
  {
    std::lock_guard lock(locks_mutex_);
    for (const LockTable::Blocker& lock_blocker : locks_.blockers())
      blockers.push_back({0, lock_blocker.node, lock_blocker.file});
  }
  std::vector<Patience::Verdict> verdicts;
  {
    std::lock_guard lock(patience_mutex_);
    watched_at_ = now;
    verdicts = patience_.judge(now, blockers, watch_->heard);
  }
  for (const Patience::Verdict& verdict : verdicts)
    (verdict.fence ? watch_->fence : verdict.silence ? watch_->silence : watch_->report)(verdict);
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
  behind_fence_.emplace_back(node, call);
  watch_->fence({.node = holder->owner.node,
                 .file = request.file,
                 .fence = true,
                 .waited_ns = watched_at_.load() - *heard,
                 .why = "it was not heard of for the lease term and another wants its lock"});
  return true;
}

void HomeService::is_too_late(NodeId node) {
  {
    std::lock_guard lock(left_mutex_);
    left_.insert(node);  // what it still sends is of before
  }
  {
    std::scoped_lock lock(drain_mutex_, grace_mutex_);
    grace_.node_gone(node);
  }
  give_up(node, "it did not bring back in time what it had");
}

void HomeService::give_up(NodeId node, const std::string& reason) {
  {
    std::lock_guard lock(patience_mutex_);
    patience_.give_up(node, watched_at_.load(), reason);
  }
  give_up_(node, reason);
}

// What others wait for to get from it; it may have that open without having said so.
std::vector<FileId> HomeService::wanted_of(NodeId node) const {
  std::vector<FileId> files;
  {
    std::lock_guard lock(mutex_);
    for (const Home::PendingRecall& recall : home_.pending_recalls(kBlockersMax))
      if (recall.node == node) files.push_back(recall.file);
  }
  std::ranges::sort(files);
  const auto again = std::ranges::unique(files);
  files.erase(again.begin(), again.end());
  return files;
}

void HomeService::node_gone(NodeId node, const std::string& name, bool is_back) {
  std::vector<FileId> wanted;
  if (!name.empty()) wanted = wanted_of(node);
  if (wanted.empty()) {
    gone(node, name, is_back);
    return;
  }
  // Before those who wait go on: it may be the last name that they take.
  disk_threads_.submit([this, node, name, is_back, wanted = std::move(wanted)] {
    for (FileId file : wanted)
      if (store_of(file)->pin(file)) leave_behind(file, name, is_back, true);
    gone(node, name, is_back);
  });
}

void HomeService::gone(NodeId node, const std::string& name, bool is_back) {
  {
    std::scoped_lock lock(drain_mutex_, grace_mutex_);
    grace_.node_gone(node);
  }
  {
    std::lock_guard lock(operations_mutex_);
    for (auto& [id, running] : operations_)
      if (running->node == node && !running->only_takes) running->abandoned = true;
  }
  std::vector<FileId> touched;
  std::vector<std::pair<NodeId, Call>> again;
  {
    std::lock_guard lock(locks_mutex_);
    std::erase_if(behind_fence_, [&](const auto& entry) { return entry.first == node; });
    again.swap(behind_fence_);
    std::erase_if(lock_waiters_, [&](const auto& entry) { return entry.first.node == node; });
    lock_waiters_of_.erase(node);
    std::vector<LockTable::Ticket> woken;
    locks_.node_gone(node, woken);
    for (LockTable::Ticket ticket : woken) reply_lock({}, ticket, 0, {}, touched);
  }
  {
    std::lock_guard lock(mutex_);
    HomeActions actions;
    std::erase_if(sent_recalls_, [&](const auto& entry) { return entry.second.node == node; });
    home_.node_gone(node, actions);
    std::vector<FileId> unpinned;
    if (!name.empty())
      std::erase_if(actions, [&](const HomeAction& action) {
        const auto* unpin = std::get_if<UnpinFile>(&action);
        if (unpin != nullptr) unpinned.push_back(unpin->file);
        return unpin != nullptr;
      });
    enqueue(std::move(actions), touched);
    for (FileId file : unpinned) {
      touched.push_back(file);
      queues_.push(file, [this, file, name, is_back](bool) {
        leave_behind(file, name, is_back, store_of(file)->is_nameless(file));
        return true;
      });
    }
  }
  pump(touched);
  for (const auto& [who, call] : again) lock(who, call);
}

HomeCounts HomeService::counts() const {
  std::lock_guard lock(mutex_);
  return home_.counts();
}

HomeService::LockCounts HomeService::lock_counts() const {
  std::lock_guard lock(locks_mutex_);
  return {locks_.held(), locks_.waiting()};
}

// ---- locks

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
  const LockTable::Request request{.file = c.file,
                                   .kind = c.kind,
                                   .owner = {node, c.owner},
                                   .type = c.type,
                                   .range = {c.start, c.end},
                                   .pid = c.pid,
                                   .wait = c.action == LockAction::Wait,
                                   .ticket = ticket,
                                   .holds_elsewhere = c.holds_elsewhere,
                                   .since = follows_ && follows_(node) ? time_of_day() : 0};
  std::vector<FileId> touched;
  {
    std::lock_guard guard(locks_mutex_);
    std::vector<LockTable::Ticket> woken, cancelled;
    switch (c.action) {
      case LockAction::Reclaim: {
        // Nobody else has been given anything yet.
        std::lock_guard grace(grace_mutex_);
        if (!grace_.may_reclaim()) {
          reply_lock(c.file, ticket, EAGAIN, {}, touched);
          break;
        }
      }
        [[fallthrough]];
      case LockAction::Try:
      case LockAction::Wait:
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
            if (size_t& of_node = lock_waiters_of_[node]; of_node < kRequestsMax) {
              ++of_node;
              lock_waiters_.emplace(ticket, LockWaiter{c.file, net::EventLoop::now()});
            } else {
              (void)locks_.cancel(c.file, ticket, woken);
              reply_lock(c.file, ticket, ENOLCK, {}, touched);
            }
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

bool HomeService::holds_range(const LockOwner& owner) const {
  std::lock_guard lock(locks_mutex_);
  return locks_.holds_range(owner);
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
  for (auto& [to, message] : next)
    if (follows_ && follows_(to)) deliver_(to, message.file, std::move(message));
}

void HomeService::pump(const std::vector<FileId>& touched) {
  for (FileId file : touched) queues_.pump(file);
}

void HomeService::enqueue(HomeActions&& actions, std::vector<FileId>& touched) {
  for (HomeAction& action : actions) {
    std::visit(Overload{
                   [&](SendGrant& a) {
                     metrics_.add(Counter::Grants);
                     touched.push_back(a.grant.file);
                     queues_.push(a.grant.file, [this, a = std::move(a)](bool may_block) mutable {
                       return run(a, may_block);
                     });
                   },
                   [&](SendRecall& a) {
                     metrics_.add(Counter::RecallsSent);
                     sent_recalls_.insert_or_assign(a.recall.recall,
                                                    SentRecall{a.node, net::EventLoop::now()});
                     touched.push_back(a.recall.file);
                     queues_.push(a.recall.file, [this, a](bool) {
                       deliver_(a.node, a.recall.file, a.recall);
                       return true;
                     });
                   },
                   [&](ApplyFlush& a) {
                     touched.push_back(a.flush.file);
                     const uint64_t work = work_of(a.flush);
                     undone_.begin(a.node, work);
                     queues_.push(a.flush.file,
                                  [this, work, a = std::move(a)](bool may_block) mutable {
                                    if (!run(a, may_block)) return false;
                                    undone_.end(a.node, work);
                                    return true;
                                  });
                   },
                   [&](ApplyAttributes& a) {
                     touched.push_back(a.file);
                     queues_.push(a.file, [this, a](bool) {
                       if (auto done = store_of(a.file)->apply(a.file, a.attributes);
                           !done && done.error().code != ESTALE)
                         spdlog::error("export {}: size or times of inode {} not stored: {}",
                                       a.file.export_index, a.file.inode, done.error().what);
                       return true;
                     });
                   },
                   [&](ServeFetch& a) {
                     touched.push_back(a.fetch.file);
                     undone_.begin(a.node, work_of(a.fetch));
                     queues_.push(a.fetch.file, [this, a](bool may_block) mutable {
                       if (!run(a, may_block)) return false;
                       undone_.end(a.node, work_of(a.fetch));
                       return true;
                     });
                   },
                   [&](OperationReady& a) {
                     touched.push_back(a.file);
                     queues_.push(a.file, [this, id = a.operation, error = a.error](bool) {
                       if (error != 0) {
                         refuse(id, error);
                       } else {
                         advance(id);
                       }
                       return true;
                     });
                   },
                   [&](SendShowSize& a) {
                     sent_recalls_.insert_or_assign(a.show.show,
                                                    SentRecall{a.node, net::EventLoop::now()});
                     touched.push_back(a.show.file);
                     queues_.push(a.show.file, [this, a](bool) {
                       deliver_(a.node, a.show.file, a.show);
                       return true;
                     });
                   },
                   [&](SendAnnounced& a) {
                     touched.push_back(a.announced.file);
                     queues_.push(a.announced.file, [this, a](bool) {
                       deliver_(a.node, a.announced.file, a.announced);
                       return true;
                     });
                   },
                   [&](SizesShown& a) {
                     touched.push_back(a.file);
                     queues_.push(a.file, [this, id = a.operation](bool) {
                       all_know(id);
                       return true;
                     });
                   },
                   [&](PinFile& a) {
                     touched.push_back(a.file);
                     queues_.push(a.file, [this, a](bool) {
                       if (auto done = store_of(a.file)->pin(a.file); !done)
                         spdlog::debug("pin: {}", done.error().what);
                       return true;
                     });
                   },
                   [&](UnpinFile& a) {
                     touched.push_back(a.file);
                     queues_.push(a.file, [this, a](bool) {
                       store_of(a.file)->unpin(a.file);
                       return true;
                     });
                   },
                   [&](FileIdle& a) {
                     touched.push_back(a.file);
                     queues_.push(a.file, [this, a](bool) {
                       store_of(a.file)->forget(a.file);
                       return true;
                     });
                   },
                   [&](vremote::coherence::CloseSession& a) { give_up(a.node, a.reason); },
               },
               action);
  }
}

bool HomeService::run(SendGrant& action, bool may_block) {
  store::Store& store = *store_of(action.grant.file);
  Grant& grant = action.grant;
  if (!action.data.empty()) {
    const uint64_t offset = action.data.byte_offset();
    auto bytes = may_block ? store.read(grant.file, offset, action.data.byte_length())
                           : store.try_read(grant.file, offset, action.data.byte_length());
    if (!bytes && bytes.error().code == EAGAIN && !may_block) return false;
    if (bytes) {
      grant.data = std::move(*bytes);
    } else {
      grant.error = bytes.error().code;
    }
  }
  if (grant.error == 0 && grant.resource != Resource::Entries) {
    auto attributes = store.stat(grant.file);
    if (attributes) {
      grant.size_floor = attributes->size;
      if (grant.resource == Resource::Attributes) {
        grant.attributes = *attributes;
        grant.has_xattrs = store.has_xattrs(grant.file);
      }
    } else {
      grant.error = attributes.error().code;
    }
  }
  const FileId file = grant.file;
  deliver_(action.node, file, std::move(grant));
  return true;
}

bool HomeService::run(ApplyFlush& action, bool may_block) {
  if (!may_block && !action.flush.extents.empty()) return false;
  store::Store& store = *store_of(action.flush.file);
  const Flush& flush = action.flush;
  FlushAck ack{.file = flush.file, .flush = flush.flush, .error = 0};
  DirtyAttributes after = flush.attributes;
  if (!action.flush.extents.empty()) {
    Status done;
    if (auto before = store.stat(flush.file)) {
      // Writing sets the disk's modification time to now; the file's is what its writer, or
      // utimes(2), said.
      if (!after.has_mtime) {
        after.has_mtime = true;
        after.mtime = before->mtime;
      }
      cut_extents(action.flush.extents,
                  std::max(before->size, flush.attributes.has_size ? flush.attributes.size : 0));
      if (!flush.extents.empty()) done = store.write(flush.file, flush.extents);
    } else {
      done = std::unexpected(before.error());
    }
    if (!done) {
      ack.error = done.error().code;
      // ESTALE: the last name and the last handle are gone, and with them whoever could have missed
      // the bytes.
      if (ack.error != ESTALE)
        spdlog::error("export {}: dirty bytes of inode {} not written: {} {}",
                      flush.file.export_index, flush.file.inode, std::strerror(ack.error),
                      done.error().what);
    }
  }
  if (after.has_mtime || after.has_size)
    if (auto done = store.apply(flush.file, after); !done && ack.error == 0)
      ack.error = done.error().code;
  if (ack.error == 0)
    if (const auto now = store.stat(flush.file)) ack.blocks = now->blocks;
  deliver_(action.node, flush.file, std::move(ack));
  return true;
}

bool HomeService::run(ServeFetch& action, bool may_block) {
  store::Store& store = *store_of(action.fetch.file);
  const PageRange range = action.fetch.range;
  auto bytes = may_block
                   ? store.read(action.fetch.file, range.byte_offset(), range.byte_length())
                   : store.try_read(action.fetch.file, range.byte_offset(), range.byte_length());
  if (!bytes && bytes.error().code == EAGAIN && !may_block) return false;
  FetchReply reply{.file = action.fetch.file,
                   .fetch = action.fetch.fetch,
                   .error = 0,
                   .data_offset = range.byte_offset(),
                   .data = {}};
  if (bytes) {
    reply.data = std::move(*bytes);
  } else {
    reply.error = bytes.error().code;
  }
  deliver_(action.node, action.fetch.file, std::move(reply));
  return true;
}

// ---- operations

void HomeService::start(NodeId node, Call&& call) {
  bool too_many = false;
  {
    std::lock_guard lock(operations_mutex_);
    size_t& of_node = operations_of_[node];
    too_many = of_node >= kRequestsMax;
    if (!too_many) ++of_node;
  }
  if (too_many) {
    deliver_(node, file_of(call.operation),
             Reply{.call = call.call, .error = ENOBUFS, .outcome = {}});
    return;
  }
  auto running = std::make_unique<Running>();
  running->node = node;
  running->needs = first_needs(node, call.operation);
  running->call = std::move(call);
  running->since = net::EventLoop::now();
  OperationId id = 0;
  {
    std::lock_guard lock(operations_mutex_);
    id = running->id = next_operation_++;
    operations_.emplace(id, std::move(running));
  }
  advance(id);
}

void HomeService::advance(OperationId id) {
  Running* running = nullptr;
  {
    std::lock_guard lock(operations_mutex_);
    running = operations_.at(id).get();
  }
  if (running->held == running->needs.size() && !running->second_part) {
    running->second_part = true;
    std::vector<FileId> named;
    for (const NameIn& name : names_of(running->call.operation)) {
      store::Store* store = store_of(name.dir);
      if (store == nullptr) continue;
      auto found = store->execute({}, LookupCall{name.dir, name.name});
      if (!found) continue;
      if (auto* node = std::get_if<Node>(&*found)) named.push_back(node->file);
    }
    for (OperationNeed& need : second_needs(running->node, running->call.operation, named))
      running->needs.push_back(std::move(need));
  }
  std::vector<FileId> touched;
  if (running->held < running->needs.size()) {
    const OperationNeed& need = running->needs[running->held++];
    if (store_of(need.file) == nullptr) {  // a directory of another export in a rename or link
      --running->held;
      running->needs.resize(running->held);
      advance(id);
      return;
    }
    std::lock_guard lock(mutex_);
    HomeActions actions;
    home_.acquire(id, need, actions);
    enqueue(std::move(actions), touched);
  } else {
    const FileId file = file_of(running->call.operation);
    queues_.push(file, [this, running](bool may_block) {
      if (!may_block && !running->only_takes && !is_quick(running->call.operation)) return false;
      execute(*running);
      return true;
    });
    touched.push_back(file);
  }
  pump(touched);
}

void HomeService::refuse(OperationId id, int error) {
  Running* running = nullptr;
  {
    std::lock_guard lock(operations_mutex_);
    running = operations_.at(id).get();
  }
  end(*running, fail(error));
}

OperationId HomeService::start_taking(Why why, FileId file, std::vector<OperationNeed> needs) {
  auto running = std::make_unique<Running>();
  running->only_takes = why;
  running->second_part = true;
  running->since = net::EventLoop::now();
  running->call.operation = SyncCall{file, false};
  running->needs = std::move(needs);
  OperationId id = 0;
  {
    std::lock_guard lock(operations_mutex_);
    id = running->id = next_operation_++;
    operations_.emplace(id, std::move(running));
  }
  advance(id);
  return id;
}

bool HomeService::changed_outside(FileId file, const OutsideChange& change) {
  {
    std::lock_guard lock(mutex_);
    if (!home_.knows(file)) return true;
  }
  {
    std::lock_guard lock(operations_mutex_);
    if (!changing_outside_.insert(file).second) return false;
  }
  metrics_.add(Counter::OutsideChanges);
  start_taking(Why::ChangedOutside, file, outside_needs(file, change));
  return true;
}

std::vector<FileId> HomeService::files_of(std::string_view handle) const {
  std::vector<FileId> files;
  for (const auto& store : stores_)
    if (auto file = store->find(handle)) files.push_back(*file);
  return files;
}

std::vector<FileId> HomeService::known_files() const {
  std::lock_guard lock(mutex_);
  return home_.known_files();
}

bool HomeService::gather(int64_t patience_ms) {
  std::vector<FileId> files;
  {
    std::lock_guard lock(mutex_);
    files = home_.files_dirty_elsewhere();
  }
  std::vector<OperationId> started;
  for (FileId file : files)
    started.push_back(
        start_taking(Why::Gather, file,
                     {{file, Resource::Attributes, LeaseMode::Shared, kUnit, {}},
                      {file, Resource::Data, LeaseMode::Shared, PageRange::all(), {}}}));
  for (int64_t waited = 0;; waited += 5) {
    bool done = true;
    {
      std::lock_guard lock(operations_mutex_);
      for (OperationId id : started) done = done && !operations_.contains(id);
    }
    if (done || waited >= patience_ms) return done;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

void HomeService::execute(Running& running) {
  const FileId file = file_of(running.call.operation);
  if (running.only_takes) {
    Result<Outcome> nothing{Outcome{}};
    if (running.only_takes == Why::ChangedOutside && announce(running, file, std::nullopt, nothing))
      return;
    end(running, std::move(nothing));
    return;
  }
  // Whoever asked for it may have asked again since, in another session, and gone on.
  if (running.abandoned) {
    end(running, fail(ECONNRESET));
    return;
  }
  std::optional<uint64_t> before;
  if (may_grow(running.call.operation) == file) {
    bool watched = false;
    {
      std::lock_guard lock(mutex_);
      watched = home_.watched(file, running.node);
    }
    if (watched)
      if (const auto attributes = store_of(file)->stat(file)) before = attributes->size;
  }
  Result<Outcome> outcome = carry_out(running);
  if (before && outcome && announce(running, file, before, outcome)) return;
  end(running, std::move(outcome));
}

Result<Outcome> HomeService::carry_out(const Running& running) {
  store::Store& store = *store_of(file_of(running.call.operation));
  if (!call_log_ || running.node.value == 0 || !is_noted(running.call.operation))
    return store.execute(running.call.caller, running.call.operation);
  const CallLog::Key key{incarnation_of_(running.node), running.call.call};
  if (auto before = done_before(running, key)) return std::move(*before);
  call_log_->begin(key);
  auto outcome = store.execute(running.call.caller, running.call.operation);
  const auto* offset = outcome ? std::get_if<Offset>(&*outcome) : nullptr;
  call_log_->end(key, outcome ? 0 : outcome.error().code, offset != nullptr ? offset->value : 0);
  return outcome;
}

std::optional<Result<Outcome>> HomeService::done_before(const Running& running,
                                                        const CallLog::Key& key) {
  const auto done = call_log_->earlier(key);
  const auto answer = answer_again(done, mistakes_);
  if (!answer) return std::nullopt;
  if (*answer != 0) return Result<Outcome>(fail(*answer));
  if (std::holds_alternative<CopyCall>(running.call.operation)) return Outcome{Offset{done->value}};
  // Nobody could change the name since.
  const auto made = [&](FileId dir, const std::string& name) {
    return store_of(dir)->execute({}, LookupCall{dir, name});
  };
  if (const auto* c = std::get_if<CreateCall>(&running.call.operation)) {
    if (c->is_nameless())
      return Result<Outcome>(fail(EIO));  // it went with the daemon that made it
    return made(c->dir, c->name);
  }
  if (const auto* c = std::get_if<SymlinkCall>(&running.call.operation))
    return made(c->dir, c->name);
  if (const auto* c = std::get_if<LinkCall>(&running.call.operation)) return made(c->dir, c->name);
  if (const auto* c = std::get_if<SetAttributesCall>(&running.call.operation)) {
    auto attributes = store_of(c->file)->stat(c->file);
    if (!attributes) return Result<Outcome>(std::unexpected(attributes.error()));
    return Outcome{Node{c->file, *attributes}};
  }
  return Outcome{};
}

// Whether the operation, which still holds all it has taken, must wait until other nodes' kernels
// know how long it has made the file. `before`: nothing when nobody has looked.
bool HomeService::announce(Running& running, FileId file, std::optional<uint64_t> before,
                           Result<Outcome>& outcome) {
  const auto attributes = store_of(file)->stat(file);
  if (!attributes || !S_ISREG(attributes->mode)) return false;
  if (attributes->size <= before.value_or(0)) return false;
  const std::optional<NodeId> caller =
      running.only_takes ? std::nullopt : std::optional(running.node);
  std::vector<FileId> touched;
  {
    std::lock_guard lock(mutex_);
    HomeActions actions;
    if (!home_.watched(file, caller)) return false;
    running.held_back = std::move(outcome);
    // From here on it may be ended by another thread.
    if (!home_.announce(running.id, file, attributes->size, caller, actions)) {
      outcome = std::move(*std::exchange(running.held_back, std::nullopt));
      return false;
    }
    enqueue(std::move(actions), touched);
  }
  pump(touched);
  return true;
}

void HomeService::all_know(OperationId id) {
  Running* running = nullptr;
  {
    std::lock_guard lock(operations_mutex_);
    running = operations_.at(id).get();
  }
  Result<Outcome> outcome = std::move(*running->held_back);
  end(*running, std::move(outcome));
}

void HomeService::end(Running& running, Result<Outcome> outcome) {
  const FileId file = file_of(running.call.operation);
  Reply reply{.call = running.call.call, .error = 0, .outcome = {}};
  const Node* made = nullptr;
  if (outcome) {
    reply.outcome = std::move(*outcome);
    made = std::get_if<Node>(&reply.outcome);
  } else {
    reply.error = outcome.error().code;
  }
  std::optional<Node> node;
  if (made != nullptr) node = *made;
  std::vector<FileId> listed;
  if (const auto* list = std::get_if<ReadDirectoryCall>(&running.call.operation);
      list != nullptr && list->offer_attributes)
    if (const auto* page = std::get_if<DirectoryPage>(&reply.outcome))
      for (const DirectoryEntry& entry : page->entries)
        if (entry.file.generation != 0)
          listed.push_back(entry.file);  // 0: a mount point, not of this export
  if (const auto* create = std::get_if<CreateCall>(&running.call.operation);
      node && create != nullptr && create->is_nameless())
    note_nameless(running, node->file);
  // The reply before anything that the end of the operation sets free: whoever gets it may still
  // rely on it (names, for instance).
  if (!running.only_takes) deliver_(running.node, file, std::move(reply));
  std::vector<FileId> touched;
  {
    std::lock_guard lock(mutex_);
    HomeActions actions;
    for (const OperationNeed& need : running.needs) home_.finish(running.id, need.file, actions);
    if (node) {
      // Who makes a file will write to it; who looks one up mostly reads.
      const bool creates = std::holds_alternative<CreateCall>(running.call.operation);
      home_.offer(running.node, node->file, Resource::Attributes,
                  creates ? LeaseMode::Exclusive : LeaseMode::Shared, actions);
      if (creates && S_ISREG(node->attributes.mode))
        home_.offer(running.node, node->file, Resource::Data, LeaseMode::Exclusive, actions);
    }
    for (FileId listed_file : listed)
      home_.offer(running.node, listed_file, Resource::Attributes, LeaseMode::Shared, actions);
    enqueue(std::move(actions), touched);
  }
  {
    std::lock_guard lock(operations_mutex_);
    if (running.only_takes == Why::ChangedOutside) changing_outside_.erase(file);
    if (!running.only_takes)
      if (auto it = operations_of_.find(running.node); --it->second == 0) operations_of_.erase(it);
    operations_.erase(running.id);
  }
  pump(touched);
}

}  // namespace vremote::node
