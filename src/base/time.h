// Time as values: monotonic instants for the protocol, wall-clock stamps for files. Nothing here
// reads a clock.
#pragma once

#include <compare>
#include <cstdint>

namespace vremote {

// Nanoseconds of a monotonic clock with an arbitrary start. The core gets it as an input; only
// drivers read clocks.
struct Instant {
  int64_t ns = 0;
  auto operator<=>(const Instant&) const = default;
  Instant operator+(int64_t delta_ns) const { return {ns + delta_ns}; }
  int64_t operator-(Instant other) const { return ns - other.ns; }
};

// A file time stamp (CLOCK_REALTIME).
struct Timestamp {
  int64_t seconds = 0;
  uint32_t nanoseconds = 0;
  auto operator<=>(const Timestamp&) const = default;
};

}  // namespace vremote
