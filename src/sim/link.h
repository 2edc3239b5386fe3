// One direction of a session between two machines: messages about one file arrive in the order
// sent, each after a delay of its own; messages about different files overtake each other (each
// file has its own connection).
#pragma once

#include <algorithm>
#include <map>

#include "base/ids.h"
#include "sim/scheduler.h"

namespace vremote::sim {

class Link {
 public:
  explicit Link(Scheduler& scheduler) : scheduler_(scheduler) {}

  void send(FileId file, Scheduler::Function deliver) {
    int64_t& last = last_ns_[file];
    last = std::max(last, scheduler_.now().ns + scheduler_.draw(Delay::Link));
    // Equal times keep their order in the scheduler.
    scheduler_.after(last - scheduler_.now().ns, std::move(deliver));
  }

 private:
  Scheduler& scheduler_;
  std::map<FileId, int64_t> last_ns_;
};

}  // namespace vremote::sim
