// What nodes may have of a home of a world: in one of six next to no leases. What is asked back at
// once is not all that a load needs, or it would be gone before the load has seen it.
#pragma once

#include "base/prng.h"
#include "coherence/home.h"

namespace vremote::sim {

// Numbers of its own: the other worlds stay what they were before there were any limits.
inline coherence::HomeLimits draw_limits(uint64_t seed) {
  Prng own(seed * 0xA24BAED4963EE407u + 3);
  coherence::HomeLimits limits;
  if (!own.chance(17)) return limits;
  limits.leases = {.of_node = static_cast<size_t>(own.between(1, 6)),
                   .in_all = static_cast<size_t>(own.between(1, 12)),
                   .at_once = static_cast<size_t>(own.between(2, 4))};
  return limits;
}

}  // namespace vremote::sim
