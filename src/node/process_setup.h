// What the daemon asks of its process before it serves a mount.
#pragma once

#include "base/result.h"
#include "node/config/config.h"

namespace vremote::node {

// Sends the log where the configuration says. An Error names the file that cannot be written.
Status start_log(const Config& config);

// Rule K17: a daemon that page-faults or allocates into its own mount's write-back can wait for
// itself. Raises the limits of open files and of the size of files. What is refused is a warning in
// the log.
void prepare_process();
// After that: whether a node can do with its limits at all. An Error says which, and how to mend.
Status limits_are_fit();

// The running kernel's version, major * 1000 + minor; 0 when it cannot be told.
int kernel_version();

}  // namespace vremote::node
