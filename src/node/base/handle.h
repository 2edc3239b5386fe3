// A file handle of the kernel is a number; what must be remembered of it fits into that.
#pragma once

#include <cstdint>

#include "coherence/agent.h"

namespace vremote::node {

inline constexpr uint64_t kHandleMayMap = 1;
inline constexpr uint64_t kHandleReads = 2;
inline constexpr int kHandleShift = 2;

inline coherence::Opening opening_of(uint64_t handle) {
  return {.reads = (handle & kHandleReads) != 0, .may_map = (handle & kHandleMayMap) != 0};
}

// A daemon that goes on with the mount of a dead one (salvage.h) does not know which numbers that
// had given out: its own begin behind all of them. So do those of inodes and directory streams.
inline constexpr int kGenerationShift = 40;
inline constexpr uint32_t kGenerationsMax = 1u << 20;
inline uint64_t first_number(uint32_t generation) {
  return uint64_t{generation} << kGenerationShift;
}

}  // namespace vremote::node
