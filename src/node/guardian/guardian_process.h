// The guardian as a process, and the daemon's that it watches.
#pragma once

#include <sys/types.h>

#include <string_view>

namespace vremote::node {

// Only the right to end the connection and the mount is left; the last to be killed when memory is
// short; room for many files.
void be_modest_and_last();

// Killed, but one of its threads hangs in a purge: it keeps its descriptors, and nobody is told of
// its end.
bool is_a_corpse(pid_t pid);
// By the text of /proc/PID/status. A signal that it waits for (sigwait) is none that ends it, but
// looks like one until it has got the processor: the kernel shows it as pending and not blocked.
bool is_a_corpse(std::string_view status);

}  // namespace vremote::node
