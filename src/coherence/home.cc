#include "coherence/home.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <set>
#include <utility>

namespace vremote::coherence {

// A request of a node, or an operation at the home; waiting, or (an operation only) holding until
// it is finished.
struct Home::Waiter {
  std::optional<OperationId> operation;
  NodeId node;                   // who asked, when not an operation
  std::optional<NodeId> except;  // whose leases do not conflict
  std::optional<NodeId> truncation_of = {};
  uint64_t request = 0;
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

struct Home::FileState {
  struct PerNode {
    uint64_t last_sequence = 0;
    bool in_use = false;
  };
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
  bool busy(NodeId node) const {
    return std::any_of(resources.begin(), resources.end(),
                       [&](const ResourceState& rs) { return rs.busy(node); });
  }
  ResourceState& of(Resource resource) { return resources[static_cast<size_t>(resource)]; }
  const ResourceState& of(Resource resource) const {
    return resources[static_cast<size_t>(resource)];
  }
};

namespace {
constexpr std::array kResources{Resource::Entries, Resource::Attributes, Resource::Data};
}  // namespace

Home::Home(Mistakes mistakes, size_t requests_max)
    : mistakes_(mistakes), requests_max_(requests_max) {}
Home::~Home() = default;

Home::FileState& Home::state(FileId file) {
  auto& slot = files_[file];
  if (!slot) slot = std::make_unique<FileState>();
  return *slot;
}

void Home::receive(NodeId node, const LeaseRequest& message, HomeActions& actions) {
  const bool unit = message.resource != Resource::Data;
  if (message.mode == LeaseMode::None || message.range.empty() || message.range.end > kPageEnd ||
      (unit && message.range != kUnit) ||
      (message.mode == LeaseMode::Update && message.resource != Resource::Attributes)) {
    actions.push_back(CloseSession{node, "a lease request without sense"});
    return;
  }
  FileState& fs = state(message.file);
  size_t& waiting = waiting_of_[node];
  if (waiting >= requests_max_) {
    refuse(node, message.file, fs, message.resource, message.request, message.range, ENOBUFS,
           actions);
    return;
  }
  ++waiting;
  fs.of(message.resource)
      .waiters.push_back(Waiter{.operation = {},
                                .node = node,
                                .except = node,
                                .request = message.request,
                                .mode = message.mode,
                                .range = message.range,
                                .want_data = message.want_data,
                                .holding = false});
  promote(message.file, fs, message.resource, actions, message.range);
}

void Home::receive(NodeId node, const RecallAck& message, HomeActions& actions) {
  auto it = files_.find(message.file);
  if (it == files_.end()) {
    actions.push_back(CloseSession{node, "an ack of a recall that nobody sent"});
    return;
  }
  FileState& fs = *it->second;
  for (Resource resource : kResources) {
    ResourceState& rs = fs.of(resource);
    auto recall = rs.recalls.find(message.recall);
    if (recall == rs.recalls.end()) continue;
    if (recall->second.node == node && message.busy) {
      recall->second.busy = true;
      let_pass(message.file, fs, node, actions);
      return;
    }
    if (recall->second.node != node || !message.given.contains(recall->second.range) ||
        message.given.end > kPageEnd) {
      actions.push_back(CloseSession{node, "an ack that does not fit its recall"});
      return;
    }
    // I5: a grant this ack's sender had not seen may lie in the wider part.
    auto known = fs.nodes.find(node);
    const bool current = known != fs.nodes.end() && known->second.last_sequence == message.seen;
    PageRange given = current ? message.given : recall->second.range;
    if (resource == Resource::Attributes) {
      if (message.attributes.has_size || message.attributes.has_mtime)
        actions.push_back(ApplyAttributes{message.file, message.attributes});
      set_in_use(message.file, fs, node, message.in_use, actions);
      announcements_.watch(message.file, node, message.in_use && message.watches);
    }
    rs.holders.reduce(given, node, recall->second.to);
    recalls_.erase(recall->first);
    rs.recalls.erase(recall);
    promote(message.file, fs, resource, actions, given);
    erase_if_idle(message.file, actions);
    return;
  }
  actions.push_back(CloseSession{node, "an ack of a recall that nobody sent"});
}

void Home::receive(NodeId node, Flush message, HomeActions& actions) {
  actions.push_back(ApplyFlush{node, std::move(message)});
}

void Home::receive(NodeId node, const Fetch& message, HomeActions& actions) {
  if (message.range.empty() || message.range.end > kPageEnd) {
    actions.push_back(CloseSession{node, "a fetch without sense"});
    return;
  }
  actions.push_back(ServeFetch{node, message});
}

void Home::receive(NodeId node, const Release& message, HomeActions& actions) {
  auto it = files_.find(message.file);
  if (it == files_.end()) return;
  FileState& fs = *it->second;
  auto known = fs.nodes.find(node);
  if (known == fs.nodes.end()) return;
  announcements_.watch(message.file, node, false);
  if (!message.leases) {
    set_in_use(message.file, fs, node, false, actions);
    return;
  }
  if (known->second.last_sequence != message.seen) return;  // I5
  set_in_use(message.file, fs, node, false, actions);
  for (Resource resource : kResources) fs.of(resource).holders.remove(node);
  fs.nodes.erase(known);
  for (Resource resource : kResources) promote(message.file, fs, resource, actions);
  erase_if_idle(message.file, actions);
}

void Home::node_gone(NodeId node, HomeActions& actions) {
  waiting_of_.erase(node);
  for (const auto& [file, by] : announcements_.node_gone(node)) shown(file, by, actions);
  std::vector<FileId> touched;
  for (auto& [file, fs] : files_) touched.push_back(file);
  for (FileId file : touched) {
    FileState& fs = *files_.at(file);
    set_in_use(file, fs, node, false, actions);
    fs.nodes.erase(node);
    for (Resource resource : kResources) {
      ResourceState& rs = fs.of(resource);
      rs.holders.remove(node);
      std::erase_if(rs.waiters, [&](const Waiter& w) { return !w.operation && w.node == node; });
      std::erase_if(rs.recalls, [&](const auto& entry) {
        if (entry.second.node != node) return false;
        recalls_.erase(entry.first);
        return true;
      });
    }
    for (Resource resource : kResources) promote(file, fs, resource, actions);
    erase_if_idle(file, actions);
  }
}

void Home::acquire(OperationId operation, const OperationNeed& need, HomeActions& actions) {
  FileState& fs = state(need.file);
  fs.of(need.resource)
      .waiters.push_back(Waiter{.operation = operation,
                                .node = {},
                                .except = need.except,
                                .truncation_of = need.truncation_of,
                                .request = 0,
                                .mode = need.mode,
                                .range = need.range,
                                .want_data = false,
                                .holding = false});
  if (need.truncation_of && fs.busy(*need.truncation_of))
    let_pass(need.file, fs, *need.truncation_of, actions);
  promote(need.file, fs, need.resource, actions);
  // It may wait from here on for one that has said before that it is busy (B3).
  for (NodeId node : fs.busy_nodes())
    if (node != need.truncation_of) let_pass(need.file, fs, node, actions);
}

void Home::opened(NodeId node, FileId file, HomeActions& actions) {
  set_in_use(file, state(file), node, true, actions);
  // Perhaps for writing only; it says so with the next ack of its Attributes.
  announcements_.watch(file, node, true);
}

bool Home::reclaimed(NodeId node, FileId file, const std::vector<PageRange>& pages,
                     HomeActions& actions) {
  FileState& fs = state(file);
  ResourceState& data = fs.of(Resource::Data);
  bool free = true;
  for (const PageRange& range : pages) {
    data.holders.each(range, [&](PageRange, const Holding& holding) {
      free = free && holding.only(node);
      return free;
    });
    // What has changed behind our back is seen to at once.
    for (const Waiter& waiter : data.waiters)
      free = free && !(waiter.holding && waiter.range.overlaps(range));
  }
  if (free) {
    fs.nodes.try_emplace(node);
    for (const PageRange& range : pages) data.holders.grant(range, node, LeaseMode::Exclusive);
  }
  erase_if_idle(file, actions);
  return free;
}

void Home::finish(OperationId operation, FileId file, HomeActions& actions) {
  auto it = files_.find(file);
  if (it == files_.end()) return;
  FileState& fs = *it->second;
  // B4: the truncating node learns of its truncation from the reply, and may show cut pages until
  // then. Nobody else learns the new size before it says that they are gone.
  std::list<Waiter>& line = fs.of(Resource::Attributes).waiters;
  if (auto own = std::find_if(line.begin(), line.end(),
                              [&](const Waiter& w) { return w.operation == operation; });
      own != line.end() && own->holding && own->truncation_of &&
      fs.nodes.contains(*own->truncation_of) &&
      !mistakes_.has(Mistake::TruncationSeenElsewhereFirst)) {
    const Waiter wish{.operation = {},
                      .node = *own->truncation_of,
                      .except = own->truncation_of,
                      .request = 0,
                      .mode = LeaseMode::Exclusive,
                      .range = kUnit,
                      .want_data = false,
                      .holding = false};
    line.erase(own);
    grant(file, fs, Resource::Attributes, wish, actions);
    promote(file, fs, Resource::Attributes, actions);
  }
  for (Resource resource : kResources) {
    ResourceState& rs = fs.of(resource);
    if (std::erase_if(rs.waiters, [&](const Waiter& w) { return w.operation == operation; }) > 0)
      promote(file, fs, resource, actions);
  }
  erase_if_idle(file, actions);
}

void Home::offer(NodeId node, FileId file, Resource resource, LeaseMode mode,
                 HomeActions& actions) {
  FileState& fs = state(file);
  ResourceState& rs = fs.of(resource);
  Waiter wish{.operation = {},
              .node = node,
              .except = node,
              .request = 0,
              .mode = mode,
              .range = kUnit,
              .want_data = false,
              .holding = false};
  bool free = true;
  for (const Waiter& waiter : rs.waiters)
    if (waiter.range.overlaps(wish.range) && !compatible(waiter.mode, mode)) free = false;
  for (const auto& [id, recall] : rs.recalls)
    if (recall.range.overlaps(wish.range)) free = false;
  rs.holders.each(wish.range, [&](PageRange, const Holding& holding) {
    const bool has_it = holding.has(node) && covers(holding.mode, mode);
    if (has_it || (!holding.only(node) && !compatible(holding.mode, mode))) free = false;
    return true;
  });
  if (free) {
    grant(file, fs, resource, wish, actions);
  } else {
    erase_if_idle(file, actions);
  }
}

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
  }
  return !wanted.empty();
}

