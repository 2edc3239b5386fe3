// A small file that is replaced as a whole: after a power failure it is the old one or the new one.
#pragma once

#include <string>
#include <string_view>

#include "base/result.h"

namespace vremote::node {

// On return it is on the disk, and so is its name.
Status replace_durably(const std::string& path, std::string_view text);

// On return it is on the disk, but under its name only a moment later: a power failure until then
// brings the old one back.
Status replace_soon(const std::string& path, std::string_view text);

// The names in it are on the disk.
Status sync_directory(const std::string& path);

}  // namespace vremote::node
