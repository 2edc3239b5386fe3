// The locks that processes of this node hold on the files of one home: for a home that restarts,
// and for the search of circles. Thread-safe.
#pragma once

#include <cstdint>
#include <mutex>
#include <span>
#include <vector>

#include "coherence/lock_table.h"
#include "coherence/messages.h"

namespace vremote::node {

class LocksAtHome {
 public:
  using Held = coherence::LockTable::Held;
  using AllHeld = std::vector<Held>;

  // The call has ended so (coherence/reclaimed_locks.h).
  void note(const coherence::LockCall& call, int error = 0);
  bool holds_range(uint64_t owner);
  AllHeld all();
  // What is this node's still while these calls have no reply (coherence/reclaimed_locks.h).
  AllHeld to_reclaim(std::span<const coherence::LockCall> under_way);
  // What is asked of the home when the caller of this call, which waits still, is told that it
  // failed: the locks would be nobody's. Not what its owner may have had there before.
  std::vector<coherence::LockCall> to_take_back(const coherence::LockCall& late, uint64_t call);
  // None is held any more; those that were.
  AllHeld take_all();

 private:
  std::mutex mutex_;
  coherence::LockTable locks_;
};

}  // namespace vremote::node
