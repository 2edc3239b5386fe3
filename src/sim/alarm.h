// Rings when the earliest deadline it was set to has come; later ones are set again then.
#pragma once

#include <algorithm>
#include <optional>
#include <utility>

#include "sim/scheduler.h"

namespace vremote::sim {

class Alarm {
 public:
  explicit Alarm(Scheduler& scheduler) : scheduler_(scheduler) {}

  // No deadline, or one behind that it is set to: nothing changes.
  void set(std::optional<Instant> due, Scheduler::Function ring) {
    if (!due || (at_ && *at_ <= *due)) return;
    at_ = std::max(*due, scheduler_.now());
    scheduler_.after(*at_ - scheduler_.now(), [this, at = *at_, ring = std::move(ring)]() mutable {
      if (!at_ || *at_ != at) return;  // an earlier one was set since
      at_.reset();
      ring();
    });
  }

 private:
  Scheduler& scheduler_;
  std::optional<Instant> at_;
};

}  // namespace vremote::sim
