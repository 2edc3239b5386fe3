#include "node/home/file_queues.h"

#include <gtest/gtest.h>
#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <thread>
#include <vector>

namespace vremote::node {
namespace {

TEST(FileQueuesTest, ItemsOfOneFileRunInOrderWhicheverThreadRunsThem) {
  HelperThreads helpers("test", 4);
  FileQueues queues(helpers);
  const FileId file{0, 1, 2};
  constexpr int kItems = 2000;
  std::vector<int> order;
  std::atomic<int> left{kItems};
  for (int i = 0; i < kItems; ++i) {
    queues.push(file, [&, i](bool may_block) {
      if (i % 7 == 3 && !may_block) return false;
      order.push_back(i);
      left.fetch_sub(1);
      return true;
    });
    if (i % 3 == 0) queues.pump(file);
  }
  queues.pump(file);
  while (left.load() > 0) std::this_thread::yield();
  helpers.stop();
  ASSERT_EQ(order.size(), static_cast<size_t>(kItems));
  for (int i = 0; i < kItems; ++i) EXPECT_EQ(order[i], i);
}

TEST(FileQueuesTest, AnItemMayPushBehindItself) {
  HelperThreads helpers("test", 1);
  FileQueues queues(helpers);
  const FileId file{0, 1, 2};
  std::vector<int> order;
  queues.push(file, [&](bool) {
    queues.push(file, [&](bool) {
      order.push_back(2);
      return true;
    });
    queues.pump(file);
    order.push_back(1);
    return true;
  });
  queues.pump(file);
  EXPECT_EQ(order, (std::vector<int>{1, 2}));
}

TEST(FileQueuesTest, WhatWaitsForTheDiskIsTold) {
  HelperThreads helpers("test", 1);
  FileQueues queues(helpers);
  const FileId file{0, 1, 2};
  std::atomic<bool> begun{false}, enough{false};
  queues.push({file, NodeId{3}, "write", {4, 6}, Instant{7}}, [&](bool may_block) {
    if (!may_block) return false;
    begun = true;
    while (!enough) std::this_thread::yield();
    return true;
  });
  queues.push(file, [](bool) { return true; });  // of nobody
  queues.push({file, NodeId{5}, "read", {}, Instant{8}}, [](bool) { return true; });
  queues.pump(file);
  while (!begun) std::this_thread::yield();
  const auto told = queues.accounts(10);
  EXPECT_EQ(queues.accounts(1).size(), 1u);
  enough = true;
  ASSERT_EQ(told.size(), 2u);
  EXPECT_EQ(told[0].node, NodeId{3});
  EXPECT_EQ(told[0].pages, (PageRange{4, 6}));
  EXPECT_EQ(told[0].since, Instant{7});
  EXPECT_EQ(told[1].node, NodeId{5});
  while (queues.first(file)) std::this_thread::yield();
  EXPECT_TRUE(queues.accounts(10).empty());
  helpers.stop();
}

TEST(FileQueuesTest, TheFirstItemIsTheSameForAsLongAsItWaitsForTheDisk) {
  HelperThreads helpers("test", 1);
  FileQueues queues(helpers);
  const FileId file{0, 1, 2};
  EXPECT_FALSE(queues.first(file));
  std::atomic<int> begun{0}, ended{0};
  const auto waiting = [&](int nth) {
    return [&, nth](bool may_block) {
      if (!may_block) return false;
      begun = nth;
      while (ended.load() < nth) std::this_thread::yield();
      return true;
    };
  };
  const auto wait_for = [&](int nth) {
    while (begun.load() < nth) std::this_thread::yield();
    return queues.first(file);
  };
  queues.push(file, waiting(1));
  const auto not_yet = queues.first(file);
  ASSERT_TRUE(not_yet);
  queues.pump(file);
  const auto first = wait_for(1);
  EXPECT_EQ(first, not_yet);
  queues.push(file, waiting(2));
  queues.pump(file);
  EXPECT_EQ(queues.first(file), first);
  ended = 1;
  const auto second = wait_for(2);
  ASSERT_TRUE(second);
  EXPECT_NE(second, first);
  ended = 2;
  while (queues.first(file)) std::this_thread::yield();
  queues.push(file, [](bool) { return true; });
  EXPECT_NE(queues.first(file), second);
  queues.pump(file);
  EXPECT_FALSE(queues.first(file));
}

TEST(HelperThreadsTest, AJobThatBlocksDoesNotDelayTheNext) {
  HelperThreads helpers("test", HelperThreads::kUnbounded);
  std::atomic<bool> release{false};
  std::atomic<int> blocked{0}, done{0};
  for (int i = 0; i < 20; ++i)
    helpers.submit([&] {
      blocked.fetch_add(1);
      while (!release.load()) std::this_thread::yield();
      done.fetch_add(1);
    });
  while (blocked.load() < 20)
    std::this_thread::yield();  // hangs with any fixed pool smaller than that
  release = true;
  while (done.load() < 20) std::this_thread::yield();
  EXPECT_GE(helpers.threads(), 20u);
}

TEST(HelperThreadsTest, ManyShortJobsDoNotNeedAThreadEach) {
  // On one processor, where threads get to run later than they are asked for.
  cpu_set_t all, one;
  ASSERT_EQ(sched_getaffinity(0, sizeof all, &all), 0);
  CPU_ZERO(&one);
  CPU_SET(sched_getcpu(), &one);
  ASSERT_EQ(sched_setaffinity(0, sizeof one, &one), 0);
  HelperThreads helpers("test", HelperThreads::kUnbounded);
  constexpr int kJobs = 5000;
  std::atomic<int> done{0};
  for (int i = 0; i < kJobs; ++i) helpers.submit([&] { done.fetch_add(1); });
  while (done.load() < kJobs) std::this_thread::yield();
  EXPECT_LT(helpers.threads(), 100u);
  ASSERT_EQ(sched_setaffinity(0, sizeof all, &all), 0);
}

// Stacks of a size that no thread can have: pthread_create fails as where tasks are limited.
TEST(HelperThreadsTest, WhereThreadsAreRefusedJobsWaitForHelp) {
  HelperThreads helpers("test", HelperThreads::kUnbounded);
  pthread_attr_t usual, huge;
  ASSERT_EQ(pthread_getattr_default_np(&usual), 0);
  ASSERT_EQ(pthread_getattr_default_np(&huge), 0);
  ASSERT_EQ(pthread_attr_setstacksize(&huge, size_t{1} << 48), 0);
  ASSERT_EQ(pthread_setattr_default_np(&huge), 0);
  std::atomic<int> done{0};
  for (int i = 0; i < 3; ++i) helpers.submit([&] { done.fetch_add(1); });
  helpers.help();
  EXPECT_EQ(helpers.threads(), 0u);
  ASSERT_EQ(pthread_setattr_default_np(&usual), 0);
  helpers.help();
  while (done.load() < 3) std::this_thread::yield();
}

}  // namespace
}  // namespace vremote::node
