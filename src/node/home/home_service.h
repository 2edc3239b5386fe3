// The origin side of a node: drives coherence::Home with real disks and real senders.
#pragma once

#include <atomic>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/metrics.h"
#include "coherence/grace_gate.h"
#include "coherence/home.h"
#include "coherence/lock_table.h"
#include "coherence/messages.h"
#include "coherence/operation_needs.h"
#include "coherence/patience.h"
#include "coherence/unsynced_files.h"
#include "node/base/repeated_errors.h"
#include "node/home/file_queues.h"
#include "node/home/home_state.h"
#include "node/home/left_behind.h"
#include "node/home/sync_refusals.h"
#include "node/home/undone_work.h"
#include "store/store.h"

namespace vremote::node {

// Thread-safe. Never waits for a disk on the caller's thread except for short metadata reads.
class HomeService {
 public:
  // Sends a message about `file` to a node, keeping the order of calls per file. NodeId 0 is this
  // machine's own agent. Called without locks.
  using Deliver = std::function<void(NodeId node, FileId file, coherence::ToAgent&& message)>;
  // The node broke the protocol: it must not be heard any more, nor answered. With a Watch its
  // session ends when its leases are over (Watch::fence).
  using GiveUp = std::function<void(NodeId node, const std::string& reason)>;

  HomeService(std::vector<std::unique_ptr<store::Store>> stores, HelperThreads& disk_threads,
              Metrics& metrics, Deliver deliver, GiveUp give_up, UndoneWork::Throttle throttle,
              coherence::Mistakes mistakes, const coherence::HomeLimits& limits = {});
  ~HomeService();

  // Who keeps others waiting too long: T4. `heard`: see Patience. `fence`: its session must end,
  // and node_gone() be called; `silence`: it must not be heard any more; `report`: a word for the
  // log. Before the first tick().
  struct Watch {
    coherence::Patience::Options options;
    coherence::Patience::Heard heard;
    std::function<void(const coherence::Patience::Verdict&)> fence, silence, report;
  };
  void watch(Watch watch);
  // Several times a second.
  void tick(Instant now);

  // After a restart (R1 to R5). Until end_grace() all that could conflict with what nodes bring
  // back waits, in order.
  void begin_grace();
  void end_grace();
  // A node has brought back all it had, or (`left`) has nothing any more. Before the first message.
  void on_brought_back(std::function<void(NodeId, bool left)> call) {
    brought_back_ = std::move(call);
  }
  // Who had a session before the restart, and has not said that all is back. Before the first
  // message; unset: everybody.
  void on_may_bring_back(std::function<bool(NodeId)> may) { may_bring_back_ = std::move(may); }
  // Notes which calls were carried out, and asks it for those of before. `incarnation`: of a
  // session's node.
  void remember_calls(std::unique_ptr<CallLog> log, std::function<uint64_t(NodeId)> incarnation);

  // Something of before may not be on the disk yet. Before the first message.
  void begin_unsynced();
  // When too many files were changed for keeping them apart: brings everything to the disk, some
  // time later, when the kernel has done most of it. Now and then, where other nodes are.
  void sync_when_due(Instant now);
  // A thread may be in the kernel for that, for as long as the disk takes.
  bool is_syncing() const;
  // Brings to the disk what may not be there; nothing is written meanwhile. Waits for the disk,
  // as unmounting does. An error: the disk has refused something.
  Status sync_all();

  // Which nodes understand FollowOwner; before the first message. Unset: none.
  void on_follows(std::function<bool(NodeId)> follows) { follows_ = std::move(follows); }
  bool holds_range(const coherence::LockOwner& owner) const;

  void receive(NodeId node, coherence::ToHome&& message);
  // It breaks the rules. What it has stays its own until its leases are over: its kernel shows it,
  // and what it has written is nowhere else.
  void give_up(NodeId node, const std::string& reason);
  // The grace is over, and it has brought back a part (R5). Before end_grace().
  void is_too_late(NodeId node);
  // What it had is free, what it asked for is not done any more. `name`: of a node whose next
  // daemon may come for the files without a name that are open there (left_behind.h); `is_back`: it
  // has come.
  void node_gone(NodeId node, const std::string& name = {}, bool is_back = false);
  void came_back(const std::string& name);
  // Before the end: recalls what other nodes may hold dirty, so that it is on disk. Returns false
  // when some had not answered in time.
  bool gather(int64_t patience_ms);

  // A program on this machine has changed the file without asking: every node gives up what that
  // has made old. False: the recalls of an earlier change are still under way; tell it again later.
  bool changed_outside(FileId file, const coherence::OutsideChange& change);
  // The files that a handle of the file system means (one per export at most), and all that nodes
  // may have cached.
  std::vector<FileId> files_of(std::string_view handle) const;
  std::vector<FileId> known_files() const;

