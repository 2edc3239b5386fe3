// The advisory locks on the files of one origin: fcntl(2) byte ranges (POSIX and OFD) and flock(2),
// held by owners on any node.
//
// Rules:
//  L1  Two locks conflict when they are of the same kind, of different owners, overlap, and one of
//  them is a write lock.
//
//  L2  A new lock of an owner replaces what it held on those bytes (upgrade, downgrade, unlock),
//  splitting and joining ranges as fcntl(2) says. A flock that has to wait for its conversion is
//  let go of first, as flock(2) says: two that hold it shared and both want it alone would wait for
//  each other for ever.
//
//  L3  Who has to wait waits in line: a request waits for conflicting locks and for conflicting
//  requests that came before it, so that a stream of readers does not starve a writer. Waking goes
//  in order of arrival. An owner that holds byte ranges already, of whatever file (of another
//  home's, too, if its node says so), passes the line: somebody in it may wait for what it holds,
//  and no local file system would have made it wait.
//
//  L4  A byte-range request that would close a circle of waiting owners is refused (EDEADLK),
//  across nodes. Waiting in line counts, too: another thread of the owner may lock something
//  meanwhile. (As in the kernel, flock is not looked at.) The search ends after kCircleStepsMax, as
//  the kernel's does after a few (posix_locks_deadlock() in fs/locks.c). Circles over the files of
//  several homes: wait_circles.h.
//
//  L5  A lock dies with its owner's handle, process or node.
//
// Pure: calls in, decisions out. Not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <optional>
#include <unordered_map>
#include <vector>

#include "coherence/messages.h"
#include "coherence/mistakes.h"

namespace vremote::coherence {

struct LockOwner {
  NodeId node;
  uint64_t id = 0;  // the asking kernel's name for the process or open file
  auto operator<=>(const LockOwner&) const = default;
};
struct LockOwnerHash {
  size_t operator()(const LockOwner& owner) const {
    return std::hash<uint64_t>()(owner.id * 0x9e3779b97f4a7c15ull + owner.node.value);
  }
};

// Bytes [start, end], inclusive as in the FUSE protocol; end is at most INT64_MAX ("to the end of
// the file").
struct LockRange {
  uint64_t start = 0;
  uint64_t end = 0;
  bool overlaps(const LockRange& other) const { return start <= other.end && other.start <= end; }
};

struct HeldLock {
  LockOwner owner;
  LockType type = LockType::Read;
  LockRange range;
  uint32_t pid = 0;
};

class LockTable {
 public:
  // Conflicts looked at in search of a circle (L4), at most: some milliseconds of work. And for one
  // step of a search over several homes.
  static constexpr size_t kCircleStepsMax = 1'000'000, kWayStepsMax = 20'000;

  explicit LockTable(Mistakes mistakes = {}) : mistakes_(mistakes) {}

  // Names a waiting request for its answer: the node's call.
  struct Ticket {
    NodeId node;
    uint64_t call = 0;
    auto operator<=>(const Ticket&) const = default;
  };
  struct Request {
    FileId file;
    LockKind kind = LockKind::Range;
    LockOwner owner;
    LockType type = LockType::Read;
    LockRange range;
    uint32_t pid = 0;
    bool wait = false;
    Ticket ticket;
    bool holds_elsewhere = false;  // the owner holds byte ranges of other homes
    uint64_t since = 0;            // when it came, for in_the_way()
    bool passes_line = false;      // L3; set() finds it out
  };
  enum class Decision : uint8_t { Done, Conflict, Deadlock, Waits };

