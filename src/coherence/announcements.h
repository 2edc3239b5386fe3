// Which nodes must know at once that a file has grown, and who waits until they do (K16).
//
// A kernel raises SIGBUS for a page behind the size that it has for the file, and asks nobody. So
// whoever makes a file longer by a page waits until the kernels of all nodes know that have it open
// for reading: without such a handle there is no mapping. A node says so when it gives up the
// Attributes, which it needs to open the file; so when one has them Exclusive, or an operation at
// the home, all that watch are known. The size stays meanwhile: nobody is shown one that a
// truncation has made too large.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
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

  void watch(FileId file, NodeId node, bool watches) {
    if (watches) {
      watchers_[file].insert(node);
    } else if (auto it = watchers_.find(file); it != watchers_.end()) {
      it->second.erase(node);
      if (it->second.empty()) watchers_.erase(it);
    }
  }
  std::vector<NodeId> watchers(FileId file, std::optional<NodeId> except) const {
    std::vector<NodeId> out;
    if (auto it = watchers_.find(file); it != watchers_.end())
      std::copy_if(it->second.begin(), it->second.end(), std::back_inserter(out),
                   [&](NodeId node) { return node != except; });
    return out;
  }
  bool watched(FileId file, std::optional<NodeId> except) const {
    auto it = watchers_.find(file);
    return it != watchers_.end() && std::any_of(it->second.begin(), it->second.end(),
                                                [&](NodeId node) { return node != except; });
  }

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
    for (auto it = watchers_.begin(); it != watchers_.end();) {
      it->second.erase(node);
      it = it->second.empty() ? watchers_.erase(it) : std::next(it);
    }
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
  std::unordered_map<FileId, std::set<NodeId>, FileIdHash> watchers_;  // no set is empty
  std::map<uint64_t, Pending> pending_;
  std::map<uint64_t, uint64_t> shows_;  // whose they are in pending_
  uint64_t next_ = 1;
};

}  // namespace vremote::coherence
