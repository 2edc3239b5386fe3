// /proc/self/mountinfo, as far as we need it (pure but for read_mountinfo()).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace vremote::fuse {

struct MountEntry {
  uint32_t id = 0;
  uint32_t major = 0;
  uint32_t minor = 0;
  std::string root;   // the directory of the file system that is mounted; octal escapes undone
  std::string point;  // absolute, octal escapes undone
  std::string type;
  std::string source;
};

// One line; nothing when it is not of the documented form (proc(5)).
std::optional<MountEntry> parse_mount_entry(std::string_view line);

// Every mount of this process's namespace, in order: of several at one point the last covers the
// others.
Result<std::vector<MountEntry>> read_mountinfo();

// The mount visible at `point`, if there is one exactly there.
Result<std::optional<MountEntry>> mounted_at(std::string_view point);

}  // namespace vremote::fuse
