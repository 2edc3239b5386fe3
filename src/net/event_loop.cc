#include "net/event_loop.h"

#include <fcntl.h>
#include <pthread.h>
#include <time.h>

#include <asio/executor_work_guard.hpp>
#include <asio/io_context.hpp>
#include <asio/posix/stream_descriptor.hpp>
#include <asio/post.hpp>
#include <asio/steady_timer.hpp>
#include <asio/strand.hpp>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "base/check.h"
#include "base/fd.h"
#include "base/start_thread.h"

namespace vremote::net {

struct EventLoop::Impl {
  explicit Impl(std::string thread_name) : name(std::move(thread_name)) {}

  std::string name;
  asio::io_context context{1};  // one thread runs it
  asio::executor_work_guard<asio::io_context::executor_type> work = asio::make_work_guard(context);
  // Of what is posted: the context itself runs what its own thread posts later than what another
  // posted after that.
  asio::strand<asio::io_context::executor_type> in_order{context.get_executor()};
  std::thread thread;
  std::atomic<std::thread::id> loop_thread{};  // empty while nothing runs the loop
  std::atomic<bool> running{false};            // from start() until the thread is done
  std::mutex mutex;                            // for `done` below
  std::condition_variable done;                // a run_and_wait() task ran, or the loop has ended

  void run_here() {
    loop_thread = std::this_thread::get_id();
    context.run();
    loop_thread = std::thread::id();
    std::lock_guard lock(mutex);
    running = false;
    done.notify_all();
  }
};

struct Watch::State {
  State(asio::io_context& context, EventLoop* owner) : descriptor(context), loop(owner) {}
  ~State() { release(); }

  // The descriptor is only lent to Asio: it must never close it.
  void release() {
    if (descriptor.is_open()) descriptor.release();
    owned.reset();
  }
  static void arm(const std::shared_ptr<State>& self,
                  asio::posix::descriptor_base::wait_type what) {
    self->descriptor.async_wait(what, [self, what](const asio::error_code& error) {
      if (error || !self->alive) return;
      self->callback();
      // Waiting again asks the kernel for the state as it is now: what the callback left unread is
      // reported again.
      if (self->alive && self->again) arm(self, what);
    });
  }

  asio::posix::stream_descriptor descriptor;
  EventLoop* loop;
  std::function<void()> callback;
  Fd owned;  // a duplicate, see watch_writable()
  bool alive = true;
  bool again = true;
};

Watch& Watch::operator=(Watch&& other) noexcept {
  if (this != &other) {
    reset();
    state_ = std::move(other.state_);
  }
  return *this;
}

void Watch::reset() {
  if (!state_) return;
  auto state = std::move(state_);
  VR_CHECK(state->loop->on_loop_thread() || !state->loop->impl_->running);
  state->alive = false;
  state->release();
}

struct Timer::State {
  State(asio::io_context& context, EventLoop* owner, EventLoop::Task work)
      : timer(context), loop(owner), task(std::move(work)) {}

  static void arm(const std::shared_ptr<State>& self, Instant when) {
    if (self->cancelled) return;
    self->timer.expires_at(
        std::chrono::steady_clock::time_point(std::chrono::nanoseconds(when.ns)));
    self->timer.async_wait([self](const asio::error_code& error) {
      if (error || self->cancelled) return;
      auto work = std::move(self->task);  // it may destroy its own Timer
      work();
    });
  }

