// Whether something could be mounted, without mounting.
#pragma once

#include <string>

#include "base/result.h"

namespace vremote::fuse {

// As Mount::mount() would find `path`, in its words. True: a mount of ours is there already, which
// is not touched: it may be served, or dead.
Result<bool> check_mount_point(const std::string& path);
// Whether this process may mount anything.
Status check_may_mount();

}  // namespace vremote::fuse
