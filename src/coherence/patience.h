// For how long a home waits for nodes that have what others need.
//
// A session that is not heard of ends nothing by itself: its node may come back and go on, as long
// as nobody needs what it holds (T4; RFC 8881, 8.4.3, calls such a server courteous). When somebody
// does,
//   a node that was not heard of for the lease term has stopped using its caches (T3): it is
//   fenced; a node that is heard of and does not answer a recall is reported, and silenced when it
//   has made no progress for as long as the deadline says: it may go on using what it has as long
//   as it is answered, so it is answered no more, and fenced when the term is over.
// So is one that breaks the protocol, or does not take what it asked for.
// A fenced node's session ends. It hears of it when it comes back, and begins anew.
//
// Pure: what it judges by are arguments.
#pragma once

#include <algorithm>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/ids.h"
#include "base/time.h"
#include "coherence/messages.h"

namespace vremote::coherence {

class Patience {
 public:
  struct Options {
    int64_t term_ns = 10'000'000'000;      // of leases
    int64_t warn_ns = 5'000'000'000;       // a recall that takes so long is reported
    int64_t deadline_ns = 60'000'000'000;  // and this is its end
    bool hasty = false;  // a mistake for the simulator: fences before the term is over
  };
  // What somebody waits for.
  struct Blocker {
    uint64_t recall = 0;  // 0: a lock, for which any time is good
    NodeId node;
    FileId file;
    // Of others in the same list, for which this node may have to wait itself. While one of them
    // takes long, this one's time stands still: altogether for no longer than it takes to put one
    // of them out. Otherwise some who answer just in time, one after the other, would hold up
    // everybody for ever.
    std::vector<uint64_t> behind = {};
    // It could not answer if it would: this home has not sent it, waits for its own disk before it
    // goes on with the file, or does not listen. Its time stands still.
    bool held_here = false;
  };
  struct Verdict {
    NodeId node;
    FileId file;
    bool fence = false;  // its session must end now
    bool silence =
        false;  // it must not be heard, nor answered, until it is fenced; neither: a word
    int64_t waited_ns = 0;
    std::string why;
  };
  // When the node was heard of last; nothing: it has no session that could end.
  using Heard = std::function<std::optional<Instant>(NodeId)>;

  explicit Patience(const Options& options) : options_(options) {}

  // Call it again and again, several times a second. At most one fence for each node. For one that
  // is silenced `heard` stays what it was.
  std::vector<Verdict> judge(Instant now, const std::vector<Blocker>& blockers, const Heard& heard);
  // Bytes have come from the node, or the like: its recalls of the file are being worked at.
  void progress(NodeId node, FileId file, Instant now);

  // Its session must end: when its leases are over. From now on it must not be heard, nor answered.
  void give_up(NodeId node, Instant now, std::string why);

  // Whether it may be fenced when somebody needs what it holds.
  bool expired(Instant now, Instant heard) const;

 private:
  // A time in which this very process was stopped, up to `end`: what came meanwhile is read only
  // after that. `lost`: how much of it is nobody's silence.
  struct Stop {
    Instant end;
    int64_t lost_ns = 0;
  };
  void look_for_a_stop(Instant now);
  // For how long it was silent, as far as we could hear.
  int64_t silent(Instant now, Instant heard) const;
  bool waits_itself(Instant now, const Blocker& blocker) const;

  struct Known {
    NodeId node;
    FileId file;
    Instant since, moved;
    bool reported = false;
    bool present = false;
    int64_t excused_ns = 0;  // it stood still for others' sake
    std::string why = "it did not answer a recall";
  };
  Options options_;
  std::map<uint64_t, Known> recalls_;
  std::map<NodeId, Known> silenced_;
  Instant begun_, judged_;
  std::vector<Stop> stops_;  // as far as anybody's term may reach back
};

}  // namespace vremote::coherence
