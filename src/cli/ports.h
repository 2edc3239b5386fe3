// Free TCP ports on the loopback interface, kept from others until their node starts.
#pragma once

#include <cstdint>
#include <vector>

#include "base/fd.h"
#include "base/result.h"

namespace vremote::cli {

struct HeldPort {
  uint16_t port = 0;
  Fd holder;  // bound, never listening: closing it frees the port at once
};

// `count` ports that are free now, below the range the kernel takes the ports of outgoing
// connections from: a node that connects to a peer not yet started must not get that peer's port
// for its own end. `seed` chooses where to begin, so that clusters seldom meet.
Result<std::vector<HeldPort>> hold_free_ports(size_t count, uint64_t seed);

// The ports base, base + 1, …; an Error that names the first which is in use.
Result<std::vector<HeldPort>> hold_ports_from(uint16_t base, size_t count);

}  // namespace vremote::cli
