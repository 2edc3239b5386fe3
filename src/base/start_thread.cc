#include "base/start_thread.h"

#include <latch>
#include <vector>

namespace vremote {

Error thread_refused(const std::error_code& why) {
  return {why.value(), "cannot start a thread (" + why.message() +
                           "): raise what limits them (TasksMax= of a service, pids.max of a "
                           "container, ulimit -u of a user)"};
}

Status threads_can_be_had(size_t count) {
  std::latch all(1);
  std::vector<std::thread> threads;
  threads.reserve(count);
  Status had;
  while (had && threads.size() < count) {
    auto thread = start_thread([&all] { all.wait(); });
    if (thread) {
      threads.push_back(std::move(*thread));
    } else {
      had = std::unexpected(thread.error());
    }
  }
  all.count_down();
  for (std::thread& thread : threads) thread.join();
  return had;
}

}  // namespace vremote
