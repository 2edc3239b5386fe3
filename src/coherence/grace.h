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
    bool operator==(const Member&) const = default;
  };

  Grace() = default;  // over
  Grace(std::vector<Member> expected, Instant end) : expected_(std::move(expected)), end_(end) {}

  bool over(Instant now) const { return expected_.empty() || now >= end_; }
  // A node that was started anew since has nothing to bring back.
  bool may_reclaim(const Member& member, Instant now) const {
    return !over(now) && std::ranges::find(expected_, member) != expected_.end();
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
