// Who is served next, whom that takes a recall of, and how wide the grant is (I1 to I3).
#include <algorithm>
#include <array>
#include <iterator>
#include <map>
#include <utility>

#include "coherence/home_files.h"

namespace vremote::coherence {

bool Home::blocked(const ResourceState& rs, std::list<Waiter>::const_iterator waiter) const {
  for (auto it = rs.waiters.begin(); it != waiter; ++it)
    if (!it->suspended && it->range.overlaps(waiter->range) && !compatible(it->mode, waiter->mode))
      return true;
  return false;
}

// Sends the recalls that `waiter` needs and that are not under way. Returns true when something
// conflicts.
bool Home::recall_conflicts(FileId file, ResourceState& rs, Resource resource, const Waiter& waiter,
                            HomeActions& actions) {
  struct Wanted {
    PageRange range;
    LeaseMode to = LeaseMode::None;
  };
  std::map<NodeId, Wanted> wanted;
  rs.holders.each(waiter.range, [&](PageRange range, const Holding& holding) {
    if (compatible(holding.mode, waiter.mode)) return true;
    for (NodeId node : holding.nodes) {
      if (waiter.except == node) continue;
      // Update cannot become Shared while other nodes have Update: it goes altogether.
      const LeaseMode down =
          waiter.mode == LeaseMode::Shared && holding.mode == LeaseMode::Exclusive
              ? LeaseMode::Shared
              : LeaseMode::None;
      auto [slot, fresh] = wanted.try_emplace(node, Wanted{range, down});
      if (!fresh) {
        slot->second.range.end = range.end;
        if (down == LeaseMode::None) slot->second.to = down;
      }
    }
    return true;
  });
  for (const auto& [node, want] : wanted) {
    bool under_way = false;
    for (const auto& [id, recall] : rs.recalls)
      if (recall.node == node && recall.range.contains(want.range) &&
          (recall.to == LeaseMode::None || recall.to == want.to))
        under_way = true;
    if (under_way) continue;
    uint64_t id = next_recall_++;
    rs.recalls.emplace(id, OutstandingRecall{node, want.range, want.to});
    recalls_.emplace(id, file);
    actions.push_back(SendRecall{
        node,
        Recall{
            .file = file, .recall = id, .resource = resource, .to = want.to, .range = want.range}});
    if (resource == Resource::Attributes) bounce_later(node, file, actions);
  }
  return !wanted.empty();
}

// Of those before a place in line: what keeps others out of a part of the file.
class Home::Ahead {
 public:
  explicit Ahead(PageRange part) : part_(part) {}
  void add(const Waiter& waiter) {
    if (!waiter.suspended && waiter.range.overlaps(part_))
      of_mode_[static_cast<size_t>(waiter.mode)].add(waiter.range.intersect(part_));
  }
  // For a range within the part.
  bool blocks(const Waiter& waiter) const {
    for (size_t mode = 0; mode < of_mode_.size(); ++mode)
      if (!compatible(static_cast<LeaseMode>(mode), waiter.mode) &&
          of_mode_[mode].overlaps(waiter.range))
        return true;
    return false;
  }
  bool blocks_all() const {
    return of_mode_[static_cast<size_t>(LeaseMode::Exclusive)].contains(part_);
  }

