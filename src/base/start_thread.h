// Threads that the system may refuse: TasksMax= of a service, pids.max of a container, RLIMIT_NPROC
// of a user. The library throws; a start or an upgrade of the daemon has to end in order instead.
#pragma once

#include <cstddef>
#include <system_error>
#include <thread>
#include <utility>

#include "base/result.h"

namespace vremote {

// Says what a person can do about it.
Error thread_refused(const std::error_code& why);

template <typename Run>
Result<std::thread> start_thread(Run&& run) {
  try {
    return std::thread(std::forward<Run>(run));
  } catch (const std::system_error& error) {
    return std::unexpected(thread_refused(error.code()));
  }
}

// Whether so many more could be started now: each is, and ended again.
Status threads_can_be_had(size_t count);

}  // namespace vremote
