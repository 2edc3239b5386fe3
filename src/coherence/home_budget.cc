// What nodes have of this home, and how much of it they may have (M1 to M3 in lease_budget.h).
#include <algorithm>
#include <cerrno>
#include <map>
#include <utility>

#include "coherence/home_files.h"

namespace vremote::coherence {
Home::PerNode& Home::known(FileState& fs, NodeId node) {
  const auto [it, fresh] = fs.nodes.try_emplace(node);
  if (!fresh) return it->second;
  if (const auto counted = counted_to_.find(node); counted != counted_to_.end())
    it->second.last_sequence = counted->second;
  return it->second;
}

void Home::leases_changed(FileId file, FileState& fs, NodeId node, ptrdiff_t more) {
  if (more == 0) return;
  PerNode& of = known(fs, node);
  const bool none = of.leases == 0;
  of.leases += static_cast<size_t>(more);
  budget_.add(node, more);
  if (none) {
    of.place = budget_.first_lease(node, file);
  } else if (of.leases == 0) {
    budget_.no_lease(node, of.place);
  }
}

void Home::forget_if_uninvolved(FileState& fs, NodeId node) {
  const auto it = fs.nodes.find(node);
  if (it == fs.nodes.end() || fs.involves(node)) return;
  uint64_t& counted = counted_to_[node];
  counted = std::max(counted, it->second.last_sequence);
  fs.nodes.erase(it);
}

// M3. Who has the Attributes and asks for pages may keep them until it has those, in the midst of
// an append (K15), for instance: it gets them, as long as that is what programs could ask for.
bool Home::take_later(NodeId node, const LeaseRequest& message, HomeActions& actions) {
  if (!budget_.is_full(node)) return false;
  if (message.resource == Resource::Data &&
      held(node, message.file, Resource::Attributes, 0) != LeaseMode::None) {
    if (!budget_.is_full(node, limits_.requests_of_node)) return false;
    refuse(node, message, EAGAIN, actions);
    return true;
  }
  ++waiting_of_[node];
  later_[node].push_back(message);
  return true;
}

// The Attributes that the node has got since are being recalled from it. Pages of that file that it
// is to get later are refused (as in B2): it asks for them again when it has let go.
void Home::bounce_later(NodeId node, FileId file, HomeActions& actions) {
  const auto later = later_.find(node);
  if (later == later_.end()) return;
  std::list<LeaseRequest> bounced;
  for (auto it = later->second.begin(); it != later->second.end();) {
    const auto next = std::next(it);
    if (it->file == file && it->resource == Resource::Data)
      bounced.splice(bounced.end(), later->second, it);
    it = next;
  }
  if (later->second.empty()) later_.erase(later);
  for (const LeaseRequest& request : bounced) {
    if (--waiting_of_.at(node) == 0) waiting_of_.erase(node);
    refuse(node, request, EAGAIN, actions);
  }
}

void Home::take_what_waited(HomeActions& actions) {
  if (later_.empty()) return;
  std::vector<NodeId> nodes;
  for (const auto& [node, later] : later_) nodes.push_back(node);
  for (NodeId node : nodes) {
    while (!budget_.is_full(node)) {
      const auto it = later_.find(node);
      if (it == later_.end()) break;
      const LeaseRequest message = it->second.front();
      it->second.pop_front();
      if (it->second.empty()) later_.erase(it);
      if (--waiting_of_.at(node) == 0) waiting_of_.erase(node);
      receive(node, message, actions);
    }
  }
}

void Home::keep_within_budget(NodeId node, HomeActions& actions) {
  while (const auto who = budget_.has_too_many(node))
    if (!take_back_oldest(*who, actions)) return;
}

bool Home::take_back_oldest(NodeId node, HomeActions& actions) {
  const LeaseBudget::Files& files = budget_.files_of(node);
  // Behind those of which all is under way; there is one for each recall at most.
  const FileId last = files.back();
  for (size_t left = std::min(files.size(), LeaseBudget::kRecallsMax + 1); left > 0; --left) {
    const FileId file = files.front();
    FileState& fs = *files_.at(file);
    if (take_back(file, fs, node, file == last, actions)) return true;
    budget_.is_last(node, fs.nodes.at(node).place);
  }
  return false;
}

// False: all that it has of the file is being recalled. Of the file that was granted last
// (`in_use`) its node is about to use what it has got: only ranges go, when it has many.
bool Home::take_back(FileId file, FileState& fs, NodeId node, bool in_use, HomeActions& actions) {
  PerNode& of = fs.nodes.at(node);
  const auto recall = [&](Resource resource, PageRange range, size_t leases) {
    ResourceState& rs = fs.of(resource);
    if (range.empty() || std::ranges::any_of(rs.recalls, [&](const auto& entry) {
          const OutstandingRecall& other = entry.second;
          return other.node == node && other.to == LeaseMode::None && other.range.contains(range);
        }))
      return false;
    const uint64_t id = next_recall_++;
    rs.recalls.emplace(id, OutstandingRecall{.node = node,
                                             .range = range,
                                             .to = LeaseMode::None,
                                             .busy = false,
                                             .budgeted = leases});
    recalls_.emplace(id, file);
    budget_.asked_back(node, leases);
    ++taken_back_;
    actions.push_back(SendRecall{node, Recall{.file = file,
                                              .recall = id,
                                              .resource = resource,
                                              .to = LeaseMode::None,
                                              .range = range}});
    if (resource == Resource::Attributes) bounce_later(node, file, actions);
    return true;
  };
  const HolderMap& data = fs.of(Resource::Data).holders;
  if (const size_t at_once = budget_.at_once(); of.leases > at_once) {
    PageRange span = data.span_of(node, of.hand, at_once);
    if (span.empty()) span = data.span_of(node, 0, at_once);
    of.hand = span.end;
    return recall(Resource::Data, span, data.ranges_in(span, node));
  }
  if (in_use) return false;
  bool any = false;
  for (Resource unit : {Resource::Entries, Resource::Attributes})
    if (fs.of(unit).holders.at(0).has(node)) any = recall(unit, kUnit, 1) || any;
  const PageRange all = data.span_of(node, 0, SIZE_MAX);
  return recall(Resource::Data, all, data.ranges_in(all, node)) || any;
}

void Home::recall_ended(const OutstandingRecall& recall) {
  if (recall.budgeted) budget_.came_back(recall.node, *recall.budgeted);
}

void Home::check_budget() const {
  std::map<NodeId, size_t> leases, open;
  size_t in_all = 0, open_in_all = 0;
  for (const auto& entry : files_) {
    const auto& fs = entry.second;
    for (const auto& [node, of] : fs->nodes) {
      size_t has = 0;
      for (const ResourceState& rs : fs->resources) has += rs.holders.ranges_of(node);
      VR_CHECK_MSG(has == of.leases, "the leases of a node are counted");
      VR_CHECK_MSG(fs->involves(node), "nothing is kept of nodes that have nothing");
      if (has > 0) leases[node] += has;
      in_all += has;
      if (of.in_use) ++open[node], ++open_in_all;
    }
    for (const ResourceState& rs : fs->resources)
      rs.holders.each(PageRange::all(), [&](PageRange, const Holding& holding) {
        for (NodeId node : holding.nodes)
          VR_CHECK_MSG(fs->nodes.contains(node), "whoever has a lease is known");
        return true;
      });
  }
  VR_CHECK(in_all == budget_.in_all() && open_in_all == open_in_all_ && open == open_of_);
  for (const auto& [node, has] : leases) VR_CHECK(budget_.of(node) == has);
}

}  // namespace vremote::coherence
