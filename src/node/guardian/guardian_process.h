// The guardian as a process, and the daemon's that it watches.
#pragma once

#include <sys/types.h>

namespace vremote::node {

// Only the right to end the connection and the mount is left; the last to be killed when memory is
// short; room for many files.
void be_modest_and_last();

// Killed, but one of its threads hangs in a purge: it keeps its descriptors, and nobody is told of
// its end.
bool is_a_corpse(pid_t pid);

}  // namespace vremote::node