  asio::steady_timer timer;
  EventLoop* loop;
  EventLoop::Task task;
  std::atomic<bool> cancelled{false};
};

Timer& Timer::operator=(Timer&& other) noexcept {
  if (this != &other) {
    cancel();
    state_ = std::move(other.state_);
  }
  return *this;
}

void Timer::cancel() {
  if (!state_) return;
  auto state = std::move(state_);
  state->cancelled = true;
  EventLoop* loop = state->loop;
  if (loop->on_loop_thread()) {
    state->timer.cancel();
    state->task = nullptr;  // frees what it captured now
  } else {
    // Only the loop's thread may touch the timer.
    loop->post([state = std::move(state)] {
      state->timer.cancel();
      state->task = nullptr;
    });
  }
}

EventLoop::EventLoop(std::string name) : impl_(std::make_unique<Impl>(name.substr(0, 15))) {}

EventLoop::~EventLoop() {
  stop();
  join();
}

Status EventLoop::start() {
  VR_CHECK(!impl_->running);
  impl_->running = true;
  auto thread = start_thread([this] {
    pthread_setname_np(pthread_self(), impl_->name.c_str());
    impl_->run_here();
  });
  if (!thread) {
    impl_->running = false;  // or run_and_wait() would wait for ever
    return std::unexpected(thread.error());
  }
  impl_->thread = std::move(*thread);
  return {};
}

void EventLoop::run() {
  VR_CHECK(!impl_->running);
  impl_->running = true;
  impl_->run_here();
}

void EventLoop::stop() { impl_->context.stop(); }

void EventLoop::join() {
  VR_CHECK(!on_loop_thread());
  if (impl_->thread.joinable()) impl_->thread.join();
}

void EventLoop::post(Task task) { asio::post(impl_->in_order, std::move(task)); }

void EventLoop::run_and_wait(Task task) {
  if (on_loop_thread() || !impl_->running) return task();
  struct Shared {
    Task task;
    bool ran = false;
  };
  auto shared = std::make_shared<Shared>(Shared{.task = std::move(task)});
  post([this, shared] {
    shared->task();
    std::lock_guard lock(impl_->mutex);
    shared->ran = true;
    impl_->done.notify_all();
  });
  std::unique_lock lock(impl_->mutex);
  impl_->done.wait(lock, [&] { return shared->ran || !impl_->running; });
  if (shared->ran) return;
  // The loop ended first: what is still posted never runs.
  lock.unlock();
  shared->task();
}

bool EventLoop::on_loop_thread() const {
  return impl_->loop_thread.load() == std::this_thread::get_id();
}

Result<Watch> EventLoop::watch(int fd, std::function<void()> on_readable) {
  VR_CHECK(on_loop_thread() || !impl_->running);
  auto state = std::make_shared<Watch::State>(impl_->context, this);
  asio::error_code error;
  state->descriptor.assign(fd, error);
  if (error) return fail(error.value(), "cannot watch a descriptor: " + error.message());
  state->callback = std::move(on_readable);
  Watch::State::arm(state, asio::posix::descriptor_base::wait_read);
  return Watch(std::move(state));
}

Result<Watch> EventLoop::watch_writable(int fd, Task on_writable) {
  VR_CHECK(on_loop_thread() || !impl_->running);
  // A duplicate, because Asio takes a descriptor once; and while it waited for both on one, each
  // wait for input would at once be woken by the output side, which is nearly always ready.
  Fd duplicate(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
  if (!duplicate.valid()) return fail(errno, "cannot duplicate a descriptor");
  auto state = std::make_shared<Watch::State>(impl_->context, this);
  asio::error_code error;
  state->descriptor.assign(duplicate.get(), error);
  if (error) return fail(error.value(), "cannot watch a descriptor: " + error.message());
  state->owned = std::move(duplicate);
  state->again = false;
  auto shared =
      std::make_shared<Task>(std::move(on_writable));  // std::function wants to be copyable
  state->callback = [shared] { (*shared)(); };
  Watch::State::arm(state, asio::posix::descriptor_base::wait_write);
  return Watch(std::move(state));
}

Timer EventLoop::call_at(Instant when, Task task) {
  auto state = std::make_shared<Timer::State>(impl_->context, this, std::move(task));
  if (on_loop_thread() || !impl_->running) {
    Timer::State::arm(state, when);
  } else {
    post([state, when] { Timer::State::arm(state, when); });
  }
  return Timer(std::move(state));
}

Instant EventLoop::now() {
  // steady_clock is CLOCK_MONOTONIC.
  return {std::chrono::duration_cast<std::chrono::nanoseconds>(
              std::chrono::steady_clock::now().time_since_epoch())
              .count()};
}

Instant EventLoop::boot_now() {
  timespec t{};
  ::clock_gettime(CLOCK_BOOTTIME, &t);
  return {t.tv_sec * 1'000'000'000 + t.tv_nsec};
}

}  // namespace vremote::net
