#include "sim/scheduler.h"

#include <algorithm>
#include <cstdio>

namespace vremote::sim {

struct Scheduler::Root {
  struct promise_type {
    Scheduler* scheduler = nullptr;
    size_t slot = 0;
    Root get_return_object() { return {std::coroutine_handle<promise_type>::from_promise(*this)}; }
    std::suspend_always initial_suspend() noexcept { return {}; }
    struct Final {
      bool await_ready() noexcept { return false; }
      // The frame is destroyed after the event, not here: the caller of resume() is still on it.
      void await_suspend(std::coroutine_handle<promise_type> self) noexcept {
        self.promise().scheduler->finished_.push_back(self.promise().slot);
      }
      void await_resume() noexcept {}
    };
    Final final_suspend() noexcept { return {}; }
    void return_void() noexcept {}
    void unhandled_exception() noexcept { std::terminate(); }
  };
  std::coroutine_handle<promise_type> handle;
};

Scheduler::Root Scheduler::run(Co<> co) { co_await co; }

Scheduler::Scheduler(uint64_t seed) : random_(seed) {
  static constexpr int64_t kScales[] = {100, 1'000, 5'000, 20'000, 100'000};
  for (auto& scale : scale_ns_) scale = kScales[random_.below(std::size(kScales))];
}

Scheduler::~Scheduler() {
  heap_.clear();
  for (auto handle : roots_)
    if (handle) handle.destroy();
}

namespace {
constexpr int64_t kVeryLate = 50;
}

int64_t Scheduler::draw(Delay kind) {
  // Mostly alike, sometimes late, rarely very late: late ones make the interesting interleavings.
  const auto scale = static_cast<uint64_t>(scale_ns_[static_cast<size_t>(kind)]);
  const uint64_t dice = random_.below(100);
  const uint64_t span = dice < 70 ? scale : dice < 95 ? scale * 8 : scale * kVeryLate;
  return static_cast<int64_t>(random_.below(span + 1));
}

int64_t Scheduler::longest(Delay kind) const {
  return scale_ns_[static_cast<size_t>(kind)] * kVeryLate;
}

void Scheduler::push(Event event) {
  heap_.push_back(std::move(event));
  std::push_heap(heap_.begin(), heap_.end());
}

void Scheduler::after(int64_t delay_ns, Function function) {
  push(Event{now_ns_ + std::max<int64_t>(delay_ns, 0), next_order_++, {}, std::move(function)});
}

void Scheduler::resume_after(int64_t delay_ns, std::coroutine_handle<> handle) {
  push(Event{now_ns_ + delay_ns, next_order_++, handle, {}});
}

void Scheduler::spawn(Co<> co) {
  Root root = run(std::move(co));
  size_t slot = roots_.size();
  if (free_roots_.empty()) {
    roots_.push_back(root.handle);
  } else {
    slot = free_roots_.back();
    free_roots_.pop_back();
    roots_[slot] = root.handle;
  }
  root.handle.promise().scheduler = this;
  root.handle.promise().slot = slot;
  root.handle.resume();
}

bool Scheduler::step() {
  if (heap_.empty()) return false;
  std::pop_heap(heap_.begin(), heap_.end());
  Event event = std::move(heap_.back());
  heap_.pop_back();
  now_ns_ = event.at_ns;
  ++steps_;
  if (event.handle) {
    event.handle.resume();
  } else {
    event.function();
  }
  for (size_t slot : finished_) {
    roots_[slot].destroy();
    roots_[slot] = {};
    free_roots_.push_back(slot);
  }
  finished_.clear();
  return true;
}

void Scheduler::trace_line(int node, int file, std::string text) {
  std::string line =
      fmt::format("{:>12.3f}  {:>6}  {:<4}{:<4}{}", static_cast<double>(now_ns_) / 1000.0, steps_,
                  node < 0 ? std::string("home") : fmt::format("n{}", node),
                  file < 0 ? std::string() : fmt::format("f{}", file), text);
  if (trace_print_) std::puts(line.c_str());
  trace_.push_back(std::move(line));
  if (trace_.size() > trace_lines_) trace_.pop_front();
}

}  // namespace vremote::sim
