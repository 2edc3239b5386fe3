// Operations that run at the home, and the nodes that are busy with a truncation (B1 to B4).
#include <algorithm>
#include <cerrno>
#include <iterator>
#include <set>

#include "coherence/home_files.h"

namespace vremote::coherence {

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
  std::list<Waiter>& line = fs.of(need.resource).waiters;
  places_[operation].push_back({need.file, need.resource, std::prev(line.end())});
  if (need.truncation_of && fs.busy(*need.truncation_of))
    let_pass(need.file, fs, *need.truncation_of, actions);
  promote(need.file, fs, need.resource, actions);
  // It may wait from here on for one that has said before that it is busy (B3).
  for (NodeId node : fs.busy_nodes())
    if (node != need.truncation_of) let_pass(need.file, fs, node, actions);
}

void Home::finish(OperationId operation, FileId file, HomeActions& actions) {
  auto it = files_.find(file);
  if (it == files_.end()) return;
  FileState& fs = *it->second;
  const auto of_operation = places_.find(operation);
  if (of_operation == places_.end()) return;
  std::vector<Place> own;
  std::erase_if(of_operation->second, [&](const Place& place) {
    if (place.file == file) own.push_back(place);
    return place.file == file;
  });
  if (of_operation->second.empty()) places_.erase(of_operation);
  std::set<NodeId> excepted;
  std::ranges::sort(own, {}, &Place::resource);
  for (const Place& place : own) {
    const Waiter waiter = *place.waiter;
    for (const std::optional<NodeId>& node : {waiter.except, waiter.truncation_of})
      if (node) excepted.insert(*node);
    fs.of(place.resource).waiters.erase(place.waiter);
    // B4: the truncating node learns of its truncation from the reply, and may show cut pages until
    // then. Nobody else learns the new size before it says that they are gone.
    if (place.resource == Resource::Attributes && waiter.holding && waiter.truncation_of &&
        fs.nodes.contains(*waiter.truncation_of) &&
        !mistakes_.has(Mistake::TruncationSeenElsewhereFirst)) {
      const Waiter wish{.operation = {},
                        .node = *waiter.truncation_of,
                        .except = waiter.truncation_of,
                        .request = 0,
                        .mode = LeaseMode::Exclusive,
                        .range = kUnit,
                        .want_data = false,
                        .holding = false};
      grant(file, fs, Resource::Attributes, wish, actions);
    }
    promote(file, fs, place.resource, actions);
  }
  for (NodeId node : excepted) forget_if_uninvolved(fs, node);
  erase_if_idle(file, actions);
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

}  // namespace vremote::coherence
