#include "coherence/home.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "coherence/home_files.h"

namespace vremote::coherence {

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

LeaseMode Home::held(NodeId node, FileId file, Resource resource, uint64_t page) const {
  auto it = files_.find(file);
  if (it == files_.end()) return LeaseMode::None;
  Holding holding = it->second->of(resource).holders.at(page);
  return holding.has(node) ? holding.mode : LeaseMode::None;
}

}  // namespace vremote::coherence