  // ---- the next daemon of this node (docs/architecture.md, "Upgrades") ----
  // No operation of this machine is done and not replied to.
  bool can_be_handed_over();
  // The locks that processes of this machine hold.
  std::vector<coherence::LockCall> own_locks() const;
  std::vector<store::Store::Held> held() const;
  // Pinned until end_grace(), or for a while after no_grace(): until those who have it open say so.
  void hold(FileId file, Fd descriptor, bool pinned);
  void no_grace(const std::string& name);

  FileId root(size_t export_index) const { return stores_[export_index]->root(); }
  size_t exports() const { return stores_.size(); }
  const store::Store& store(size_t export_index) const { return *stores_[export_index]; }
  coherence::HomeCounts counts() const;
  struct LockCounts {
    uint64_t held = 0, waiting = 0;
  };
  LockCounts lock_counts() const;
  // Who waits here, for `status` (home_blocked.cc).
  struct Waits {
    FileId file;
    std::string what;
    std::optional<PageRange> pages;                      // of data
    std::optional<std::pair<uint64_t, uint64_t>> bytes;  // of a lock, inclusive
    struct Party {
      NodeId node;
      uint32_t pid = 0;
    };
    Party who;
    std::vector<Party> waits_for;
    bool in_line = false;  // behind others, not for a recall
    bool at_disk = false;  // it waits for nobody but that
    std::optional<Instant> since;
  };
  std::vector<Waits> waits(size_t most);
  void note_arrivals(Instant now);
  std::string path_of(FileId file);
  // Before it starts: called before an fsync's caller hears that the disk has refused something of
  // its file; by any thread, with no locks held.
  void on_refused_sync(std::function<void()> call) { refused_sync_ = std::move(call); }
  // Before it starts: as the configuration has them.
  void name_exports(std::vector<std::string> names) { export_names_ = std::move(names); }
  // For the log; looks at the disk.
  std::string described(FileId file);
  store::Store::Counts store_counts(size_t export_index) const {
    return stores_[export_index]->counts();
  }

 private:
  enum class Why : uint8_t { Gather, ChangedOutside };
  // An operation between its call and its reply. Touched by one thread at a time: the one that runs
  // its OperationReady.
  struct Running {
    coherence::OperationId id = 0;
    NodeId node;
    coherence::Call call;
    std::vector<coherence::OperationNeed> needs;
    size_t held = 0;
    bool second_part = false;
    uint64_t bytes = 0;                  // of its call, while that is not answered
    std::atomic<bool> abandoned{false};  // its node's session is over
    // K16: done, and not answered before every kernel knows the new size.
    std::optional<Result<coherence::Outcome>> held_back = {};
    std::optional<Why> only_takes;  // its leases, and does nothing with them: nobody waits for it
    Instant since;
  };

  store::Store* store_of(FileId file) const;
  void start(NodeId node, coherence::Call&& call);
  // An operation of nobody: takes these, does nothing, and lets go.
  coherence::OperationId start_taking(Why why, FileId file,
                                      std::vector<coherence::OperationNeed> needs);
  void lock(NodeId node, const coherence::Call& call);
  void leave(NodeId node, const coherence::Call& call);
  void follow(NodeId node, const coherence::FollowWait& asked);
  // In the order in which the table decided. Under locks_mutex_.
  void reply_lock(FileId file, coherence::LockTable::Ticket ticket, int error,
                  coherence::Outcome outcome, std::vector<FileId>& touched);
  void advance(coherence::OperationId id);
  void execute(Running& running);
  Result<coherence::Outcome> sync(const Running& running);
  void changed(FileId file, bool by_call);
  void sync_in_background();
  Result<coherence::Outcome> carry_out(const Running& running);
  // Once for each call, also when it is asked for again after a restart of this daemon.
  Result<coherence::Outcome> once(const Running& running);
  bool announce(Running& running, FileId file, std::optional<uint64_t> before,
                Result<coherence::Outcome>& outcome);
  void all_know(coherence::OperationId id);
  void refuse(coherence::OperationId id, int error);  // the home cannot let it have its pieces
  void end(Running& running, Result<coherence::Outcome> outcome);
  // Under mutex_: puts the actions into their files' queues and notes the files in `touched`.
  void enqueue(coherence::HomeActions&& actions, std::vector<FileId>& touched);
  void put(coherence::SendGrant&& a, std::vector<FileId>& touched);
  void put(coherence::SendRecall&& a, std::vector<FileId>& touched);
  void put(coherence::ApplyFlush&& a, std::vector<FileId>& touched);
  void put(coherence::ApplyAttributes&& a, std::vector<FileId>& touched);
  void put(coherence::ServeFetch&& a, std::vector<FileId>& touched);
  void put(coherence::OperationReady&& a, std::vector<FileId>& touched);
  void put(coherence::SendShowSize&& a, std::vector<FileId>& touched);
  void put(coherence::SendAnnounced&& a, std::vector<FileId>& touched);
  void put(coherence::SizesShown&& a, std::vector<FileId>& touched);
  void put(coherence::PinFile&& a, std::vector<FileId>& touched);
  void put(coherence::UnpinFile&& a, std::vector<FileId>& touched);
  void put(coherence::FileIdle&& a, std::vector<FileId>& touched);
  void push(const FileQueues::Account& account, std::vector<FileId>& touched,
            FileQueues::Item item);
  template <class Do>
  void push_now(FileId file, std::vector<FileId>& touched, Do work);
  void pump(const std::vector<FileId>& touched);

