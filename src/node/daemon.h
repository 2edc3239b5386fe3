// The daemon of one node.
#pragma once

#include "coherence/mistakes.h"
#include "node/config/config.h"

namespace vremote::node {

// Runs the node until SIGTERM, SIGINT or the end of its mount; returns the process's exit status
// (2: the configuration cannot work on this machine, 1: it failed while running). Call it once,
// from the only thread of the process. `mistakes`: for the tests' broken build; none in `vremote`.
// `handover`: the descriptor of what the daemon has left that this process was before
// (handover.h); -1: there was none.
int run_node(const Config& config, coherence::Mistakes mistakes = {}, int handover = -1);

}  // namespace vremote::node
