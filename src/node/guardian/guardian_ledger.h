// What a guardian writes into its dead daemon's table (guardian_table.h), so that the next daemon
// can go on with the mount: what it answers in the daemon's place has happened.
#pragma once

#include <cstdint>
#include <unordered_map>

#include "fuse/request.h"
#include "node/guardian/guardian_table.h"

namespace vremote::node {

// One thread at a time. The table's daemon is dead.
class GuardianLedger {
 public:
  explicit GuardianLedger(GuardianTable& table);

  // The guardian has answered it, or it wants no answer; nothing of any other is noted.
  void note(const fuse::Request& request);
  // What programs wrote to it is in a recovery file, and they must hear of it.
  void owes(uint64_t node);

 private:
  void forget(uint64_t node, uint64_t lookups);

  GuardianTable& table_;
  std::unordered_map<uint64_t, uint32_t> slots_;
};

}  // namespace vremote::node
