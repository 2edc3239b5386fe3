// Small files that outlive a power failure.
#pragma once

#include <string>
#include <string_view>

#include "base/fd.h"
#include "base/result.h"

namespace vremote {

// All of it, at the descriptor's offset. An error says why only.
Status write_all(const Fd& fd, std::string_view bytes);

// Replaced as a whole: after a power failure it is the old one or the new one. On return it is on
// the disk, and so is its name.
Status replace_durably(const std::string& path, std::string_view text);

// On return it is on the disk, but under its name only a moment later: a power failure until then
// brings the old one back.
Status replace_soon(const std::string& path, std::string_view text);

// The names of the directory in which the path is are on the disk.
Status sync_directory_of(const std::string& path);

}  // namespace vremote
