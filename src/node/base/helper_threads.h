// Threads for work that may block: purges, disk operations.
//
// A job never waits for another to end: while jobs wait that no idle thread takes, and fewer than
// `most` run, a new thread starts. Purges need that without a bound (rule K5): a purge that is held
// up must not delay the next. They start one by one, each by whoever has just taken a job: a
// thousand jobs that do not block need a few threads, not a thousand.
//
// The system may refuse threads (TasksMax= of systemd, pids.max). Then jobs wait for the threads
// that there are, and help() tries again.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

#include "base/result.h"

namespace vremote::node {

class HelperThreads {
 public:
  using Job = std::move_only_function<void()>;
  static constexpr size_t kUnbounded = ~size_t{0};

  // `name`: of the threads, at most 15 bytes.
  HelperThreads(std::string name, size_t most);
  ~HelperThreads();
  HelperThreads(const HelperThreads&) = delete;
  HelperThreads& operator=(const HelperThreads&) = delete;

  // Starts the first, which then stays: however short threads become, work goes on.
  Status begin();
  // Any thread. Never blocks on a job.
  void submit(Job job);
  // To be called every now and then: a thread that was refused may be had by now.
  void help();
  size_t threads() const;
  // A job runs, or waits to.
  bool busy() const;
  // Waits for running jobs; jobs not begun are dropped, and so is whatever is submitted from now
  // on.
  void stop();

 private:
  void run();
  // With the lock:
  void start_if_wanted();
  Status start_one();

  const std::string name_;
  const size_t most_;
  mutable std::mutex mutex_;
  std::condition_variable work_, ended_;
  std::deque<Job> jobs_;
  size_t threads_ = 0, idle_ = 0, least_ = 0;
  bool starting_ = false;  // a thread that has not taken a job yet
  bool refused_ = false;   // the last thread that was to start
  bool stopping_ = false;
};

}  // namespace vremote::node