void Home::promote(FileId file, FileState& fs, Resource resource, HomeActions& actions,
                   PageRange changed) {
  ResourceState& rs = fs.of(resource);
  // This one grants when nothing has changed but time.
  if (mistakes_.has(Mistake::GrantBeforeAcks)) changed = PageRange::all();
  for (auto it = rs.waiters.begin(); it != rs.waiters.end();) {
    // The others wait for what they waited for before. A database that recovers may have thousands
    // waiting for a page each: looking at all of them for each ack would take it minutes.
    if (!it->range.overlaps(changed) || it->holding || it->suspended || blocked(rs, it)) {
      ++it;
      continue;
    }
    // I5: the ack of a recall under way to this very node would take the new grant with it.
    if (!it->operation && std::any_of(rs.recalls.begin(), rs.recalls.end(), [&](const auto& entry) {
          return entry.second.node == it->node && entry.second.range.overlaps(it->range);
        })) {
      ++it;
      continue;
    }
    const size_t recalls_before = rs.recalls.size();
    bool conflict = recall_conflicts(file, rs, resource, *it, actions);
    if (conflict &&
        !(mistakes_.has(Mistake::GrantBeforeAcks) && recalls_before == rs.recalls.size())) {
      ++it;
      continue;
    }
    if (it->operation) {
      it->holding = true;
      if (std::exchange(it->yielded, false)) {
        // It knows that it holds this one, and waits for data.
        if (Waiter* second = fs.of(Resource::Data).waiting_for(*it->operation))
          second->suspended = false;
        promote(file, fs, Resource::Data, actions);
      } else {
        actions.push_back(OperationReady{
            .operation = *it->operation, .file = file, .resource = resource, .error = 0});
      }
      ++it;
      continue;
    }
    if (conflict) {  // GrantBeforeAcks only: the map must stay sane for the run to go on
      std::vector<std::pair<PageRange, NodeId>> strip;
      rs.holders.each(it->range, [&](PageRange range, const Holding& holding) {
        for (NodeId node : holding.nodes)
          if (node != it->node) strip.emplace_back(range, node);
        return true;
      });
      for (auto& [range, node] : strip)
        rs.holders.reduce(range, node,
                          it->mode == LeaseMode::Shared ? LeaseMode::Shared : LeaseMode::None);
    }
    Waiter granted = *it;
    no_longer_waits(granted);
    it = rs.waiters.erase(it);
    // Whoever was behind it in line comes later in the list.
    changed = {std::min(changed.first, granted.range.first),
               std::max(changed.end, granted.range.end)};
    grant(file, fs, resource, granted, actions);
  }
  bounce(file, fs, actions);
}

