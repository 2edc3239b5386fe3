// What a playground tells people and programs once it is ready. Pure.
#pragma once

#include <cstdint>
#include <string>

#include "cli/playground_plan.h"

namespace vremote::cli {

// The table of the nodes and what to try first.
std::string playground_banner(const PlaygroundPlan& plan, double seconds);

// The content of DIR/ready, one line:
//   {"pid": 1, "nodes": [{"name": "node1", "export": …, "mount": …, "config": …, "control": …,
//   "log": …, "address": …}]}
std::string playground_ready_json(const PlaygroundPlan& plan, int64_t pid);

}  // namespace vremote::cli
