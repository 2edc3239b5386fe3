// How much each node has given the disk to do: dirty bytes to write, bytes to read for it. Tells
// when to stop listening to a node, and when to go on.
//
// Only work that needs nothing but the disk is counted. Requests that wait for other nodes must not
// be: what they wait for may be an ack behind them on the same connection.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <utility>

#include "base/check.h"
#include "base/ids.h"

namespace vremote::node {

// Thread-safe.
class UndoneWork {
 public:
  // Called in the order of the changes; must not wait, nor call back.
  using Throttle = std::function<void(NodeId node, bool stop)>;

  explicit UndoneWork(Throttle throttle, uint64_t most = uint64_t{128} << 20)
      : throttle_(std::move(throttle)), most_(most) {}

  void begin(NodeId node, uint64_t bytes) {
    std::lock_guard lock(mutex_);
    Of& of = nodes_[node];
    of.bytes += bytes;
    ++of.pieces;
    if (of.stopped || of.bytes <= most_) return;
    of.stopped = true;
    throttle_(node, true);
  }
  void end(NodeId node, uint64_t bytes) {
    std::lock_guard lock(mutex_);
    auto it = nodes_.find(node);
    VR_CHECK(it != nodes_.end() && it->second.bytes >= bytes);
    Of& of = it->second;
    of.bytes -= bytes;
    --of.pieces;
    if (of.stopped && of.bytes <= most_ / 2) {
      of.stopped = false;
      throttle_(node, false);
    }
    if (of.pieces == 0) nodes_.erase(it);
  }
  // It is not listened to.
  bool has_stopped(NodeId node) const {
    std::lock_guard lock(mutex_);
    auto it = nodes_.find(node);
    return it != nodes_.end() && it->second.stopped;
  }

 private:
  struct Of {
    uint64_t bytes = 0, pieces = 0;
    bool stopped = false;
  };
  const Throttle throttle_;
  const uint64_t most_;
  mutable std::mutex mutex_;
  std::map<NodeId, Of> nodes_;
};

}  // namespace vremote::node
