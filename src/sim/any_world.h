// What all kinds of worlds have in common.
#pragma once

#include <memory>
#include <string>

#include "coherence/agent.h"
#include "sim/mistakes.h"
#include "sim/model_kernel.h"
#include "sim/name_kernel.h"
#include "sim/scheduler.h"

namespace vremote::sim {

struct WorldCounts {
  uint64_t steps = 0, operations = 0, messages = 0;
  KernelCounts kernel;
  coherence::AgentStatistics agent;
  NameKernelCounts names;
  uint64_t names_given = 0;
  uint64_t lock_waits = 0, lock_circles = 0, lock_deaths = 0;
  uint64_t faults = 0, fences = 0;      // fences: sessions that a home ended
  uint64_t restarts = 0, reclaims = 0;  // of homes; nodes that brought back what they had
  uint64_t taken_back = 0;              // recalls of nodes that had too many leases
  uint64_t power_losses = 0;            // of homes
};

struct Outcome {
  std::string failure;  // empty: everything held
  std::string dump;     // who holds what and waits for what, when it failed
  WorldCounts counts;
};

class AnyWorld {
 public:
  virtual ~AnyWorld() = default;
  virtual Scheduler& scheduler() = 0;
  virtual Outcome run() = 0;
  // What its seed drew, in one line.
  virtual const std::string& plan() const = 0;
};

std::unique_ptr<AnyWorld> make_world(WorldKind kind, uint64_t seed, const Breaks& breaks);

}  // namespace vremote::sim
