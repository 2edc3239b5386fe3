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
    // R5: it was here when the time of an earlier grace was over, and had not brought back all.
    // What it was told of that session it may hear only now.
    static constexpr uint64_t kTooLate = UINT64_MAX;
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
  // It has a session now. Who has nothing of before is not waited for; who was too late may be
  // using what it had claimed until its old leases are over.
  void came(const Member& member, Instant now) {
    if (may_reclaim(member, now)) return;
    std::erase_if(expected_, [&](const Member& was) {
      return was.node == member.node && !(was.same_daemon(member) && was.epoch == Member::kTooLate);
    });
  }
  // Of `here`, who has a session at the end: what it still brings is from before.
  bool is_too_late(const Member& here) const {
    return std::ranges::any_of(expected_, [&](const Member& was) {
      return was.same_daemon(here) && was.epoch != Member::kTooLate;
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
