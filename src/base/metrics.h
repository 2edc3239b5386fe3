// What a node counts and times: cheap enough to stay on in the hot path, read by `vremote status`.
//
// Every thread writes to one of a few shards with relaxed atomic additions, so two event loops
// seldom share a cache line and nobody ever waits. A reader sums the shards: each counter is exact
// once the writers are quiet, and never goes back.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>

namespace vremote {

// The order is that of kCounterNames.
enum class Counter : uint8_t {
  Fills,               // page-cache fills answered
  FillBytes,           // their bytes
  DirectReads,         // reads that filled no page
  DirectWrites,        // write(2) and friends
  WriteBacks,          // dirty mapped pages the kernel handed us
  HitsWithoutMessage,  // requests answered from leases already held
  Lookups,
  Getattrs,
  Opens,
  Creates,
  RecallsReceived,  // as agent
  RecallsSent,      // as home
  Purges,           // NOTIFY_INVAL_INODE of a range
  PurgeRestarts,    // K5: a fill arrived inside a purge in flight
  Grants,           // as home
  Fetches,          // page data asked of an origin
  Flushes,          // dirty data sent to an origin
  FlushBytes,
  OutsideChanges,  // as home: files changed behind our back while nodes knew them
  Upcalls,         // requests read from /dev/fuse
};
inline constexpr std::array<std::string_view, 20> kCounterNames = {
    "fills",           "fill_bytes",       "direct_reads",
    "direct_writes",   "write_backs",      "hits_without_message",
    "lookups",         "getattrs",         "opens",
    "creates",         "recalls_received", "recalls_sent",
    "purges",          "purge_restarts",   "grants",
    "fetches",         "flushes",          "flush_bytes",
    "outside_changes", "upcalls"};
inline constexpr size_t kCounterCount = static_cast<size_t>(Counter::Upcalls) + 1;
static_assert(kCounterNames.size() == kCounterCount);

// The order is that of kLatencyNames.
enum class Latency : uint8_t {
  Fill,
  DirectRead,
  DirectWrite,
  Lookup,
  Open,
  Recall,
  Purge,
  Flush,
  Call
};
inline constexpr std::array<std::string_view, 9> kLatencyNames = {
    "fill", "direct_read", "direct_write", "lookup", "open", "recall", "purge", "flush", "call"};
inline constexpr size_t kLatencyCount = static_cast<size_t>(Latency::Call) + 1;
static_assert(kLatencyNames.size() == kLatencyCount);

// Microseconds. The percentiles are the middle of a bucket at most 1/8 wide (so within 7 %), max is
// exact.
struct LatencySummary {
  uint64_t count = 0;
  double p50_us = 0, p90_us = 0, p99_us = 0, max_us = 0;
};

// The shape of the histograms: eight buckets for each power of two of nanoseconds, the small values
// exactly.
struct LatencyBuckets {
  static constexpr unsigned kSubBits = 3;
  static constexpr unsigned kTopBit = 39;  // the last power of two told apart: 9 to 18 minutes
  static constexpr size_t kCount = (kTopBit - kSubBits + 2) << kSubBits;

  static constexpr size_t index(uint64_t ns) {
    if (ns < (1u << kSubBits)) return static_cast<size_t>(ns);
    const unsigned top = static_cast<unsigned>(std::bit_width(ns)) - 1;
    if (top > kTopBit) return kCount - 1;
    const uint64_t sub = (ns >> (top - kSubBits)) & ((1u << kSubBits) - 1);
    return (static_cast<size_t>(top - kSubBits + 1) << kSubBits) + static_cast<size_t>(sub);
  }
  static constexpr uint64_t lower_bound(size_t bucket) {
    if (bucket < (2u << kSubBits)) return bucket;
    const unsigned top = static_cast<unsigned>(bucket >> kSubBits) + kSubBits - 1;
    const uint64_t sub = bucket & ((1u << kSubBits) - 1);
    return (uint64_t{1} << top) + (sub << (top - kSubBits));
  }
  static constexpr uint64_t middle(size_t bucket) {
    return (lower_bound(bucket) + lower_bound(bucket + 1)) / 2;
  }
};

// The counters and histograms of one node. Every method may be called from any thread.
class Metrics {
 public:
  Metrics() : shards_(std::make_unique<Shard[]>(kShards)) {}

  void add(Counter counter, uint64_t amount = 1) {
    shard().counters[static_cast<size_t>(counter)].fetch_add(amount, std::memory_order_relaxed);
  }
  // Records one duration; a negative one (a clock read on another thread) counts as 0.
  void record(Latency latency, int64_t ns) {
    const uint64_t value = ns < 0 ? 0 : static_cast<uint64_t>(ns);
    Histogram& histogram = shard().histograms[static_cast<size_t>(latency)];
    histogram.buckets[LatencyBuckets::index(value)].fetch_add(1, std::memory_order_relaxed);
    uint64_t seen = histogram.max.load(std::memory_order_relaxed);
    while (value > seen &&
           !histogram.max.compare_exchange_weak(seen, value, std::memory_order_relaxed)) {
    }
  }

  uint64_t get(Counter counter) const {
    uint64_t sum = 0;
    for (size_t i = 0; i < kShards; ++i)
      sum += shards_[i].counters[static_cast<size_t>(counter)].load(std::memory_order_relaxed);
    return sum;
  }
  LatencySummary summary(Latency latency) const {
    std::array<uint64_t, LatencyBuckets::kCount> buckets{};
    uint64_t max = 0;
    LatencySummary result;
    for (size_t i = 0; i < kShards; ++i) {
      const Histogram& histogram = shards_[i].histograms[static_cast<size_t>(latency)];
      for (size_t b = 0; b < buckets.size(); ++b) {
        const uint64_t n = histogram.buckets[b].load(std::memory_order_relaxed);
        buckets[b] += n;
        result.count += n;
      }
      max = std::max(max, histogram.max.load(std::memory_order_relaxed));
    }
    auto percentile = [&](uint64_t percent) {
      // The smallest bucket that has at least this share of all values at or below it.
      const uint64_t rank = (result.count * percent + 99) / 100;
      uint64_t below = 0;
      for (size_t b = 0; b < buckets.size(); ++b) {
        below += buckets[b];
        if (below >= rank)
          return static_cast<double>(std::min(LatencyBuckets::middle(b), max)) / 1000.0;
      }
      return static_cast<double>(max) / 1000.0;
    };
    if (result.count == 0) return result;
    result.p50_us = percentile(50);
    result.p90_us = percentile(90);
    result.p99_us = percentile(99);
    result.max_us = static_cast<double>(max) / 1000.0;
    return result;
  }

 private:
  static constexpr size_t kShards = 4;
  struct Histogram {
    std::array<std::atomic<uint64_t>, LatencyBuckets::kCount> buckets{};
    std::atomic<uint64_t> max{0};
  };
  struct alignas(64) Shard {
    std::array<std::atomic<uint64_t>, kCounterCount> counters{};
    std::array<Histogram, kLatencyCount> histograms{};
  };

  Shard& shard() {
    // Threads are dealt to shards in the order of their first use; the number has no meaning beyond
    // that.
    static std::atomic<size_t> next{0};
    thread_local const size_t mine = next.fetch_add(1, std::memory_order_relaxed) % kShards;
    return shards_[mine];
  }

  std::unique_ptr<Shard[]> shards_;
};

}  // namespace vremote