// `node` cannot ack a recall before its own truncation is answered (K8): B1 and B3.
void Home::let_pass(FileId file, FileState& fs, NodeId node, HomeActions& actions) {
  for (Resource resource : kResources) {
    std::list<Waiter>& waiters = fs.of(resource).waiters;
    auto is_theirs = [&](const Waiter& w) {
      return w.operation && w.truncation_of == node && !w.holding;
    };
    auto place =
        std::find_if(waiters.begin(), waiters.end(), [](const Waiter& w) { return !w.holding; });
    for (auto it = place; it != waiters.end();) {
      auto next = std::next(it);
      if (is_theirs(*it)) {
        if (it == place) {
          ++place;
        } else {
          waiters.splice(place, waiters, it);
        }
      }
      it = next;
    }
  }
  ResourceState& attributes = fs.of(Resource::Attributes);
  ResourceState& data = fs.of(Resource::Data);
  auto mine = std::find_if(
      attributes.waiters.begin(), attributes.waiters.end(),
      [&](const Waiter& w) { return w.operation && w.truncation_of == node && !w.holding; });
  if (mine != attributes.waiters.end() && !mine->suspended) {
    for (auto holder = attributes.waiters.begin(); holder != mine; ++holder) {
      if (!holder->holding || compatible(holder->mode, mine->mode)) continue;
      Waiter* second = data.waiting_for(*holder->operation);
      if (second == nullptr || second->holding) continue;  // it has all it needs, and ends
      if (!data.waits_for_busy(*second, node)) continue;
      if (mine->yielded || holder->gave_way) {
        mine->suspended = true;
        actions.push_back(OperationReady{.operation = *mine->operation,
                                         .file = file,
                                         .resource = Resource::Attributes,
                                         .error = EINTR});
        break;
      }
      holder->holding = false;
      holder->yielded = holder->gave_way = true;
      second->suspended = true;
      attributes.waiters.splice(std::next(mine), attributes.waiters, holder);
      break;
    }
  }
  for (Resource resource : kResources) promote(file, fs, resource, actions);
}

