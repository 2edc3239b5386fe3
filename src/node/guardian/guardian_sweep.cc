#include "node/guardian/guardian_sweep.h"

#include <algorithm>
#include <utility>

namespace vremote::node {
namespace {

constexpr size_t kWorkers = 4;
constexpr size_t kWorkersMax = 2048;

}  // namespace

void GuardianSweep::fill(uint64_t node, uint64_t offset, uint64_t length) {
  if (length == 0) return;
  std::lock_guard lock(mutex_);
  uint64_t& end = fills_[node][offset];
  end = std::max(end, offset + length);
  ++counts_[node];
}

void GuardianSweep::begin_worker() {
  if (workers_ >= kWorkersMax) return;
  ++workers_;
  threads_.submit([this] { work(); });
}

void GuardianSweep::start(std::vector<uint64_t> nodes) {
  std::lock_guard lock(mutex_);
  left_ = nodes.size();
  todo_ = std::move(nodes);
  started_ = true;
  for (size_t i = 0; i < kWorkers && !todo_.empty(); ++i) begin_worker();
}

void GuardianSweep::work() {
  std::unique_lock lock(mutex_);
  while (!todo_.empty()) {
    const uint64_t node = todo_.back();
    todo_.pop_back();
    if (clear_.contains(node)) continue;
    std::vector<std::pair<uint64_t, uint64_t>> parts;  // offset and length; 0: to the end
    uint64_t from = 0;
    for (const auto& [offset, end] : fills_[node]) {
      if (offset > from) parts.emplace_back(from, offset - from);
      from = std::max(from, end);
    }
    parts.emplace_back(from, 0);
    under_way_[node] = counts_[node];
    lock.unlock();
    for (const auto& [offset, length] : parts) drop_(node, offset, length);
    lock.lock();
    under_way_.erase(node);
    if (clear_.insert(node).second) --left_;
  }
  --workers_;
}

void GuardianSweep::help() {
  threads_.help();
  std::lock_guard lock(mutex_);
  if (left_ == 0) return;
  for (auto it = under_way_.begin(); it != under_way_.end();) {
    if (counts_[it->first] == it->second) {
      ++it;
      continue;
    }
    todo_.push_back(it->first);
    it = under_way_.erase(it);
  }
  // Those that are at work may hang.
  if (!todo_.empty()) begin_worker();
}

}  // namespace vremote::node
