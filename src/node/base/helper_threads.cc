#include "node/base/helper_threads.h"

#include <pthread.h>
#include <spdlog/spdlog.h>

#include <chrono>
#include <system_error>

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

void HelperThreads::submit(Job job) {
  std::lock_guard lock(mutex_);
  if (stopping_) return;
  jobs_.push_back(std::move(job));
  work_.notify_one();
  start_thread();
}

void HelperThreads::help() {
  std::lock_guard lock(mutex_);
  start_thread();
}

void HelperThreads::start_thread() {
  if (starting_ || stopping_ || jobs_.size() <= idle_ || threads_ >= most_) return;
  try {
    std::thread([this] { run(); }).detach();  // the destructor waits for threads_ == 0
  } catch (const std::system_error& error) {
    if (!refused_)
      spdlog::error(
          "cannot start thread {} of {}: {}; work waits: raise what limits threads "
          "(TasksMax= of a service)",
          threads_ + 1, name_, error.code().message());
    refused_ = true;
    return;
  }
  ++threads_;
  starting_ = true;
  refused_ = false;
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
      if (!woken) break;
      continue;
    }
    Job job = std::move(jobs_.front());
    jobs_.pop_front();
    start_thread();
    lock.unlock();
    job();
    job = nullptr;
    lock.lock();
  }
  --threads_;
  ended_.notify_all();
}

}  // namespace vremote::node