void Home::refuse(NodeId node, FileId file, FileState& fs, Resource resource, uint64_t request,
                  PageRange range, int32_t error, HomeActions& actions) {
  Grant refusal{};
  refusal.file = file;
  refusal.request = request;
  refusal.resource = resource;
  refusal.range = range;
  refusal.sequence = ++fs.nodes[node].last_sequence;
  refusal.error = error;
  actions.push_back(SendGrant{node, std::move(refusal), {}});
}

void Home::no_longer_waits(const Waiter& waiter) {
  auto it = waiting_of_.find(waiter.node);
  if (it != waiting_of_.end() && --it->second == 0) waiting_of_.erase(it);
}

// B2: whoever has the Attributes that a pressing operation waits for, and keeps them until it gets
// data, is asked to let go.
void Home::bounce(FileId file, FileState& fs, HomeActions& actions) {
  ResourceState& attributes = fs.of(Resource::Attributes);
  ResourceState& data = fs.of(Resource::Data);
  if (attributes.recalls.empty() || data.waiters.empty()) return;
  const bool pressing =
      std::any_of(attributes.waiters.begin(), attributes.waiters.end(), [&](const Waiter& w) {
        return w.operation && w.truncation_of && !w.holding && !w.suspended &&
               fs.busy(*w.truncation_of);
      });
  if (!pressing) return;
  bool any = false;
  for (auto it = data.waiters.begin(); it != data.waiters.end();) {
    const bool keeps =
        !it->operation &&
        std::any_of(attributes.recalls.begin(), attributes.recalls.end(),
                    [&](const auto& entry) { return entry.second.node == it->node; });
    if (!keeps) {
      ++it;
      continue;
    }
    refuse(it->node, file, fs, Resource::Data, it->request, it->range, EAGAIN, actions);
    no_longer_waits(*it);
    it = data.waiters.erase(it);
    any = true;
  }
  if (any) promote(file, fs, Resource::Data, actions);
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
  rs.holders.grant(range, waiter.node, mode);
  Grant message{
      .file = file,
      .request = waiter.request,
      .sequence = ++fs.nodes[waiter.node].last_sequence,
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
}

void Home::set_in_use(FileId file, FileState& fs, NodeId node, bool in_use, HomeActions& actions) {
  auto it = fs.nodes.find(node);
  if (it == fs.nodes.end()) {
    if (!in_use) return;
    it = fs.nodes.emplace(node, FileState::PerNode{}).first;
  }
  it->second.in_use = in_use;
  bool any = false;
  for (const auto& [id, per_node] : fs.nodes) any = any || per_node.in_use;
  if (any == fs.pinned) return;
  fs.pinned = any;
  if (any) {
    actions.push_back(PinFile{file});
  } else {
    actions.push_back(UnpinFile{file});
  }
}

void Home::erase_if_idle(FileId file, HomeActions& actions) {
  auto it = files_.find(file);
  if (it == files_.end() || it->second->pinned) return;
  for (const ResourceState& rs : it->second->resources)
    if (!rs.idle()) return;
  // A node that gave up every lease by recalls still knows the file and its grant numbers: they
  // must go on counting.
  if (!it->second->nodes.empty()) return;
  files_.erase(it);
  actions.push_back(FileIdle{file});
}

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

std::vector<Home::PendingRecall> Home::pending_recalls(size_t most) const {
  std::vector<PendingRecall> out;
  for (const auto& [id, file] : recalls_) {
    if (out.size() == most) break;
    const FileState& fs = *files_.at(file);
    for (Resource resource : kResources) {
      const auto& recalls = fs.of(resource).recalls;
      if (auto it = recalls.find(id); it != recalls.end())
        out.push_back({id, file, it->second.node, resource, it->second.range});
    }
  }
  for (const auto& [id, pending] : announcements_.pending())
    for (const auto& [node, show] : pending.waiting)
      if (out.size() < most) out.push_back({show, pending.file, node, Resource::Attributes, kUnit});
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

// ---- sizes that kernels must know (K16) ----

void Home::receive(NodeId node, const Announce& message, HomeActions& actions) {
  if (held(node, message.file, Resource::Attributes, 0) != LeaseMode::Exclusive) {
    actions.push_back(CloseSession{node, "announces the size of a file that others may change"});
    return;
  }
  if (announcements_.announces(node, message.file)) {
    actions.push_back(CloseSession{node, "announces one size before another is known"});
    return;
  }
  show(message.file, {.operation = {}, .node = node, .announcement = message.announcement},
       message.size, announcements_.watchers(message.file, node), actions);
}

void Home::receive(NodeId node, const SizeShown& message, HomeActions& actions) {
  if (const auto by = announcements_.shown(node, message.file, message.show))
    shown(message.file, *by, actions);
}

bool Home::announce(OperationId operation, FileId file, uint64_t size, std::optional<NodeId> except,
                    HomeActions& actions) {
  const std::vector<NodeId> watchers = announcements_.watchers(file, except);
  if (watchers.empty() || mistakes_.has(Mistake::GrowUnannounced)) return false;
  show(file, {.operation = operation}, size, watchers, actions);
  return true;
}

void Home::show(FileId file, const Announcements::By& by, uint64_t size,
                const std::vector<NodeId>& watchers, HomeActions& actions) {
  if (watchers.empty()) {
    shown(file, by, actions);
    return;
  }
  // Numbered as recalls are: whoever judges how long a node takes tells them apart by that.
  for (const auto& [node, id] : announcements_.begin(file, by, watchers, next_recall_).waiting)
    actions.push_back(SendShowSize{node, ShowSize{.file = file, .show = id, .size = size}});
}

void Home::shown(FileId file, const Announcements::By& by, HomeActions& actions) {
  if (by.operation) {
    actions.push_back(SizesShown{*by.operation, file});
  } else {
    actions.push_back(
        SendAnnounced{by.node, Announced{.file = file,
                                         .announcement = by.announcement,
                                         .watched = announcements_.watched(file, by.node)}});
  }
}

LeaseMode Home::held(NodeId node, FileId file, Resource resource, uint64_t page) const {
  auto it = files_.find(file);
  if (it == files_.end()) return LeaseMode::None;
  Holding holding = it->second->of(resource).holders.at(page);
  return holding.has(node) ? holding.mode : LeaseMode::None;
}

void Home::check() const {
  std::map<NodeId, size_t> waiting;
  for (const auto& [file, fs] : files_)
    for (const ResourceState& rs : fs->resources)
      for (const Waiter& waiter : rs.waiters)
        if (!waiter.operation) ++waiting[waiter.node];
  size_t recalls = 0;
  for (const auto& [file, fs] : files_)
    for (const ResourceState& rs : fs->resources) recalls += rs.recalls.size();
  VR_CHECK_MSG(recalls == recalls_.size(), "the recalls under way are known");
  VR_CHECK_MSG(waiting == waiting_of_, "the requests that wait are counted");
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
