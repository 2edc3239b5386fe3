#include "node/base/helper_threads.h"

#include <pthread.h>
#include <spdlog/spdlog.h>

#include <chrono>

#include "base/start_thread.h"

namespace vremote::node {
namespace {
constexpr auto kIdle = std::chrono::seconds(10);  // then an idle thread ends
}

HelperThreads::HelperThreads(std::string name, size_t most) : name_(std::move(name)), most_(most) {}

HelperThreads::~HelperThreads() { stop(); }

void HelperThreads::stop() {
  std::deque<Job> dropped;  // destroyed without the lock
  std::unique_lock lock(mutex_);
  stopping_ = true;
  dropped.swap(jobs_);
  work_.notify_all();
  ended_.wait(lock, [&] { return threads_ == 0; });
}

Status HelperThreads::begin() {
  std::lock_guard lock(mutex_);
  least_ = 1;
  return start_one();
}

void HelperThreads::submit(Job job) {
  std::lock_guard lock(mutex_);
  if (stopping_) return;
  jobs_.push_back(std::move(job));
  work_.notify_one();
  start_if_wanted();
}

void HelperThreads::help() {
  std::lock_guard lock(mutex_);
  start_if_wanted();
}

void HelperThreads::start_if_wanted() {
  if (starting_ || stopping_ || jobs_.size() <= idle_ || threads_ >= most_) return;
  const auto started = start_one();
  if (!started && !refused_)
    spdlog::error("thread {} of {}: {}; work waits", threads_ + 1, name_, started.error().what);
  refused_ = !started;
}

Status HelperThreads::start_one() {
  VR_TRY(thread, start_thread([this] { run(); }));
  thread.detach();  // the destructor waits for threads_ == 0
  ++threads_;
  starting_ = true;
  return {};
}

size_t HelperThreads::threads() const {
  std::lock_guard lock(mutex_);
  return threads_;
}

bool HelperThreads::busy() const {
  std::lock_guard lock(mutex_);
  return !jobs_.empty() || threads_ > idle_;
}

void HelperThreads::run() {
  pthread_setname_np(pthread_self(), name_.substr(0, 15).c_str());
  std::unique_lock lock(mutex_);
  starting_ = false;
  while (!stopping_) {
    if (jobs_.empty()) {
      ++idle_;
      const bool woken = work_.wait_for(lock, kIdle, [&] { return stopping_ || !jobs_.empty(); });
      --idle_;
      if (!woken && threads_ > least_) break;
      continue;
    }
    Job job = std::move(jobs_.front());
    jobs_.pop_front();
    start_if_wanted();
    lock.unlock();
    job();
    job = nullptr;
    lock.lock();
  }
  --threads_;
  ended_.notify_all();
}

}  // namespace vremote::node
