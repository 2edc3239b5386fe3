// Keeps the benchmark and all it started on one processor for a while.
//
// What wakes another processor costs many times what a request does, and where the scheduler puts
// two threads that answer each other is luck: it would be measured instead.
#pragma once

#include <sched.h>
#include <sys/types.h>

#include <utility>
#include <vector>

namespace vremote::bench {

class OneProcessor {
 public:
  OneProcessor();
  ~OneProcessor();
  OneProcessor(const OneProcessor&) = delete;
  OneProcessor& operator=(const OneProcessor&) = delete;

 private:
  std::vector<std::pair<pid_t, cpu_set_t>> before_;  // of each thread
};

}  // namespace vremote::bench
