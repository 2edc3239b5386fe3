// The home decides who may cache what of the files of this origin.
//
// Rules:
//  I1  Two leases conflict when their ranges overlap and their modes are not compatible(). Granted
//  leases never conflict. I2  A request that conflicts recalls first and is granted after the last
//  ack. I3  Overlapping incompatible requests are served in order of arrival; others in parallel.
//  An operation that runs at the home is a
//      request like any other and holds what it got until it ends.
//  I4  What leaves for one file leaves in the order of the actions: the driver keeps one queue per
//  file for disk work, sends and
//      OperationReady, so that a grant carries what the flushes before it wrote, and a recall never
//      overtakes its grant.
//  I5  The home knows at least what an agent holds: an agent may hold less (it gave up more than
//  was recalled while a grant was under
//      way), never more. Grants to one node for one file are numbered; what names an older number
//      is taken narrowly or not at all.
//
// Grants are as wide as nothing forbids: the first user of a file gets all of it, Exclusive, and
// needs no further message; contention splits ranges down to pages. Cost is per range, not per
// page.
//
// A node that has an unanswered truncation can be unable to ack a recall before the truncation is
// served (K8, docs/kernel_cache.md); it says so (RecallAck::busy). Then
//  B1  its operation goes before all that only wait;
//  B2  requests for data of a node whose Attributes ack it waits for are bounced (EAGAIN: let go of
//  what you hold and ask again); B3  an operation that holds the Attributes and waits for data of
//  the busy node yields to it, once; when that node's truncation then waits for
//      the one that yielded, both hold what the other needs and cannot let go: the one that yielded
//      fails with EINTR.
//  B4  When a truncation ends, its node gets the Attributes before all that wait: its kernel may
//      show what was cut until it has the answer, and nobody else learns the new size before that.
//
// Tried before: granting only what was asked (a message per 128 KiB of a file nobody else uses);
// recalling whole leases (two writers on two halves of a file pass it to and fro).
#pragma once

#include <list>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <variant>
#include <vector>

#include "base/time.h"
#include "coherence/announcements.h"
#include "coherence/holder_map.h"
#include "coherence/lease_budget.h"
#include "coherence/messages.h"
#include "coherence/mistakes.h"

namespace vremote::coherence {

// So many lease requests of one node may wait. More than programs on one machine can have under
// way: who sends more is refused (ENOBUFS), so that no peer takes the home's memory.
inline constexpr size_t kRequestsMax = 65536;

// What nodes can make a home keep, beside what their own disk work is.
struct HomeLimits {
  size_t requests_of_node = kRequestsMax;
  LeaseBudget::Limits leases = {};
  // Files that are open at a node and at all of them, as far as the home was told: each may cost it
  // descriptors. What is more is not noted, and goes with its last name.
  size_t opens_of_node = 128 << 10, opens_in_all = 256 << 10;
};

// The driver reads what the grant must carry (bytes of `data` when not empty, the size floor,
// attributes) at its turn in the file's queue, then sends it.
struct SendGrant {
  NodeId node;
  Grant grant;
  PageRange data;
};
struct SendRecall {
  NodeId node;
  Recall recall;
};
// Write to disk, then answer with a FlushAck.
struct ApplyFlush {
  NodeId node;
  Flush flush;
};
struct ApplyAttributes {
  FileId file;
  DirtyAttributes attributes;
};
struct ServeFetch {
  NodeId node;
  Fetch fetch;
};
// With `error`, an errno: the operation cannot have it. It ends with that error (finish() it).
struct OperationReady {
  OperationId operation = 0;
  FileId file;
  Resource resource = Resource::Data;
  int32_t error = 0;
};
struct SendShowSize {
  NodeId node;
  ShowSize show;
};
struct SendAnnounced {
  NodeId node;
  Announced announced;
};
// What the operation announced is known wherever it must be.
struct SizesShown {
  OperationId operation = 0;
  FileId file;
};
struct PinFile {
  FileId file;
};  // some node has it open: it outlives its last name
struct UnpinFile {
  FileId file;
};
struct FileIdle {
  FileId file;
};  // no agent knows it any more
struct CloseSession {
  NodeId node;
  std::string reason;
};  // the node broke the protocol

using HomeAction = std::variant<SendGrant, SendRecall, ApplyFlush, ApplyAttributes, ServeFetch,
                                OperationReady, SendShowSize, SendAnnounced, SizesShown, PinFile,
                                UnpinFile, FileIdle, CloseSession>;
using HomeActions = std::vector<HomeAction>;

// One piece an operation at the home takes: all of it Exclusive, or Shared with the agents' Shared
// leases.
struct OperationNeed {
  FileId file;
  Resource resource = Resource::Attributes;
  LeaseMode mode = LeaseMode::Exclusive;
  PageRange range = kUnit;
  // This node's own leases are left alone: it asked for the operation and sees to its own caches (a
  // truncation).
  std::optional<NodeId> except;
  // This node waits for the operation with a truncation unanswered: it may be unable to ack a
  // recall before (B1 to B3).
  std::optional<NodeId> truncation_of = {};
};

struct HomeCounts {
  uint64_t files = 0, waiting = 0, recalls = 0;
  uint64_t leases = 0, open = 0;  // that nodes have, and say to have
  uint64_t taken_back = 0;        // recalls so far of nodes that had too many leases
  uint64_t opens_refused = 0;     // so far, of more than nodes may have
  uint64_t watches = 0;           // files times the nodes that are noted to read them
  uint64_t shared_ranges = 0, shared_pages = 0, exclusive_ranges = 0,
           exclusive_pages = 0;  // of data, granted to all nodes
};

// Not thread-safe: the driver calls it under one lock. Never blocks.
class Home {
 public:
  explicit Home(Mistakes mistakes = {}, const HomeLimits& limits = {});
  ~Home();
  Home(const Home&) = delete;
  Home& operator=(const Home&) = delete;

