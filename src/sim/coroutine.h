// Coroutines of the simulator: a thread of the model kernel, written as the straight code it is in
// Linux.
//
// Co<T> is lazy and owned by its caller; a root (Scheduler::spawn) is owned by the scheduler, so a
// world that ends in a deadlock can still be torn down. Nothing here runs concurrently.
#pragma once

#include <coroutine>
#include <exception>
#include <optional>
#include <utility>

namespace vremote::sim {

struct CoPromiseBase {
  std::coroutine_handle<> continuation;
  struct Final {
    bool await_ready() noexcept { return false; }
    template <typename Promise>
    std::coroutine_handle<> await_suspend(std::coroutine_handle<Promise> self) noexcept {
      return self.promise().continuation;
    }
    void await_resume() noexcept {}
  };
  std::suspend_always initial_suspend() noexcept { return {}; }
  Final final_suspend() noexcept { return {}; }
  void unhandled_exception() noexcept { std::terminate(); }
};

template <typename T>
struct CoPromise : CoPromiseBase {
  std::optional<T> value;
  void return_value(T v) { value = std::move(v); }
};
template <>
struct CoPromise<void> : CoPromiseBase {
  void return_void() noexcept {}
};

template <typename T = void>
class [[nodiscard]] Co {
 public:
  struct promise_type : CoPromise<T> {
    Co get_return_object() { return Co(std::coroutine_handle<promise_type>::from_promise(*this)); }
  };
  explicit Co(std::coroutine_handle<promise_type> handle) : handle_(handle) {}
  Co(Co&& other) noexcept : handle_(std::exchange(other.handle_, {})) {}
  Co(const Co&) = delete;
  Co& operator=(Co&&) = delete;
  ~Co() {
    if (handle_) handle_.destroy();
  }

  bool await_ready() const noexcept { return false; }
  std::coroutine_handle<> await_suspend(std::coroutine_handle<> caller) noexcept {
    handle_.promise().continuation = caller;
    return handle_;
  }
  T await_resume() {
    if constexpr (!std::is_void_v<T>) return std::move(*handle_.promise().value);
  }

 private:
  std::coroutine_handle<promise_type> handle_;
};

}  // namespace vremote::sim
