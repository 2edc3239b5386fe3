// Circles of owners that wait for byte-range locks of several homes: each home's lock table finds
// those on its own files (lock_table.h, L4), and nobody sees all the others.
//
// A search follows the edges (Chandy, Misra, Haas: "Distributed Deadlock Detection", 1983): the
// node of a request that has waited for a while asks the home where it waits; that home tells the
// node of every owner in the way; that node asks the homes where those owners wait, and so on. A
// search that comes back to the owner it began with has found a circle. Rules:
//
//  C1  Only a request is searched for whose owner holds byte ranges somewhere: nobody can wait for
//  another. It is searched for anew as long as it waits, ever more seldom: messages may be lost
//  with a session, and circles may close later.
//
//  C2  A search follows no request that began to wait after its own (by the clocks of their homes;
//  a request of a node that knows no searches, or knew none when it came, counts as the oldest, and
//  none is begun for it: two such would both find their circle). Of a circle's requests the
//  youngest alone finds it, and it alone is refused, as where all locks are in one kernel; with
//  clocks that differ it may be another, but one.
//
//  C3  No circle is believed that was seen once. The trail names each request on the circle, and no
//  name is used twice. When a search comes back its node searches again, and only a second search
//  that brings back the same trail counts. So let T be the moment between the two. Every request of
//  the trail waited at T: it was seen before and after, under one name. Every edge was there at T:
//  it was seen after T, and who is in the way by a lock waits itself since before T, so that it has
//  not taken that lock after T. So at T there was a circle, which ends by a signal or a death
//  alone. (A process whose other threads lock and unlock meanwhile is not held up by the one that
//  waits. The kernel, too, takes a process for one owner that waits wherever any of its threads
//  does.)
//
//  C4  The home has the last word: it refuses the request if it still waits, under its name
//  (LockAction::Refuse). What was granted or interrupted meanwhile stays so.
//
//  C5  A search is bounded: kTrailMax requests on a trail, kTrailBudget messages in all, each of
//  which passes on a part of what it got. What is given up so is found by a later search or never.
//
// The trail of a circle passes only through nodes of owners on it: whoever forges one can make a
// request fail that waits for it anyway.
//
// Pure: calls in, actions out. Not thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "base/time.h"
#include "coherence/lock_table.h"
#include "coherence/messages.h"

namespace vremote::coherence {

// The home's part: whom to tell of what `node` asks. `home`: the number by which its waits are
// known.
std::vector<std::pair<NodeId, FollowOwner>> follow(const LockTable& locks, uint64_t home,
                                                   NodeId node, const FollowWait& asked);

// The part of a node: of all its waits, at all homes.
class WaitCircles {
 public:
  static constexpr int64_t kFirstSearchNs = 100'000'000, kSearchesApartMaxNs = 5'000'000'000;
  // Messages of searches that come from one home, and what they make this node send, between two
  // ticks. What is more is dropped (C1 asks again).
  static constexpr size_t kFollowedMax = 1000;

  struct Options {
    bool believe_at_once = false;  // against C3: for a test that shows what then happens
    // Numbers for searches, none of which comes again. That nobody can guess: who knows one can
    // make up what comes back.
    std::function<uint64_t()> draw = {};
  };
  // `self`: a number that no other node has.
  WaitCircles(uint64_t self, Options options) : self_(self), options_(options) {}
  explicit WaitCircles(uint64_t self) : WaitCircles(self, Options{}) {}

  struct Wait {
    uint32_t home = 0;  // the caller's number for it
    FileId file;
    uint64_t call = 0;
    uint64_t owner = 0;
  };
  struct Ask {
    uint32_t home = 0;
    FollowWait follow;
  };
  struct Refuse {
    uint32_t home = 0;
    FileId file;
    uint64_t call = 0;
  };
  using Action = std::variant<Ask, Refuse>;
  using Actions = std::vector<Action>;

  void begins(Instant now, const Wait& wait);
  void ends(uint32_t home, uint64_t call);
  void receive(uint32_t home, const FollowOwner& message, Actions& actions);
  // At least every kFirstSearchNs while not idle. `holds`: whether the owner holds byte ranges, at
  // any home.
  void tick(Instant now, const std::function<bool(uint64_t owner)>& holds, Actions& actions);
  std::optional<Instant> next_deadline() const;
  bool idle() const { return waits_.empty(); }

 private:
  using Key = std::pair<uint32_t, uint64_t>;  // home and call
  struct Waiting {
    Wait wait;
    Instant began, next;
    uint64_t search = 0;          // the last one
    std::vector<WaitName> trail;  // that the first search has brought back; this is the second
    bool refused = false;
  };
  void search(Waiting& waiting, Actions& actions);
  void follow(uint32_t home, const FollowOwner& message, Actions& actions);
  void came_back(Waiting& waiting, const Trail& trail, Actions& actions);

  const uint64_t self_;
  const Options options_;
  uint64_t searches_ = 0;
  std::map<Key, Waiting> waits_;
  std::set<std::pair<Instant, Key>> due_;
  std::unordered_map<uint64_t, std::set<Key>> of_owner_;
  std::unordered_map<uint64_t, Key> searched_;     // by search
  std::unordered_map<uint32_t, size_t> followed_;  // by home, since the last tick
};

}  // namespace vremote::coherence