  // A message of an agent; a Call is not for the home (the driver turns it into an operation).
  void receive(NodeId node, const LeaseRequest& message, HomeActions& actions);
  void receive(NodeId node, const RecallAck& message, HomeActions& actions);
  void receive(NodeId node, Flush message, HomeActions& actions);
  void receive(NodeId node, const Fetch& message, HomeActions& actions);
  void receive(NodeId node, const Release& message, HomeActions& actions);
  void receive(NodeId node, const Announce& message, HomeActions& actions);
  void receive(NodeId node, const SizeShown& message, HomeActions& actions);

  // The node's session is over: everything it held is free, everything it asked for is forgotten.
  void node_gone(NodeId node, HomeActions& actions);

  // Takes one piece for an operation; OperationReady follows when it is held (perhaps at once). An
  // operation that needs several takes them one after the other in the order Entries < Attributes <
  // Data, then by FileId; of each at most one piece of a file.
  void acquire(OperationId operation, const OperationNeed& need, HomeActions& actions);
  // The file is open at the node, which says so unasked. False: it has too many open.
  bool opened(NodeId node, FileId file, HomeActions& actions);
  // Whether it may have one more.
  bool may_open(NodeId node) const;
  // R6: these pages were the node's, Exclusive, before a restart of the home, and nobody has been
  // granted anything since. False: another says the same, or the node has too many leases, and
  // nothing was done.
  bool reclaimed(NodeId node, FileId file, const std::vector<PageRange>& pages,
                 HomeActions& actions);
  // Lets go of all that the operation holds on this file (or gives up waiting for it).
  void finish(OperationId operation, FileId file, HomeActions& actions);

  // The operation, which holds the Attributes, has made the file longer: every other kernel that
  // may have it mapped is told, and SizesShown follows. False: there is none. `except`: the node
  // that asked for the operation; its kernel learns of the size by the reply.
  bool announce(OperationId operation, FileId file, uint64_t size, std::optional<NodeId> except,
                HomeActions& actions);
  // Whether a node but this one has the file open for reading.
  bool watched(FileId file, std::optional<NodeId> except) const {
    return announcements_.watched(file, except);
  }

  // Grants without being asked when nobody has to be recalled or made to wait for it; otherwise
  // does nothing.
  void offer(NodeId node, FileId file, Resource resource, LeaseMode mode, HomeActions& actions);

  // Whether a node may have something of the file cached, or has asked for it. What changes behind
  // our back matters only then.
  bool knows(FileId file) const { return files_.contains(file); }
  std::vector<FileId> known_files() const;
  // Files of which a node other than 0 may hold bytes or attributes that are not here.
  std::vector<FileId> files_dirty_elsewhere() const;
  HomeCounts counts() const;
  // The sizes that have not been shown, as recalls of Attributes, and the recalls that have not
  // been acked, both by age; of the former no more than half of `most`.
  struct PendingRecall {
    uint64_t id = 0;
    FileId file;
    NodeId node;
    Resource resource;
    PageRange range;
    // What other nodes owe and this one may have to wait for before it can ack (some of it): the
    // home answers its announcement, request or truncation only after that. These others wait for
    // nobody.
    std::vector<uint64_t> behind;
  };
  std::vector<PendingRecall> pending_recalls(size_t most) const;
  // The requests and operations that wait, and for which recalls; for those that wait behind others
  // in line, those others.
  struct BlockedRequest {
    FileId file;
    Resource resource = Resource::Data;
    PageRange range;
    std::optional<OperationId> operation;
    NodeId node;           // who asked, when not an operation
    uint64_t arrival = 0;  // of its request: the how manyth
    std::vector<std::pair<uint64_t, NodeId>> recalls;
    struct Ahead {
      std::optional<OperationId> operation;
      NodeId node;
    };
    std::vector<Ahead> behind;
  };
  std::vector<BlockedRequest> blocked_requests(size_t most) const;
  // Lease requests that have come so far: whoever looks now and then knows when one came.
  uint64_t arrivals() const { return arrivals_; }

