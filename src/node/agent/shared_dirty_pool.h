// The part of cache.dirty_max_mib that all agents of this node share.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "coherence/dirty_pool.h"

namespace vremote::node {

class SharedDirtyPool final : public coherence::DirtyPool {
 public:
  // A piece is a request's longest write, or less where there is not much.
  explicit SharedDirtyPool(uint64_t bytes)
      : piece_(std::clamp<uint64_t>(bytes / 64, 4096, 1 << 20)), left_(bytes / piece_) {}

  uint64_t piece() const override { return piece_; }
  bool take() override {
    uint64_t left = left_.load(std::memory_order_relaxed);
    while (left > 0)
      if (left_.compare_exchange_weak(left, left - 1, std::memory_order_relaxed)) return true;
    return false;
  }
  void give_back() override { left_.fetch_add(1, std::memory_order_relaxed); }

 private:
  const uint64_t piece_;
  std::atomic<uint64_t> left_;  // pieces
};

}  // namespace vremote::node
