// Opens a Target under the mount, and nothing outside it.
//
// The kernel keeps the walk beneath the export (openat2 with RESOLVE_BENEATH), so that neither a
// symbolic link of the export nor a race leads to a local file. A link that leads out by its text
// but back in by its meaning (an absolute one into the export's own directory on its origin) is
// followed by us. With the mount not mounted nothing is opened: O_CREAT would make a local file.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "base/fd.h"
#include "base/result.h"
#include "intercept/flags.h"
#include "intercept/resolve.h"

namespace vremote::intercept {

struct MountOpen {
  OpenFlags flags;
  uint32_t mode = 0;
  bool slash = false;         // the path ended with "/"
  bool require_mount = true;  // see RunOptions::require_mount
};

// Errors: those of openat2(2), without a sentence; ENXIO with one when the mount, the export or a
// link's target is not there.
Result<Fd> open_under_mount(const Namespace& names, const Target& target, const MountOpen& how);

// `rest` with its symbolic links followed inside an export that is `origin` on its node.
// `read_link` is given paths relative to the export. ENXIO with a sentence when a link leads out of
// the export, ELOOP.
Result<std::string> follow_inside(
    std::string_view rest, std::string_view origin, bool follow_last,
    const std::function<std::optional<std::string>(const std::string&)>& read_link);

}  // namespace vremote::intercept