 private:
  const PageRange part_;
  std::array<PageSet, 4> of_mode_;
};

// Nobody before it in line keeps it out. False: it stays, to wait, or as an operation that holds
// now what it needs.
bool Home::may_be_granted(FileId file, FileState& fs, Resource resource, Waiter& waiter,
                          HomeActions& actions) {
  ResourceState& rs = fs.of(resource);
  // I5: the ack of a recall under way to this very node would take the new grant with it.
  if (!waiter.operation &&
      std::any_of(rs.recalls.begin(), rs.recalls.end(), [&](const auto& entry) {
        return entry.second.node == waiter.node && entry.second.range.overlaps(waiter.range);
      }))
    return false;
  const size_t recalls_before = rs.recalls.size();
  const bool conflict = recall_conflicts(file, rs, resource, waiter, actions);
  if (conflict && !(mistakes_.has(Mistake::GrantBeforeAcks) && recalls_before == rs.recalls.size()))
    return false;
  if (waiter.operation) {
    waiter.holding = true;
    if (std::exchange(waiter.yielded, false)) {
      // It knows that it holds this one, and waits for data.
      if (Waiter* second = fs.of(Resource::Data).waiting_for(*waiter.operation))
        second->suspended = false;
      promote(file, fs, Resource::Data, actions);
    } else {
      actions.push_back(OperationReady{
          .operation = *waiter.operation, .file = file, .resource = resource, .error = 0});
    }
    return false;
  }
  if (conflict) {  // GrantBeforeAcks only: the map must stay sane for the run to go on
    std::vector<std::pair<PageRange, NodeId>> strip;
    rs.holders.each(waiter.range, [&](PageRange range, const Holding& holding) {
      for (NodeId node : holding.nodes)
        if (node != waiter.node) strip.emplace_back(range, node);
      return true;
    });
    for (auto& [range, node] : strip)
      leases_changed(
          file, fs, node,
          rs.holders.reduce(
              range, node, waiter.mode == LeaseMode::Shared ? LeaseMode::Shared : LeaseMode::None));
  }
  return true;
}

// Thousands may wait, for a page each (a database that recovers) or for all of it: who comes last
// can only be kept out by the others, and when something has changed the line is gone along once.
void Home::promote(FileId file, FileState& fs, Resource resource, HomeActions& actions,
                   PageRange changed) {
  ResourceState& rs = fs.of(resource);
  // This one grants when nothing has changed but time.
  if (mistakes_.has(Mistake::GrantBeforeAcks)) changed = PageRange::all();
  const auto is_concerned = [&changed](const Waiter& w) {
    // The others wait for what they waited for before.
    return w.range.overlaps(changed) && !w.holding && !w.suspended;
  };
  PageRange part = kUnit;
  if (resource == Resource::Data) {
    part = {kPageEnd, 0};
    for (const Waiter& w : rs.waiters)
      if (is_concerned(w))
        part = {std::min(part.first, w.range.first), std::max(part.end, w.range.end)};
  }
  if (!part.empty()) {
    Ahead ahead(part);
    bool within = true;  // all that was granted lies in the part
    for (auto it = rs.waiters.begin(); it != rs.waiters.end();) {
      if (within && ahead.blocks_all()) break;
      const bool blocks =
          !is_concerned(*it) || (part.contains(it->range) ? ahead.blocks(*it) : blocked(rs, it));
      if (blocks || !may_be_granted(file, fs, resource, *it, actions)) {
        ahead.add(*it);
        ++it;
        continue;
      }
      const Waiter granted = *it;
      no_longer_waits(granted);
      it = rs.waiters.erase(it);
      // Whoever was behind it in line comes later in the list.
      within = within && part.contains(granted.range);
      changed = {std::min(changed.first, granted.range.first),
                 std::max(changed.end, granted.range.end)};
      grant(file, fs, resource, granted, actions);
    }
  }
  bounce(file, fs, actions);
}

// The one that has come last.
void Home::promote_last(FileId file, FileState& fs, Resource resource, HomeActions& actions) {
  if (mistakes_.has(Mistake::GrantBeforeAcks)) return promote(file, fs, resource, actions);
  ResourceState& rs = fs.of(resource);
  const auto last = std::prev(rs.waiters.end());
  if (!blocked(rs, last) && may_be_granted(file, fs, resource, *last, actions)) {
    const Waiter granted = *last;
    no_longer_waits(granted);
    rs.waiters.erase(last);
    grant(file, fs, resource, granted, actions);
  }
  bounce(file, fs, actions);
}

void Home::refuse(NodeId node, const LeaseRequest& message, int32_t error, HomeActions& actions) {
  FileState& fs = state(message.file);
  refuse(node, message.file, fs, message.resource, message.request, message.range, error, actions);
  forget_if_uninvolved(fs, node);
  erase_if_idle(message.file, actions);
}

void Home::refuse(NodeId node, FileId file, FileState& fs, Resource resource, uint64_t request,
                  PageRange range, int32_t error, HomeActions& actions) {
  Grant refusal{};
  refusal.file = file;
  refusal.request = request;
  refusal.resource = resource;
  refusal.range = range;
  refusal.sequence = ++known(fs, node).last_sequence;
  refusal.error = error;
  actions.push_back(SendGrant{node, std::move(refusal), {}});
}

void Home::no_longer_waits(const Waiter& waiter) {
  auto it = waiting_of_.find(waiter.node);
  if (it != waiting_of_.end() && --it->second == 0) waiting_of_.erase(it);
}

// The widest range around `need` that `node` can be given in `mode`: no conflicting holder, nobody
// waiting, no recall under way.
PageRange Home::widen(const ResourceState& rs, NodeId node, LeaseMode mode, PageRange need,
                      const Waiter* self) const {
  PageRange wide = rs.holders.widest(need, [&](const Holding& holding) {
    return holding.only(node) || (mode != LeaseMode::Exclusive && compatible(holding.mode, mode));
  });
  auto shrink = [&](PageRange other) {
    if (other.overlaps(need)) return;
    if (other.end <= need.first) wide.first = std::max(wide.first, other.end);
    if (other.first >= need.end) wide.end = std::min(wide.end, other.first);
  };
  for (const Waiter& waiter : rs.waiters)
    if (&waiter != self) shrink(waiter.range);
  for (const auto& [id, recall] : rs.recalls) shrink(recall.range);
  return wide;
}

void Home::grant(FileId file, FileState& fs, Resource resource, const Waiter& waiter,
                 HomeActions& actions) {
  ResourceState& rs = fs.of(resource);
  LeaseMode mode = waiter.mode;
  // With nobody else there the lease is Exclusive whatever was asked: the next write needs no
  // message. Not so for who only looks at attributes: a tree that one node has walked would cost
  // every other node a recall per file.
  bool alone =
      resource == Resource::Data || (resource == Resource::Attributes && mode != LeaseMode::Shared);
  rs.holders.each(waiter.range, [&](PageRange, const Holding& holding) {
    if (!holding.only(waiter.node)) alone = false;
    return alone;
  });
  for (const Waiter& other : rs.waiters)
    if (other.range.overlaps(waiter.range)) alone = false;
  for (const auto& [id, recall] : rs.recalls)
    if (recall.range.overlaps(waiter.range)) alone = false;
  if (alone) mode = LeaseMode::Exclusive;
  PageRange range =
      resource == Resource::Data ? widen(rs, waiter.node, mode, waiter.range, nullptr) : kUnit;
  leases_changed(file, fs, waiter.node, rs.holders.grant(range, waiter.node, mode));
  Grant message{
      .file = file,
      .request = waiter.request,
      .sequence = ++known(fs, waiter.node).last_sequence,
      .resource = resource,
      .mode = mode,
      .range = range,
      .error = 0,
      .size_floor = 0,
      .attributes = {},
      .watched = resource == Resource::Attributes && announcements_.watched(file, waiter.node),
      .data_offset = waiter.range.byte_offset(),
      .data = {}};
  actions.push_back(
      SendGrant{waiter.node, std::move(message), waiter.want_data ? waiter.range : PageRange{}});
  if (auto known = fs.nodes.find(waiter.node); known->second.leases > 0)
    budget_.is_last(waiter.node, known->second.place);
  keep_within_budget(waiter.node, actions);
}

}  // namespace vremote::coherence
