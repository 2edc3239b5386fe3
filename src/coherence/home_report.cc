// What others ask a home about itself, and what must always be true of it.
#include <algorithm>
#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

#include "coherence/home_files.h"

namespace vremote::coherence {
namespace {

// Of what others owe and one node waits for: one that takes long is enough.
constexpr size_t kExcusesMax = 64;

}  // namespace

std::vector<FileId> Home::files_dirty_elsewhere() const {
  std::vector<FileId> out;
  for (const auto& [file, fs] : files_) {
    bool dirty = false;
    for (const ResourceState& rs : fs->resources)
      rs.holders.each(PageRange::all(), [&](PageRange, const Holding& holding) {
        dirty = dirty || (holding.mode != LeaseMode::Shared && !holding.only(NodeId{0}));
        return !dirty;
      });
    if (dirty) out.push_back(file);
  }
  return out;
}

std::vector<FileId> Home::known_files() const {
  std::vector<FileId> out;
  out.reserve(files_.size());
  for (const auto& [file, fs] : files_) out.push_back(file);
  return out;
}

HomeCounts Home::counts() const {
  HomeCounts counts;
  counts.files = files_.size();
  counts.leases = budget_.in_all();
  counts.open = open_in_all_;
  counts.taken_back = taken_back_;
  counts.opens_refused = opens_refused_;
  counts.watches = announcements_.entries();
  for (const auto& [node, later] : later_) counts.waiting += later.size();
  for (const auto& [file, fs] : files_) {
    for (const ResourceState& rs : fs->resources) {
      counts.recalls += rs.recalls.size();
      for (const Waiter& waiter : rs.waiters) counts.waiting += waiter.holding ? 0 : 1;
    }
    fs->of(Resource::Data)
        .holders.each(PageRange::all(), [&](PageRange range, const Holding& holding) {
          const bool exclusive = holding.mode == LeaseMode::Exclusive;
          (exclusive ? counts.exclusive_ranges : counts.shared_ranges) += holding.nodes.size();
          (exclusive ? counts.exclusive_pages : counts.shared_pages) +=
              range.count() * holding.nodes.size();
          return true;
        });
  }
  return counts;
}

// Of one file: who may have to wait for others before it can ack a recall, and what is owed by
// those who need not.
struct Home::Debts {
  std::set<NodeId> held_up;
  std::vector<std::pair<uint64_t, NodeId>> plain;
  std::vector<uint64_t> before(NodeId node) const {
    std::vector<uint64_t> out;
    if (!held_up.contains(node)) return out;
    for (const auto& [id, debtor] : plain)
      if (debtor != node && out.size() < kExcusesMax) out.push_back(id);
    return out;
  }
};

Home::Debts Home::debts(const FileState& fs,
                        const std::vector<const Announcements::Pending*>& shows) const {
  Debts out;
  for (const Announcements::Pending* pending : shows) {
    if (!pending->by.operation) out.held_up.insert(pending->by.node);
    for (const auto& [node, show] : pending->waiting) out.plain.emplace_back(show, node);
  }
  for (const ResourceState& rs : fs.resources)
    for (const Waiter& waiter : rs.waiters) {
      if (waiter.holding) continue;
      if (!waiter.operation) {
        out.held_up.insert(waiter.node);
      } else if (waiter.truncation_of) {
        out.held_up.insert(*waiter.truncation_of);
      }
    }
  for (const ResourceState& rs : fs.resources)
    for (const auto& [id, recall] : rs.recalls)
      if (!out.held_up.contains(recall.node)) out.plain.emplace_back(id, recall.node);
  return out;
}

std::vector<Home::PendingRecall> Home::pending_recalls(size_t most) const {
  std::vector<PendingRecall> out;
  std::unordered_map<FileId, std::vector<const Announcements::Pending*>, FileIdHash> shows;
  for (const auto& [id, pending] : announcements_.pending()) {
    shows[pending.file].push_back(&pending);
    for (const auto& [node, show] : pending.waiting)
      if (out.size() < (most + 1) / 2)
        out.push_back({show, pending.file, node, Resource::Attributes, kUnit, {}});
  }
  std::unordered_map<FileId, Debts, FileIdHash> of_file;
  for (const auto& [id, file] : recalls_) {
    if (out.size() >= most) break;
    const FileState& fs = *files_.at(file);
    auto known = of_file.find(file);
    if (known == of_file.end()) known = of_file.emplace(file, debts(fs, shows[file])).first;
    for (Resource resource : kResources) {
      const auto& recalls = fs.of(resource).recalls;
      if (auto it = recalls.find(id); it != recalls.end())
        out.push_back({id, file, it->second.node, resource, it->second.range,
                       known->second.before(it->second.node)});
    }
  }
  return out;
}

std::vector<Home::BlockedRequest> Home::blocked_requests(size_t most) const {
  std::vector<BlockedRequest> out;
  for (const auto& [id, pending] : announcements_.pending()) {
    if (out.size() == most) return out;
    BlockedRequest& request = out.emplace_back();
    request.file = pending.file;
    request.resource = Resource::Attributes;
    request.range = kUnit;
    request.operation = pending.by.operation;
    request.node = pending.by.node;
    for (const auto& [node, show] : pending.waiting) request.recalls.emplace_back(show, node);
  }
  for (const auto& [file, fs] : files_) {
    for (Resource resource : kResources) {
      const ResourceState& rs = fs->of(resource);
      for (auto it = rs.waiters.begin(); it != rs.waiters.end(); ++it) {
        if (it->holding && !it->yielded) continue;
        if (out.size() == most) return out;
        BlockedRequest& request = out.emplace_back();
        request.file = file;
        request.resource = resource;
        request.range = it->range;
        request.operation = it->operation;
        request.node = it->node;
        request.arrival = it->arrival;
        for (const auto& [id, recall] : rs.recalls)
          if (recall.range.overlaps(it->range)) request.recalls.emplace_back(id, recall.node);
        if (!request.recalls.empty()) continue;
        for (auto ahead = rs.waiters.begin(); ahead != it; ++ahead)
          if (ahead->range.overlaps(it->range) && !compatible(ahead->mode, it->mode))
            request.behind.push_back({ahead->operation, ahead->node});
      }
    }
  }
  return out;
}

void Home::check() const {
  std::map<NodeId, size_t> waiting;
  for (const auto& [file, fs] : files_)
    for (const ResourceState& rs : fs->resources)
      for (const Waiter& waiter : rs.waiters)
        if (!waiter.operation) ++waiting[waiter.node];
  for (const auto& [node, later] : later_) waiting[node] += later.size();
  check_budget();
  size_t recalls = 0;
  for (const auto& [file, fs] : files_)
    for (const ResourceState& rs : fs->resources) recalls += rs.recalls.size();
  VR_CHECK_MSG(recalls == recalls_.size(), "the recalls under way are known");
  VR_CHECK_MSG(waiting == waiting_of_, "the requests that wait are counted");
  size_t operations = 0;
  for (const auto& [file, fs] : files_)
    for (const ResourceState& rs : fs->resources)
      operations += static_cast<size_t>(std::ranges::count_if(
          rs.waiters, [](const Waiter& waiter) { return waiter.operation.has_value(); }));
  for (const auto& [operation, places] : places_) {
    for (const Place& place : places)
      VR_CHECK_MSG(place.waiter->operation == operation, "where operations stand is known");
    operations -= places.size();
  }
  VR_CHECK_MSG(operations == 0, "where operations stand is known");
  for (const auto& [file, fs] : files_) {
    for (const ResourceState& rs : fs->resources) {
      rs.holders.check();
      // I3: two that hold or wait first in line never conflict.
      for (auto a = rs.waiters.begin(); a != rs.waiters.end(); ++a) {
        if (!a->holding) continue;
        for (auto b = rs.waiters.begin(); b != a; ++b)
          VR_CHECK_MSG(!b->holding || !b->range.overlaps(a->range) || compatible(a->mode, b->mode),
                       "I3: two operations hold one piece");
        rs.holders.each(a->range, [&](PageRange, const Holding& holding) {
          for (NodeId node : holding.nodes)
            VR_CHECK_MSG(a->except == node || compatible(holding.mode, a->mode) ||
                             mistakes_.has(Mistake::GrantBeforeAcks),
                         "I1: a lease beside an operation that excludes it");
          return true;
        });
      }
    }
  }
}

}  // namespace vremote::coherence
