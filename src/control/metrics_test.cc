#include "base/metrics.h"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

namespace vremote {
namespace {

TEST(MetricsTest, CountersOfManyThreadsAddUp) {
  Metrics metrics;
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&] {
      for (int n = 0; n < 1000; ++n) {
        metrics.add(Counter::Fills);
        metrics.add(Counter::FillBytes, 4096);
        metrics.record(Latency::Fill, n);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(metrics.get(Counter::Fills), 8000u);
  EXPECT_EQ(metrics.get(Counter::FillBytes), 8000u * 4096);
  EXPECT_EQ(metrics.get(Counter::Upcalls), 0u);
  EXPECT_EQ(metrics.summary(Latency::Fill).count, 8000u);
  EXPECT_EQ(metrics.summary(Latency::Call).count, 0u);
}

TEST(MetricsTest, BucketsCoverEveryValueInOrder) {
  for (size_t bucket = 0; bucket < LatencyBuckets::kCount; ++bucket) {
    const uint64_t low = LatencyBuckets::lower_bound(bucket);
    EXPECT_EQ(LatencyBuckets::index(low), bucket);
    if (bucket > 0) {
      EXPECT_EQ(LatencyBuckets::index(low - 1), bucket - 1);
    }
  }
  EXPECT_EQ(LatencyBuckets::index(UINT64_MAX), LatencyBuckets::kCount - 1);
}

TEST(MetricsTest, PercentilesAreWithinSevenPercent) {
  Metrics metrics;
  for (int64_t us = 1; us <= 1000; ++us) metrics.record(Latency::Lookup, us * 1000);
  const LatencySummary summary = metrics.summary(Latency::Lookup);
  EXPECT_EQ(summary.count, 1000u);
  EXPECT_NEAR(summary.p50_us, 500, 35);
  EXPECT_NEAR(summary.p90_us, 900, 63);
  EXPECT_NEAR(summary.p99_us, 990, 70);
  EXPECT_DOUBLE_EQ(summary.max_us, 1000);
}

TEST(MetricsTest, PercentilesNeverExceedTheMaximum) {
  Metrics metrics;
  metrics.record(Latency::Open, 17'000);
  const LatencySummary one = metrics.summary(Latency::Open);
  EXPECT_LE(one.p99_us, one.max_us);
  EXPECT_DOUBLE_EQ(one.max_us, 17);
  metrics.record(Latency::Purge, -5);
  EXPECT_EQ(metrics.summary(Latency::Purge).count, 1u);
  EXPECT_DOUBLE_EQ(metrics.summary(Latency::Purge).max_us, 0);
  metrics.record(Latency::Recall, INT64_MAX);
  EXPECT_GT(metrics.summary(Latency::Recall).p50_us, 0);
}

}  // namespace
}  // namespace vremote
