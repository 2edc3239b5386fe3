// What a home knows of one file: who holds what, who waits in which order, what is being recalled.
// Only for the parts of Home.
#pragma once

#include <algorithm>
#include <array>
#include <list>
#include <map>
#include <optional>
#include <set>
#include <vector>

#include "coherence/holder_map.h"
#include "coherence/home.h"
#include "coherence/lease_budget.h"

namespace vremote::coherence {

inline constexpr std::array kResources{Resource::Entries, Resource::Attributes, Resource::Data};

// A request of a node, or an operation at the home; waiting, or (an operation only) holding until
// it is finished.
struct Home::Waiter {
  std::optional<OperationId> operation;
  NodeId node;                   // who asked, when not an operation
  std::optional<NodeId> except;  // whose leases do not conflict
  std::optional<NodeId> truncation_of = {};
  uint64_t request = 0;
  uint64_t arrival = 0;  // of requests of nodes
  LeaseMode mode = LeaseMode::None;
  PageRange range;
  bool want_data = false;
  bool holding = false;
  bool yielded = false;    // B3: held it, and gets it back without being told again
  bool gave_way = false;   // B3: has yielded once
  bool suspended = false;  // waits for a second piece while its first is yielded, or has failed
};

struct Home::OutstandingRecall {
  NodeId node;
  PageRange range;
  LeaseMode to = LeaseMode::None;
  bool busy = false;
  std::optional<size_t> budgeted = {};  // nobody needs it: the node has too many leases; how many
};

struct Home::ResourceState {
  HolderMap holders;
  std::list<Waiter> waiters;  // in order of arrival (I3)
  std::map<uint64_t, OutstandingRecall> recalls;

  // Whether `last` waits, itself or behind others in line, for a recall that `node` cannot ack yet.
  bool waits_for_busy(const Waiter& last, NodeId node) const {
    std::vector<const Waiter*> chain{&last};
    auto it =
        std::find_if(waiters.begin(), waiters.end(), [&](const Waiter& w) { return &w == &last; });
    while (it != waiters.begin()) {
      --it;
      const bool in_the_way = std::any_of(chain.begin(), chain.end(), [&](const Waiter* w) {
        return it->range.overlaps(w->range) && !compatible(it->mode, w->mode);
      });
      if (in_the_way && !it->suspended) chain.push_back(&*it);
    }
    return std::any_of(recalls.begin(), recalls.end(), [&](const auto& entry) {
      return entry.second.busy && entry.second.node == node &&
             std::any_of(chain.begin(), chain.end(),
                         [&](const Waiter* w) { return entry.second.range.overlaps(w->range); });
    });
  }
  bool busy(NodeId node) const {
    return std::any_of(recalls.begin(), recalls.end(), [&](const auto& entry) {
      return entry.second.busy && entry.second.node == node;
    });
  }
  Waiter* waiting_for(OperationId operation) {
    for (Waiter& waiter : waiters)
      if (waiter.operation == operation) return &waiter;
    return nullptr;
  }
  bool idle() const { return holders.empty() && waiters.empty() && recalls.empty(); }
};

// One node and one file.
struct Home::PerNode {
  uint64_t last_sequence = 0;
  bool in_use = false;
  size_t leases = 0;         // ranges, of all resources
  LeaseBudget::Place place;  // when there are some
  uint64_t hand = 0;         // the page from which some are asked back next
};

struct Home::FileState {
  std::array<ResourceState, 3> resources;
  std::map<NodeId, PerNode> nodes;
  bool pinned = false;
  std::set<NodeId> busy_nodes() const {
    std::set<NodeId> found;
    for (const ResourceState& rs : resources)
      for (const auto& [id, recall] : rs.recalls)
        if (recall.busy) found.insert(recall.node);
    return found;
  }
  // Whether it has something here, or waits, or is waited for.
  bool involves(NodeId node) const {
    if (const auto it = nodes.find(node);
        it != nodes.end() && (it->second.leases > 0 || it->second.in_use))
      return true;
    return std::ranges::any_of(resources, [&](const ResourceState& rs) {
      return std::ranges::any_of(rs.recalls,
                                 [&](const auto& entry) { return entry.second.node == node; }) ||
             std::ranges::any_of(rs.waiters, [&](const Waiter& w) {
               return w.operation ? w.except == node || w.truncation_of == node : w.node == node;
             });
    });
  }
  bool busy(NodeId node) const {
    return std::any_of(resources.begin(), resources.end(),
                       [&](const ResourceState& rs) { return rs.busy(node); });
  }
  ResourceState& of(Resource resource) { return resources[static_cast<size_t>(resource)]; }
  const ResourceState& of(Resource resource) const {
    return resources[static_cast<size_t>(resource)];
  }
};

}  // namespace vremote::coherence