  // What `node` holds on a page (for the simulator's checkers).
  LeaseMode held(NodeId node, FileId file, Resource resource, uint64_t page) const;
  // Every invariant, slowly; the simulator calls it after each event.
  void check() const;

 private:
  struct Waiter;
  struct OutstandingRecall;
  struct ResourceState;
  struct PerNode;
  struct FileState;
  struct Debts;
  class Ahead;

  Debts debts(const FileState& fs, const std::vector<const Announcements::Pending*>& shows) const;
  FileState& state(FileId file);
  // Grants what has become possible by a change of leases, requests or recalls within `changed`.
  void promote(FileId file, FileState& fs, Resource resource, HomeActions& actions,
               PageRange changed = PageRange::all());
  void promote_last(FileId file, FileState& fs, Resource resource, HomeActions& actions);
  bool may_be_granted(FileId file, FileState& fs, Resource resource, Waiter& waiter,
                      HomeActions& actions);
  bool blocked(const ResourceState& rs, std::list<Waiter>::const_iterator waiter) const;
  bool recall_conflicts(FileId file, ResourceState& rs, Resource resource, const Waiter& waiter,
                        HomeActions& actions);
  void grant(FileId file, FileState& fs, Resource resource, const Waiter& waiter,
             HomeActions& actions);
  void let_pass(FileId file, FileState& fs, NodeId node, HomeActions& actions);
  void bounce(FileId file, FileState& fs, HomeActions& actions);
  PageRange widen(const ResourceState& rs, NodeId node, LeaseMode mode, PageRange need,
                  const Waiter* self) const;
  void refuse(NodeId node, FileId file, FileState& fs, Resource resource, uint64_t request,
              PageRange range, int32_t error, HomeActions& actions);
  void refuse(NodeId node, const LeaseRequest& message, int32_t error, HomeActions& actions);
  void no_longer_waits(const Waiter& waiter);
  // False: not noted, the node has too many.
  bool set_in_use(FileId file, FileState& fs, NodeId node, bool in_use, HomeActions& actions);
  void erase_if_idle(FileId file, HomeActions& actions);

  // What nodes have, and how much of it they may have (home_budget.cc).
  PerNode& known(FileState& fs, NodeId node);
  void leases_changed(FileId file, FileState& fs, NodeId node, ptrdiff_t more);
  void forget_if_uninvolved(FileState& fs, NodeId node);
  bool take_later(NodeId node, const LeaseRequest& message, HomeActions& actions);
  void take_what_waited(HomeActions& actions);
  void bounce_later(NodeId node, FileId file, HomeActions& actions);
  void keep_within_budget(NodeId node, HomeActions& actions);
  bool take_back_oldest(NodeId node, HomeActions& actions);
  bool take_back(FileId file, FileState& fs, NodeId node, bool in_use, HomeActions& actions);
  void recall_ended(const OutstandingRecall& recall);
  void check_budget() const;
  void show(FileId file, const Announcements::By& by, uint64_t size,
            const std::vector<NodeId>& watchers, HomeActions& actions);
  void shown(FileId file, const Announcements::By& by, HomeActions& actions);

  Mistakes mistakes_;
  Announcements announcements_;
  const HomeLimits limits_;
  std::map<NodeId, size_t> waiting_of_;  // lease requests; nodes without any are not in it
  LeaseBudget budget_;
  std::map<NodeId, std::list<LeaseRequest>> later_;  // M3; counted in waiting_of_, none is empty
  // Where operations stand in line.
  struct Place {
    FileId file;
    Resource resource;
    std::list<Waiter>::iterator waiter;
  };
  std::unordered_map<OperationId, std::vector<Place>> places_;  // none is empty
  std::map<NodeId, size_t> open_of_;  // files; nodes without any are not in it
  uint64_t arrivals_ = 0;
  size_t open_in_all_ = 0;
  uint64_t taken_back_ = 0, opens_refused_ = 0;
  // Of a node's files that are forgotten: the greatest grant number. A file that comes again counts
  // on from there, so that what is still under way from before means no grant of now (I5).
  std::map<NodeId, uint64_t> counted_to_;
  uint64_t next_recall_ = 1;
  std::map<uint64_t, FileId> recalls_;  // not acked, all files
  std::unordered_map<FileId, std::unique_ptr<FileState>, FileIdHash> files_;
};

}  // namespace vremote::coherence
