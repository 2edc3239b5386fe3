// One thread that waits for descriptors, timers and posted work, and runs their callbacks one after
// the other.
//
// Callbacks must not block and must not throw. A loop is driven by start() (its own thread) or
// run() (the caller's), once. It outlives its watches and timers.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "base/result.h"
#include "base/time.h"

namespace vremote::net {

class EventLoop;

// Keeps a descriptor watched; destroy it before the descriptor is closed, on the loop's thread or
// while the loop is not running. The callback may destroy its own watch.
class Watch {
 public:
  Watch() = default;
  Watch(Watch&&) noexcept = default;
  Watch& operator=(Watch&& other) noexcept;
  ~Watch() { reset(); }
  void reset();
  explicit operator bool() const { return state_ != nullptr; }

 private:
  friend class EventLoop;
  struct State;
  explicit Watch(std::shared_ptr<State> state) : state_(std::move(state)) {}
  std::shared_ptr<State> state_;
};

// Cancels its timer when destroyed. Cancelled on the loop's thread, the callback never runs; on
// another it may be running just now.
class Timer {
 public:
  Timer() = default;
  Timer(Timer&&) noexcept = default;
  Timer& operator=(Timer&& other) noexcept;
  ~Timer() { cancel(); }
  void cancel();
  explicit operator bool() const { return state_ != nullptr; }  // stays true after the callback ran

 private:
  friend class EventLoop;
  struct State;
  explicit Timer(std::shared_ptr<State> state) : state_(std::move(state)) {}
  std::shared_ptr<State> state_;
};

class EventLoop {
 public:
  using Task = std::move_only_function<void()>;

  explicit EventLoop(std::string name);  // the thread's name, at most 15 bytes of it
  EventLoop(const EventLoop&) = delete;
  EventLoop& operator=(const EventLoop&) = delete;
  ~EventLoop();  // stop() and join()

  Status start();  // runs on a new thread
  void run();      // runs on the calling thread until stop()
  void stop();     // any thread; returns at once, what is queued does not run any more
  void join();     // waits for the thread of start()

  // Runs `task` on the loop's thread, later, after all that was posted before by whichever thread
  // (asio::strand). Any thread.
  void post(Task task);
  // The same, and waits until it ran. Runs it in place on the loop's own thread, or while the loop
  // is not running.
  void run_and_wait(Task task);
  bool on_loop_thread() const;

  // Calls `on_readable` on the loop's thread whenever `fd` is readable, has an error or a hang-up,
  // again and again while it stays so (level-triggered). On the loop's thread or while the loop is
  // not running. The loop does not own `fd`.
  Result<Watch> watch(int fd, std::function<void()> on_readable);
  // Calls `on_writable` once, when `fd` takes bytes or failed.
  Result<Watch> watch_writable(int fd, Task on_writable);

  // Runs `task` at `when` of now()'s clock. Any thread. Keep the Timer: destroying it cancels.
  [[nodiscard]] Timer call_at(Instant when, Task task);
  [[nodiscard]] Timer call_after(int64_t delay_ns, Task task) {
    return call_at(now() + delay_ns, std::move(task));
  }

  static Instant now();  // CLOCK_MONOTONIC
  // CLOCK_BOOTTIME: the same, but it goes on while the machine sleeps. What lease terms are counted
  // with on the side that must stop in time.
  static Instant boot_now();

 private:
  friend class Watch;
  friend class Timer;
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace vremote::net