  // Sets or clears a lock. Tickets of others that got theirs by it are appended to `woken`.
  Decision set(Request request, std::vector<Ticket>& woken);
  // Whether its node could come to hold more than `most` by it. Unlocking can, too: in the middle.
  bool holds_too_many(const Request& request, size_t most) const;
  // The first lock in the way of `request` (F_GETLK).
  std::optional<HeldLock> test(const Request& request) const;
  // L1, of the same kind and file.
  static bool conflicts(const HeldLock& lock, const Request& request);
  // Gives up waiting. False when the request does not wait (any more).
  bool cancel(FileId file, Ticket ticket, std::vector<Ticket>& woken);
  // Drops all that the owner holds and waits for on the file; `cancelled` are its own requests that
  // waited.
  void release(FileId file, LockKind kind, LockOwner owner, std::vector<Ticket>& woken,
               std::vector<Ticket>& cancelled);
  void node_gone(NodeId node, std::vector<Ticket>& woken);

  // What L4 needs beyond this home (wait_circles.h): the owners in the way of a request that waits,
  // directly or through others that wait here, each once, the nearest first. Requests that came
  // after `since` (0: after this one) are not looked at. At most `most`, none through more than
  // `longest` requests.
  struct InTheWay {
    LockOwner owner;
    FileId file;                  // of what is in the way
    std::vector<Ticket> through;  // from the request asked for to the one it is in the way of
  };
  struct Ways {
    uint64_t since = 0;
    std::vector<InTheWay> owners;
  };
  Ways in_the_way(FileId file, Ticket ticket, uint64_t since, size_t most,
                  size_t longest = SIZE_MAX) const;
  bool holds_range(const LockOwner& owner) const;
  // Whether its owner holds anything of what it asks for.
  bool holds_some_of(const Request& request) const;

  // Locks of one node that requests of another wait for.
  struct Blocker {
    FileId file;
    NodeId node;
  };
  std::vector<Blocker> blockers() const;

  struct Held {
    FileId file;
    LockKind kind = LockKind::Range;
    HeldLock lock;
    // What takes it again at a home that has begun anew.
    LockCall reclaim() const;
  };
  std::vector<Held> all() const;

  size_t held() const;
  size_t waiting() const;
  // Those who wait, `most` at most, each with the locks and the earlier requests in its way: the
  // first `most_ahead` of them, locks first.
  struct BlockedRequest {
    Request request;
    std::vector<HeldLock> held_by;
  };
  std::vector<BlockedRequest> blocked_requests(size_t most, size_t most_ahead = SIZE_MAX) const;
  // L1, and that nobody waits for nothing.
  void check() const;

 private:
  struct FileLocks {
    std::vector<HeldLock> held[2];  // by kind
    std::list<Request> waiting;     // in order of arrival
    bool empty() const { return held[0].empty() && held[1].empty() && waiting.empty(); }
  };
  // What an owner does with byte ranges, in all files.
  struct Owner {
    size_t held = 0;
    std::vector<const Request*> waiting;
  };

  static bool conflicts(const Request& earlier, const Request& request);
  bool grantable(const FileLocks& locks, std::list<Request>::const_iterator before,
                 const Request& request) const;
  bool closes_circle(const Request& request) const;
  void place(FileLocks& locks, const Request& request);
  void wait_in_line(FileLocks& locks, const Request& request);
  // Those who wait and those who hold, of whom `gone` says so, leave. Returns how many.
  template <class Predicate>
  size_t leave_line(FileLocks& locks, Predicate gone);
  template <class Predicate>
  size_t let_go(FileLocks& locks, LockKind kind, Predicate gone);
  void holds(LockKind kind, const LockOwner& owner, ptrdiff_t more);
  void forget_if_idle(std::unordered_map<LockOwner, Owner, LockOwnerHash>::iterator owner);
  void wake(FileId file, std::vector<Ticket>& woken);

  Mistakes mistakes_;
  std::unordered_map<FileId, FileLocks, FileIdHash> files_;
  std::unordered_map<LockOwner, Owner, LockOwnerHash> owners_;  // none of them idle
  std::map<NodeId, size_t> held_of_;                            // of both kinds; none is 0
};

}  // namespace vremote::coherence
