// Simulated time: one queue of events, one source of randomness. The same seed gives the same run,
// everywhere.
#pragma once

#include <fmt/core.h>

#include <coroutine>
#include <cstdint>
#include <deque>
#include <functional>
#include <string>
#include <vector>

#include "base/prng.h"
#include "base/time.h"
#include "sim/coroutine.h"

namespace vremote::sim {

// What an event waits for; each world draws a time scale for each, so that everything is sometimes
// the slowest.
enum class Delay : uint8_t {
  Link,
  HomeQueue,
  KernelQueue,
  PurgeStep,
  PurgeReport,
  WakeUp,
  Think,
  Reclaim,
  kCount
};

class Scheduler {
 public:
  using Function = std::move_only_function<void()>;

  explicit Scheduler(uint64_t seed);
  ~Scheduler();
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  Prng& random() { return random_; }
  Instant now() const { return {now_ns_}; }
  Timestamp wall() const {
    return {1'700'000'000 + now_ns_ / 1'000'000'000,
            static_cast<uint32_t>(now_ns_ % 1'000'000'000)};
  }
  uint64_t steps() const { return steps_; }

  int64_t draw(Delay kind);
  // No draw is greater.
  int64_t longest(Delay kind) const;
  void after(int64_t delay_ns, Function function);
  void after(Delay kind, Function function) { after(draw(kind), std::move(function)); }
  void resume_after(int64_t delay_ns, std::coroutine_handle<> handle);
  // Runs `co` up to its first wait, now, and owns it until it ends.
  void spawn(Co<> co);
  // Runs the next event; false when there is none.
  bool step();

  struct Sleep {
    Scheduler& scheduler;
    int64_t delay_ns;
    bool await_ready() const noexcept { return false; }
    void await_suspend(std::coroutine_handle<> handle) { scheduler.resume_after(delay_ns, handle); }
    void await_resume() const noexcept {}
  };
  Sleep sleep(Delay kind) { return Sleep{*this, draw(kind)}; }

  // The first failure stays.
  void fail(std::string what) {
    if (failure_.empty()) failure_ = std::move(what);
  }
  bool failed() const { return !failure_.empty(); }
  const std::string& failure() const { return failure_; }

  // Traces are formatted only in a replay: `lines` > 0 keeps that many last lines, `print` writes
  // each at once.
  void trace_to(size_t lines, bool print) {
    trace_lines_ = lines;
    trace_print_ = print;
  }
  bool tracing() const { return trace_lines_ != 0; }
  template <typename... Args>
  void trace(int node, int file, fmt::format_string<Args...> format, Args&&... args) {
    if (tracing()) trace_line(node, file, fmt::format(format, std::forward<Args>(args)...));
  }
  const std::deque<std::string>& last_lines() const { return trace_; }

 private:
  struct Event {
    int64_t at_ns;
    uint64_t order;
    std::coroutine_handle<> handle;
    Function function;
    // The heap keeps its greatest in front.
    bool operator<(const Event& other) const {
      return at_ns != other.at_ns ? at_ns > other.at_ns : order > other.order;
    }
  };
  struct Root;
  static Root run(Co<> co);

  void push(Event event);
  void trace_line(int node, int file, std::string text);

  Prng random_;
  int64_t scale_ns_[static_cast<size_t>(Delay::kCount)] = {};
  int64_t now_ns_ = 0;
  uint64_t steps_ = 0;
  uint64_t next_order_ = 0;
  std::vector<Event> heap_;
  std::vector<std::coroutine_handle<>>
      roots_;  // slot -> frame; a finished root leaves its slot empty
  std::vector<size_t> free_roots_;
  std::vector<size_t> finished_;
  std::string failure_;
  size_t trace_lines_ = 0;
  bool trace_print_ = false;
  std::deque<std::string> trace_;
};

// Threads that wait for something; woken ones look again.
class Condition {
 public:
  explicit Condition(Scheduler& scheduler) : scheduler_(scheduler) {}
  struct Wait {
    Condition& condition;
    bool await_ready() const noexcept { return false; }
    void await_suspend(std::coroutine_handle<> handle) { condition.waiters_.push_back(handle); }
    void await_resume() const noexcept {}
  };
  Wait wait() { return Wait{*this}; }
  void wake_all() {
    for (auto handle : waiters_) scheduler_.resume_after(scheduler_.draw(Delay::WakeUp), handle);
    waiters_.clear();
  }
  size_t waiting() const { return waiters_.size(); }

 private:
  Scheduler& scheduler_;
  std::vector<std::coroutine_handle<>> waiters_;
};

}  // namespace vremote::sim