  void receive_now(NodeId node, coherence::ToHome&& message);
  void reclaim(NodeId node, const coherence::Call& call);
  // Not with any lock.
  bool may_bring_back(NodeId node) const { return !may_bring_back_ || may_bring_back_(node); }
  void note_nameless(const Running& running, FileId file);
  void let_go_held();
  void let_go_departed();
  void gone(NodeId node, const std::string& name, bool is_back);
  std::vector<FileId> wanted_of(NodeId node) const;
  void leave_behind(FileId file, const std::string& name, bool is_back, bool nameless);
  // What an earlier incarnation did of it; nothing: it knows nothing of it.
  std::optional<Result<coherence::Outcome>> done_before(const Running& running,
                                                        const CallLog::Key& key);
  // A node that is not heard of has the lock that `call` is in conflict with: it is fenced, and the
  // call is tried again when it is gone. Under locks_mutex_.
  bool waits_for_fence(NodeId node, const coherence::Call& call,
                       const coherence::LockTable::Request& request);

  bool run(coherence::SendGrant& action, bool may_block);
  bool run(coherence::ApplyFlush& action, bool may_block);
  bool run(coherence::ServeFetch& action, bool may_block);

  std::vector<std::unique_ptr<store::Store>> stores_;
  std::vector<std::string> export_names_;
  Metrics& metrics_;
  Deliver deliver_;
  GiveUp give_up_;
  UndoneWork undone_;
  HelperThreads& disk_threads_;
  FileQueues queues_;
  mutable std::mutex mutex_;  // home_ and the order of pushes
  const coherence::Mistakes mistakes_;
  coherence::Home home_;
  struct SentRecall {
    NodeId node;
    Instant since;
  };
  std::map<uint64_t, SentRecall> sent_recalls_;  // not acked; for waits()
  // Of the files with recalls, at the last tick: what was at work in their queues, and those where
  // that was the same at the tick before. With mutex_.
  std::map<FileId, uint64_t> at_work_;
  std::set<FileId> at_disk_;
  mutable std::mutex locks_mutex_;
  coherence::LockTable locks_;
  struct LockWaiter {
    FileId file;
    Instant since;
  };
  std::map<coherence::LockTable::Ticket, LockWaiter> lock_waiters_;
  std::map<NodeId, size_t> lock_waiters_of_;
  const uint64_t lock_table_number_;   // drawn
  std::map<NodeId, size_t> followed_;  // messages since the last tick, with locks_mutex_
  std::function<bool(NodeId)> follows_;
  std::vector<std::pair<NodeId, coherence::Call>> behind_fence_;  // lock calls
  std::map<NodeId, size_t> behind_fence_of_;
  mutable std::mutex patience_mutex_;  // taken after the others
  std::optional<Watch> watch_;
  std::atomic<Instant> watched_at_{};  // the last tick
  coherence::Patience patience_{{}};
  std::mutex grace_mutex_, drain_mutex_;  // the second is held while what waited is taken up
  coherence::GraceGate grace_;
  std::function<void(NodeId, bool)> brought_back_;
  std::function<bool(NodeId)> may_bring_back_;
  std::unique_ptr<CallLog> call_log_;
  std::function<uint64_t(NodeId)> incarnation_of_;
  mutable std::mutex unsynced_mutex_;
  coherence::UnsyncedFiles unsynced_;
  SyncRefusals refusals_;
  std::function<void()> refused_sync_ = [] {};
  RepeatedErrors not_written_;
  std::atomic<uint32_t> newest_{0};  // of the sessions that were heard of
  bool syncing_all_ = false;
  std::optional<Instant> all_changed_since_;  // seen by sync_when_due()
  std::vector<FileId> pinned_for_grace_;
  std::mutex left_behind_mutex_;
  LeftBehind left_behind_;
  // When how many lease requests had come, from the oldest that still matters on; with mutex_.
  std::deque<std::pair<Instant, uint64_t>> arrivals_;
  std::mutex left_mutex_;
  std::set<NodeId> left_;  // said goodbye: what still arrives of them means nothing
  std::mutex operations_mutex_;
  std::unordered_map<coherence::OperationId, std::unique_ptr<Running>> operations_;
  struct Unanswered {
    size_t calls = 0;
    uint64_t bytes = 0;
  };
  std::map<NodeId, Unanswered> operations_of_;  // calls of each node
  std::set<FileId> changing_outside_;           // an operation of changed_outside() is under way
  coherence::OperationId next_operation_ = 1;
  HelperThreads sync_threads_{"vremote-sync", 1};  // the first to end
};

}  // namespace vremote::node
