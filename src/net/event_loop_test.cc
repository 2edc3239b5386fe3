#include "net/event_loop.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <future>
#include <thread>

#include "base/fd.h"

namespace vremote::net {
namespace {

struct Pipe {
  Pipe() {
    int ends[2];
    EXPECT_EQ(::pipe2(ends, O_NONBLOCK | O_CLOEXEC), 0);
    read = Fd(ends[0]);
    write = Fd(ends[1]);
  }
  Fd read, write;
};

TEST(EventLoopTest, PostsRunInOrderOnTheLoopsThread) {
  EventLoop loop("test");
  ASSERT_TRUE(loop.start());
  std::vector<int> order;
  bool right_thread = true;
  for (int i = 0; i < 1000; ++i)
    loop.post([&, i] {
      order.push_back(i);
      right_thread = right_thread && loop.on_loop_thread();
    });
  loop.run_and_wait([] {});
  ASSERT_EQ(order.size(), 1000u);
  EXPECT_TRUE(std::ranges::is_sorted(order));
  EXPECT_TRUE(right_thread);
  EXPECT_FALSE(loop.on_loop_thread());
}

TEST(EventLoopTest, WhatTheLoopItselfPostsRunsBeforeWhatAnotherThreadPostsLater) {
  EventLoop loop("test");
  ASSERT_TRUE(loop.start());
  std::vector<int> order;
  loop.run_and_wait([&] {
    loop.post([&] { order.push_back(1); });
    std::thread([&] { loop.post([&] { order.push_back(2); }); }).join();
    loop.post([&] { order.push_back(3); });
  });
  loop.run_and_wait([] {});
  EXPECT_EQ(order, (std::vector{1, 2, 3}));
}

TEST(EventLoopTest, AWatchIsCalledAgainWhileItsDescriptorStaysReadable) {
  EventLoop loop("test");
  Pipe pipe;
  ASSERT_EQ(::write(pipe.write.get(), "abc", 3), 3);
  std::string got;
  std::promise<void> all;
  auto watch = loop.watch(pipe.read.get(), [&] {
    char c;  // one byte of three: the rest must be reported again
    if (::read(pipe.read.get(), &c, 1) == 1) got += c;
    if (got == "abcd") all.set_value();
    if (got == "abc") {
      EXPECT_EQ(::write(pipe.write.get(), "d", 1), 1);
    }
  });
  ASSERT_TRUE(watch);
  ASSERT_TRUE(loop.start());
  ASSERT_EQ(all.get_future().wait_for(std::chrono::seconds(20)), std::future_status::ready);
  loop.run_and_wait([&] { watch->reset(); });
  EXPECT_TRUE(pipe.read.valid());
  EXPECT_GE(::fcntl(pipe.read.get(), F_GETFD), 0) << "the loop must not close what it was lent";
}

TEST(EventLoopTest, AWatchThatWasResetIsNotCalled) {
  EventLoop loop("test");
  Pipe pipe;
  int calls = 0;
  Watch watch;
  auto made = loop.watch(pipe.read.get(), [&] {
    ++calls;
    watch.reset();  // in its own callback
  });
  ASSERT_TRUE(made);
  watch = std::move(*made);
  ASSERT_TRUE(loop.start());
  ASSERT_EQ(::write(pipe.write.get(), "abc", 3), 3);
  // A watch made later on another pipe is served later: by then a second call would have come.
  Pipe other;
  std::promise<void> seen;
  Watch second;
  loop.run_and_wait([&] {
    second = std::move(*loop.watch(other.read.get(), [&] {
      char c;
      (void)!::read(other.read.get(), &c, 1);
      seen.set_value();
    }));
  });
  ASSERT_EQ(::write(other.write.get(), "x", 1), 1);
  ASSERT_EQ(seen.get_future().wait_for(std::chrono::seconds(20)), std::future_status::ready);
  loop.run_and_wait([&] { second.reset(); });
  EXPECT_EQ(calls, 1);
}

TEST(EventLoopTest, WritableIsToldOnceThereIsRoom) {
  EventLoop loop("test");
  int ends[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends), 0);
  Fd a(ends[0]), b(ends[1]);
  std::vector<char> block(65536);
  while (::write(a.get(), block.data(), block.size()) > 0) {
  }
  std::promise<void> writable;
  bool drained = false, early = false;
  auto watch = loop.watch_writable(a.get(), [&] {
    early = !drained;
    writable.set_value();
  });
  ASSERT_TRUE(watch);
  ASSERT_TRUE(loop.start());
  loop.run_and_wait([&] {
    drained = true;
    while (::read(b.get(), block.data(), block.size()) > 0) {
    }
  });
  ASSERT_EQ(writable.get_future().wait_for(std::chrono::seconds(20)), std::future_status::ready);
  EXPECT_FALSE(early);
  loop.run_and_wait([&] { watch->reset(); });
}

TEST(EventLoopTest, TimersRunInTimeOrderAndCancelledOnesNever) {
  EventLoop loop("test");
  ASSERT_TRUE(loop.start());
  std::vector<int> order;
  std::promise<void> last;
  Timer a, b, c;
  bool too_early = false;
  Instant start = EventLoop::now();
  a = loop.call_after(20'000'000, [&] {
    order.push_back(2);
    too_early = EventLoop::now() - start < 20'000'000;
    last.set_value();
  });
  b = loop.call_after(1'000'000, [&] { order.push_back(1); });
  loop.run_and_wait([&] {
    c = loop.call_after(0, [&] { order.push_back(0); });
    c.cancel();
  });
  ASSERT_EQ(last.get_future().wait_for(std::chrono::seconds(20)), std::future_status::ready);
  loop.run_and_wait([] {});
  EXPECT_EQ(order, (std::vector{1, 2}));
  EXPECT_FALSE(too_early);
}

TEST(EventLoopTest, RunAndWaitDoesNotHangWhenTheLoopEnds) {
  for (int i = 0; i < 200; ++i) {
    EventLoop loop("test");
    ASSERT_TRUE(loop.start());
    int ran = 0;
    std::thread stopper([&] { loop.stop(); });
    loop.run_and_wait([&] { ++ran; });
    stopper.join();
    loop.join();
    EXPECT_EQ(ran, 1);
  }
}

TEST(EventLoopTest, ADescriptorThatCannotBeWatchedIsAnError) {
  EventLoop loop("test");
  EXPECT_FALSE(loop.watch(-1, [] {}));
  EXPECT_FALSE(loop.watch_writable(-1, [] {}));
}

}  // namespace
}  // namespace vremote::net
