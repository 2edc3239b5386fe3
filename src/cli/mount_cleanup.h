// Removing a mount whose node is gone or hangs, from outside and without ever touching what is
// mounted.
#pragma once

#include <string>

#include "base/result.h"

namespace vremote::cli {

// Ends the FUSE connection of the mount at `point`, when there is one: its users get errors instead
// of waiting. Touches no other.
Status abort_connection(const std::string& point);

// Aborts and detaches everything mounted at `point`. The value: whether there was anything.
Result<bool> remove_mounts(const std::string& point);

}  // namespace vremote::cli
