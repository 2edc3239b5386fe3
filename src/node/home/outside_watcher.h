// Brings changes that programs on this machine make in the exported directories themselves to the
// home (docs/promise.md, "Changes behind the mount's back").
//
// A thread of its own: a busy disk brings thousands of events that mean nothing to us, and the
// event loops have better things to do.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/fd.h"
#include "node/home/home_service.h"
#include "node/home/outside_changes.h"
#include "store/outside_watch.h"

namespace vremote::node {

class OutsideWatcher {
 public:
  // `home` outlives it. Watches what can be watched and remembers why the rest cannot.
  explicit OutsideWatcher(HomeService& home);
  ~OutsideWatcher();
  OutsideWatcher(const OutsideWatcher&) = delete;
  OutsideWatcher& operator=(const OutsideWatcher&) = delete;

  // Why changes behind this export are not noticed; empty when they are.
  const std::string& why_not(size_t export_index) const { return why_not_[export_index]; }
  // Events may have been lost so many times; each time all that nodes had cached was recalled.
  uint64_t overflows() const { return overflows_; }
  void stop();

 private:
  void run();
  void take_events(Instant now);
  // False when it is time to stop.
  bool wait(std::optional<Instant> until, bool for_events);

  HomeService& home_;
  std::unique_ptr<store::OutsideWatch> watch_;
  std::vector<std::string> why_not_;
  OutsideChanges changes_;
  std::atomic<uint64_t> overflows_{0};
  Fd stop_;
  std::thread thread_;
};

}  // namespace vremote::node
