// The origin side of a node: drives coherence::Home with real disks and real senders.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/metrics.h"
#include "coherence/home.h"
#include "coherence/lock_table.h"
#include "coherence/messages.h"
#include "coherence/operation_needs.h"
#include "node/file_queues.h"
#include "node/undone_work.h"
#include "store/store.h"

namespace vremote::node {

// Thread-safe. Never waits for a disk on the caller's thread except for short metadata reads.
class HomeService {
 public:
  // Sends a message about `file` to a node, keeping the order of calls per file. NodeId 0 is this
  // machine's own agent. Called without locks.
  using Deliver = std::function<void(NodeId node, FileId file, coherence::ToAgent&& message)>;
  // The node broke the protocol: its session must end (and node_gone() be called).
  using CloseSession = std::function<void(NodeId node, const std::string& reason)>;

  HomeService(std::vector<std::unique_ptr<store::Store>> stores, HelperThreads& disk_threads,
              Metrics& metrics, Deliver deliver, CloseSession close_session,
              UndoneWork::Throttle throttle, coherence::Mistakes mistakes);
  ~HomeService();

  void receive(NodeId node, coherence::ToHome&& message);
  void node_gone(NodeId node);
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

  FileId root(size_t export_index) const { return stores_[export_index]->root(); }
  size_t exports() const { return stores_.size(); }
  const store::Store& store(size_t export_index) const { return *stores_[export_index]; }
  coherence::HomeCounts counts() const;
  struct LockCounts {
    uint64_t held = 0, waiting = 0;
  };
  LockCounts lock_counts() const;
  store::Store::Counts store_counts(size_t export_index) const {
    return stores_[export_index]->counts();
  }

 private:
  struct Running;

  store::Store* store_of(FileId file) const;
  void start(NodeId node, coherence::Call&& call);
  // An operation of nobody: takes these, does nothing, and lets go.
  enum class Why : uint8_t { Gather, ChangedOutside };
  coherence::OperationId start_taking(Why why, FileId file,
                                      std::vector<coherence::OperationNeed> needs);
  void lock(NodeId node, const coherence::Call& call);
  void leave(NodeId node, const coherence::Call& call);
  // In the order in which the table decided. Under locks_mutex_.
  void reply_lock(FileId file, coherence::LockTable::Ticket ticket, int error,
                  coherence::Outcome outcome, std::vector<FileId>& touched);
  void advance(coherence::OperationId id);
  void execute(Running& running);
  void refuse(coherence::OperationId id, int error);  // the home cannot let it have its pieces
  void end(Running& running, Result<coherence::Outcome> outcome);
  // Under mutex_: puts the actions into their files' queues and notes the files in `touched`.
  void enqueue(coherence::HomeActions&& actions, std::vector<FileId>& touched);
  void pump(const std::vector<FileId>& touched);

  bool run(coherence::SendGrant& action, bool may_block);
  bool run(coherence::ApplyFlush& action, bool may_block);
  bool run(coherence::ServeFetch& action, bool may_block);

  std::vector<std::unique_ptr<store::Store>> stores_;
  Metrics& metrics_;
  Deliver deliver_;
  CloseSession close_session_;
  UndoneWork undone_;
  FileQueues queues_;
  mutable std::mutex mutex_;  // home_ and the order of pushes
  coherence::Home home_;
  mutable std::mutex locks_mutex_;
  coherence::LockTable locks_;
  std::map<coherence::LockTable::Ticket, FileId> lock_waiters_;
  std::map<NodeId, size_t> lock_waiters_of_;
  std::mutex left_mutex_;
  std::set<NodeId> left_;  // said goodbye: what still arrives of them means nothing
  std::mutex operations_mutex_;
  std::unordered_map<coherence::OperationId, std::unique_ptr<Running>> operations_;
  std::map<NodeId, size_t> operations_of_;  // calls of each node that are not answered yet
  std::set<FileId> changing_outside_;       // an operation of changed_outside() is under way
  coherence::OperationId next_operation_ = 1;
};

}  // namespace vremote::node
