// Runs seeds in child processes: a broken VR_CHECK ends a process, and is a finding like any other.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "sim/any_world.h"

namespace vremote::sim {

struct SeedRange {
  uint64_t first = 1;
  uint64_t count = 1;
};

struct Finding {
  uint64_t seed = 0;
  std::string what;  // the invariant, or the check that ended the process
};

struct Summary {
  std::optional<Finding> finding;  // the lowest seed found to fail
  uint64_t seeds = 0;              // that ran to their end
  uint64_t failures = 0;
  WorldCounts counts;
};

// `jobs` children share the range; each stops at its first failure unless `keep_going`.
Summary run_seeds(SeedRange range, const Breaks& breaks, unsigned jobs, bool keep_going,
                  WorldKind kind = WorldKind::Pages);

// One seed with its trace on stdout: the last `lines` of it, or all. True when everything held.
bool replay(uint64_t seed, const Breaks& breaks, size_t lines, bool print_all,
            WorldKind kind = WorldKind::Pages);

}  // namespace vremote::sim
