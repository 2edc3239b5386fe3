// The kernel's control file system for FUSE connections (usually at /sys/fs/fuse/connections).
#pragma once

#include <cstdint>

#include "base/result.h"

namespace vremote::fuse {

// Aborts the connection of that id: every request in it ends with an error, also those in D state.
// A success when there is no such connection (any more). Works without the control file system
// being mounted, given CAP_SYS_ADMIN. Never blocks on the connection's daemon.
Status abort_connection(uint32_t id);

}  // namespace vremote::fuse
