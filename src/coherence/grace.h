// The time after a home's restart in which the nodes that had a session bring back what they had.
//
// Nothing that could conflict with it is granted to anybody until each of them is back and done, or
// has had the time in which it must stop using what it has (R1). Pure: told what happened, asked.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "base/time.h"

namespace vremote::coherence {

class Grace {
 public:
  struct Member {
    std::string node;
    uint64_t incarnation = 0;
    // Of the session, as the node counts them: it takes the next number when a session that it has
    // heard of is over. 0: not known.
    uint64_t epoch = 0;
    bool same_daemon(const Member& other) const {
      return node == other.node && incarnation == other.incarnation;
    }
    bool operator==(const Member&) const = default;
  };

  Grace() = default;  // over
  Grace(std::vector<Member> expected, Instant end) : expected_(std::move(expected)), end_(end) {}

  bool over(Instant now) const { return expected_.empty() || now >= end_; }
  // A node that was started anew since has nothing to bring back. Nor has one that comes with the
  // number that was noted: it never heard of that session, and what it has is of one before, which
  // the home had ended, and given to others.
  bool may_reclaim(const Member& member, Instant now) const {
    return !over(now) && std::ranges::any_of(expected_, [&](const Member& was) {
      return was.same_daemon(member) && (was.epoch == 0 || was.epoch < member.epoch);
    });
  }
  // It has brought back all, has left, or is another now.
  void settled(const std::string& node) {
    std::erase_if(expected_, [&](const Member& m) { return m.node == node; });
  }
  const std::vector<Member>& expected() const { return expected_; }

 private:
  std::vector<Member> expected_;
  Instant end_;
};

}  // namespace vremote::coherence
