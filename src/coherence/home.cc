#include "coherence/home.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "coherence/home_files.h"

namespace vremote::coherence {

Home::Home(Mistakes mistakes, const HomeLimits& limits)
    : mistakes_(mistakes),
      announcements_(limits.leases.of_node, limits.leases.in_all),
      limits_(limits),
      budget_(limits.leases) {}
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
  if (const auto waiting = waiting_of_.find(node);
      waiting != waiting_of_.end() && waiting->second >= limits_.requests_of_node) {
    refuse(node, message, ENOBUFS, actions);
    return;
  }
  if (take_later(node, message, actions)) return;
  ++waiting_of_[node];
  FileState& fs = state(message.file);
  fs.of(message.resource)
      .waiters.push_back(Waiter{.operation = {},
                                .node = node,
                                .except = node,
                                .request = message.request,
                                .arrival = ++arrivals_,
                                .mode = message.mode,
                                .range = message.range,
                                .want_data = message.want_data,
                                .holding = false});
  promote_last(message.file, fs, message.resource, actions);
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
      // Who has too many open to be noted is shown all the same how files grow.
      set_in_use(message.file, fs, node, message.in_use, actions);
      announcements_.watch(message.file, node, message.in_use && message.watches);
    }
    leases_changed(message.file, fs, node, rs.holders.reduce(given, node, recall->second.to));
    recall_ended(recall->second);
    recalls_.erase(recall->first);
    rs.recalls.erase(recall);
    promote(message.file, fs, resource, actions, given);
    forget_if_uninvolved(fs, node);
    erase_if_idle(message.file, actions);
    keep_within_budget(node, actions);
    take_what_waited(actions);
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
  // Nothing else may be known of one that was not noted.
  announcements_.watch(message.file, node, false);
  auto it = files_.find(message.file);
  if (it == files_.end()) return;
  FileState& fs = *it->second;
  auto known = fs.nodes.find(node);
  if (known == fs.nodes.end()) return;
  if (!message.leases) {
    set_in_use(message.file, fs, node, false, actions);
    forget_if_uninvolved(fs, node);
    erase_if_idle(message.file, actions);
    return;
  }
  if (known->second.last_sequence != message.seen) return;  // I5
  set_in_use(message.file, fs, node, false, actions);
  for (Resource resource : kResources)
    leases_changed(message.file, fs, node, fs.of(resource).holders.remove(node));
  forget_if_uninvolved(fs, node);
  for (Resource resource : kResources) promote(message.file, fs, resource, actions);
  erase_if_idle(message.file, actions);
  keep_within_budget(node, actions);
  take_what_waited(actions);
}

void Home::node_gone(NodeId node, HomeActions& actions) {
  waiting_of_.erase(node);
  later_.erase(node);
  for (const auto& [file, by] : announcements_.node_gone(node)) shown(file, by, actions);
  std::vector<FileId> touched;
  for (auto& [file, fs] : files_) touched.push_back(file);
  for (FileId file : touched) {
    FileState& fs = *files_.at(file);
    set_in_use(file, fs, node, false, actions);
    for (Resource resource : kResources) {
      ResourceState& rs = fs.of(resource);
      leases_changed(file, fs, node, rs.holders.remove(node));
      std::erase_if(rs.waiters, [&](const Waiter& w) { return !w.operation && w.node == node; });
      std::erase_if(rs.recalls, [&](const auto& entry) {
        if (entry.second.node != node) return false;
        recall_ended(entry.second);
        recalls_.erase(entry.first);
        return true;
      });
    }
    fs.nodes.erase(node);
    for (Resource resource : kResources) promote(file, fs, resource, actions);
    erase_if_idle(file, actions);
  }
  counted_to_.erase(node);
  take_what_waited(actions);
}

bool Home::opened(NodeId node, FileId file, HomeActions& actions) {
  const bool noted = set_in_use(file, state(file), node, true, actions);
  // Perhaps for writing only; it says so with the next ack of its Attributes.
  announcements_.watch(file, node, true);
  erase_if_idle(file, actions);
  return noted;
}

bool Home::reclaimed(NodeId node, FileId file, const std::vector<PageRange>& pages,
                     HomeActions& actions) {
  if (budget_.is_full(node)) return false;
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
    for (const PageRange& range : pages)
      leases_changed(file, fs, node, data.holders.grant(range, node, LeaseMode::Exclusive));
  }
  erase_if_idle(file, actions);
  return free;
}

void Home::offer(NodeId node, FileId file, Resource resource, LeaseMode mode,
                 HomeActions& actions) {
  if (!budget_.has_room(node)) return;
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

bool Home::set_in_use(FileId file, FileState& fs, NodeId node, bool in_use, HomeActions& actions) {
  auto it = fs.nodes.find(node);
  const bool was = it != fs.nodes.end() && it->second.in_use;
  if (was == in_use) return true;
  if (in_use) {
    if (!may_open(node)) {
      ++opens_refused_;
      return false;
    }
    (void)known(fs, node);
    it = fs.nodes.find(node);
    ++open_of_[node];
    ++open_in_all_;
  } else {
    if (auto open = open_of_.find(node); --open->second == 0) open_of_.erase(open);
    --open_in_all_;
  }
  it->second.in_use = in_use;
  bool any = false;
  for (const auto& [id, per_node] : fs.nodes) any = any || per_node.in_use;
  if (any == fs.pinned) return true;
  fs.pinned = any;
  if (any) {
    actions.push_back(PinFile{file});
  } else {
    actions.push_back(UnpinFile{file});
  }
  return true;
}

bool Home::may_open(NodeId node) const {
  const auto open = open_of_.find(node);
  return (open == open_of_.end() || open->second < limits_.opens_of_node) &&
         open_in_all_ < limits_.opens_in_all;
}

void Home::erase_if_idle(FileId file, HomeActions& actions) {
  auto it = files_.find(file);
  if (it == files_.end() || it->second->pinned) return;
  for (const ResourceState& rs : it->second->resources)
    if (!rs.idle()) return;
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
