// Which nodes must know at once that a file has grown, and who waits until they do (K16).
//
// A kernel raises SIGBUS for a page behind the size that it has for the file, and asks nobody. So
// whoever makes a file longer by a page waits until the kernels of all nodes know that have it open
// for reading: without such a handle there is no mapping. A node says so when it gives up the
// Attributes, which it needs to open the file; so when one has them Exclusive, or an operation at
// the home, all that watch are known. The size stays meanwhile: nobody is shown one that a
// truncation has made too large.
//
// For each file and each node that watches it there is an entry here. A node for which that would
// be too many watches all files from then on, until its session is over: more is shown to it than
// it needs, never less.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/ids.h"

namespace vremote::coherence {

using OperationId = uint64_t;

class Announcements {
 public:
  // Who announces: an operation at the home, or a node.
  struct By {
    std::optional<OperationId> operation;
    NodeId node;
    uint64_t announcement = 0;
  };
  struct Pending {
    FileId file;
    By by;
    std::map<NodeId, uint64_t> waiting;  // with its show; never empty
  };

  Announcements(size_t entries_of_node, size_t entries_in_all)
      : entries_of_node_(entries_of_node), entries_in_all_(entries_in_all) {}

  void watch(FileId file, NodeId node, bool watches) {
    if (watches) {
      if (watch_all_.contains(node)) return;
      if (const auto it = watchers_.find(file); it != watchers_.end() && it->second.contains(node))
        return;
      if (const auto of = entries_of_.find(node);
          entries_ >= entries_in_all_ ||
          (of != entries_of_.end() && of->second >= entries_of_node_)) {
        forget(node);
        watch_all_.insert(node);
        return;
      }
      watchers_[file].insert(node);
      ++entries_;
      ++entries_of_[node];
    } else if (auto it = watchers_.find(file); it != watchers_.end()) {
      if (it->second.erase(node) == 0) return;
      if (it->second.empty()) watchers_.erase(it);
      --entries_;
      if (auto of = entries_of_.find(node); --of->second == 0) entries_of_.erase(of);
    }
  }
  std::vector<NodeId> watchers(FileId file, std::optional<NodeId> except) const {
    std::set<NodeId> all = watch_all_;
    if (auto it = watchers_.find(file); it != watchers_.end())
      all.insert(it->second.begin(), it->second.end());
    if (except) all.erase(*except);
    return {all.begin(), all.end()};
  }
  bool watched(FileId file, std::optional<NodeId> except) const {
    const auto any = [&](const std::set<NodeId>& nodes) {
      return std::any_of(nodes.begin(), nodes.end(), [&](NodeId node) { return node != except; });
    };
    auto it = watchers_.find(file);
    return any(watch_all_) || (it != watchers_.end() && any(it->second));
  }
  size_t entries() const { return entries_; }

  // A show for each watcher: numbers that `next` gives. None of `watchers`: begin nothing.
  const Pending& begin(FileId file, const By& by, const std::vector<NodeId>& watchers,
                       uint64_t& next) {
    Pending pending{file, by, {}};
    for (NodeId node : watchers) {
      shows_.emplace(next, next_);
      pending.waiting.emplace(node, next++);
    }
    return pending_.emplace(next_++, std::move(pending)).first->second;
  }
  bool announces(NodeId node, FileId file) const {
    return std::any_of(pending_.begin(), pending_.end(), [&](const auto& entry) {
      const Pending& p = entry.second;
      return !p.by.operation && p.by.node == node && p.file == file;
    });
  }
  // Who need not wait any more. A show that is over already means nothing.
  std::optional<By> shown(NodeId node, FileId file, uint64_t show) {
    const auto known = shows_.find(show);
    if (known == shows_.end()) return std::nullopt;
    const auto it = pending_.find(known->second);
    const auto waiting = it->second.waiting.find(node);
    if (it->second.file != file || waiting == it->second.waiting.end() || waiting->second != show)
      return std::nullopt;
    shows_.erase(known);
    it->second.waiting.erase(waiting);
    if (!it->second.waiting.empty()) return std::nullopt;
    const By by = it->second.by;
    pending_.erase(it);
    return by;
  }
  // The same: the node shows nothing any more, and need not be told anything.
  std::vector<std::pair<FileId, By>> node_gone(NodeId node) {
    forget(node);
    watch_all_.erase(node);
    std::vector<std::pair<FileId, By>> done;
    for (auto it = pending_.begin(); it != pending_.end();) {
      Pending& p = it->second;
      const bool its_own = !p.by.operation && p.by.node == node;
      if (auto waiting = p.waiting.find(node); waiting != p.waiting.end()) {
        shows_.erase(waiting->second);
        p.waiting.erase(waiting);
      }
      const bool last = p.waiting.empty();
      if (last && !its_own) done.emplace_back(p.file, p.by);
      if (its_own)
        for (const auto& [other, show] : p.waiting) shows_.erase(show);
      it = last || its_own ? pending_.erase(it) : std::next(it);
    }
    return done;
  }
  const std::map<uint64_t, Pending>& pending() const { return pending_; }

 private:
  void forget(NodeId node) {
    const auto of = entries_of_.find(node);
    if (of == entries_of_.end()) return;
    entries_ -= of->second;
    entries_of_.erase(of);
    for (auto it = watchers_.begin(); it != watchers_.end();) {
      it->second.erase(node);
      it = it->second.empty() ? watchers_.erase(it) : std::next(it);
    }
  }

  const size_t entries_of_node_, entries_in_all_;
  size_t entries_ = 0;
  std::map<NodeId, size_t> entries_of_;                                // none is 0
  std::set<NodeId> watch_all_;                                         // they have no entries
  std::unordered_map<FileId, std::set<NodeId>, FileIdHash> watchers_;  // no set is empty
  std::map<uint64_t, Pending> pending_;
  std::map<uint64_t, uint64_t> shows_;  // whose they are in pending_
  uint64_t next_ = 1;
};

}  // namespace vremote::coherence
