// How many leases nodes may have of a home: ranges of pages, attributes, entries. Each costs the
// home memory for as long as its node likes, and a node can ask for any number of them.
//
//  M1  Who has more than one node may have is asked to give back what it was granted least
//  recently, a file at a time. It goes on working: what it uses it asks for again.
//
//  M2  When all nodes together have too many, the one with the most is asked. Who has no more than
//  an equal share keeps it, whatever others do.
//
//  M3  Who has more still, beyond some slack, gets nothing before it has given back what it is
//  asked for: its requests wait.
//
// Pure bookkeeping: whoever has the leases tells of them. Not thread-safe.
#pragma once

#include <algorithm>
#include <cstddef>
#include <list>
#include <map>
#include <optional>

#include "base/check.h"
#include "base/ids.h"

namespace vremote::coherence {

class LeaseBudget {
 public:
  struct Limits {
    size_t of_node = 512 << 10, in_all = 1 << 20;
    // Of one file at once: few messages, and not all of a file that was only a little too much.
    size_t at_once = 1024;
  };
  // Recalls of M1 and M2 that one node need not have acked, at most.
  static constexpr size_t kRecallsMax = 256;

  explicit LeaseBudget(const Limits& limits) : limits_(limits) {}
  size_t at_once() const { return limits_.at_once; }

  // A node's files with leases, the one that was granted something least recently first.
  using Files = std::list<FileId>;
  using Place = Files::iterator;
  Place first_lease(NodeId node, FileId file) {
    Files& files = nodes_[node].files;
    return files.insert(files.end(), file);
  }
  void is_last(NodeId node, Place place) {
    Files& files = nodes_.at(node).files;
    files.splice(files.end(), files, place);
  }
  void no_lease(NodeId node, Place place) {
    nodes_.at(node).files.erase(place);
    forget_if_idle(node);
  }
  const Files& files_of(NodeId node) const { return nodes_.at(node).files; }

  void add(NodeId node, ptrdiff_t leases) {
    nodes_[node].leases += static_cast<size_t>(leases);
    in_all_ += static_cast<size_t>(leases);
    forget_if_idle(node);
  }
  // A recall of so many is under way; it has ended, however it did.
  void asked_back(NodeId node, size_t leases) {
    Of& of = nodes_[node];
    of.going += leases;
    ++of.recalls;
    going_in_all_ += leases;
  }
  void came_back(NodeId node, size_t leases) {
    Of& of = nodes_.at(node);
    VR_CHECK(of.recalls > 0 && of.going >= leases);
    of.going -= leases;
    --of.recalls;
    going_in_all_ -= leases;
    forget_if_idle(node);
  }

  // M1 and M2: who has to give something back, after `node` was granted something or has given
  // something back.
  std::optional<NodeId> has_too_many(NodeId node) const {
    if (const auto it = nodes_.find(node); it != nodes_.end() &&
                                           staying(it->second) > limits_.of_node &&
                                           it->second.recalls < kRecallsMax)
      return node;
    if (staying_in_all() <= limits_.in_all) return std::nullopt;
    std::optional<NodeId> most;
    size_t its = equal_share();
    for (const auto& [other, of] : nodes_) {
      if (of.recalls >= kRecallsMax || staying(of) <= its) continue;
      most = other;
      its = staying(of);
    }
    return most;
  }
  // M3. `beyond`: and has so many more.
  bool is_full(NodeId node, size_t beyond = 0) const {
    const auto it = nodes_.find(node);
    if (it == nodes_.end() || it->second.recalls == 0) return false;
    if (it->second.leases >= with_slack(limits_.of_node) + beyond) return true;
    return in_all_ >= with_slack(limits_.in_all) && it->second.leases > equal_share() + beyond;
  }
  // Whether it may be given what it has not asked for.
  bool has_room(NodeId node) const {
    const auto it = nodes_.find(node);
    return !is_full(node) && (it == nodes_.end() || it->second.recalls < kRecallsMax);
  }

  size_t in_all() const { return in_all_; }
  size_t of(NodeId node) const {
    const auto it = nodes_.find(node);
    return it == nodes_.end() ? 0 : it->second.leases;
  }

 private:
  struct Of {
    size_t leases = 0, going = 0, recalls = 0;
    Files files;
  };
  // What is asked back may come back as less than it was then.
  static size_t staying(const Of& of) { return of.leases - std::min(of.leases, of.going); }
  size_t equal_share() const { return limits_.in_all / std::max<size_t>(1, nodes_.size()); }
  size_t staying_in_all() const { return in_all_ - std::min(in_all_, going_in_all_); }
  // Who does what it is asked has some more than it may have for as long as that takes.
  static size_t with_slack(size_t limit) { return limit + std::max<size_t>(limit / 4, 2); }
  void forget_if_idle(NodeId node) {
    const auto it = nodes_.find(node);
    if (it != nodes_.end() && it->second.leases == 0 && it->second.recalls == 0 &&
        it->second.files.empty())
      nodes_.erase(it);
  }

  const Limits limits_;
  std::map<NodeId, Of> nodes_;  // none of them idle
  size_t in_all_ = 0, going_in_all_ = 0;
};

}  // namespace vremote::coherence
