// What other nodes can make this one's home keep, by what the machine has.
#pragma once

#include <cstddef>
#include <cstdint>

#include "coherence/home.h"

namespace vremote::node {

struct Machine {
  uint64_t memory = 0;       // bytes
  uint64_t descriptors = 0;  // that this process may have
};
Machine this_machine();

// `leases`: as configured; 0: by the memory. One costs some hundred bytes, with what is known of
// its file: a sixteenth of the memory, if nodes need so many. One node may have half of them.
//
// A file that is open at another node costs up to three descriptors, so that it outlives its name.
coherence::HomeLimits home_limits(const Machine& machine, uint64_t leases);

// Files that nodes have been told of and that they have nothing of. What is forgotten of them is
// ESTALE for a kernel that still knows it, so they should be more than kernels keep.
size_t files_remembered(const Machine& machine);

}  // namespace vremote::node
