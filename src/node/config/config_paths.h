// Paths of the configuration: their normal form and what lies inside what.
#pragma once

#include <string>
#include <string_view>

namespace vremote::node {

// An absolute path without "." and "..", double or trailing slashes; symbolic links are not looked
// at.
std::string normal_path(std::string_view absolute);

// Whether `path` is `directory` or lies inside it, by whole components. Both normal.
bool is_within(std::string_view path, std::string_view directory);

// The path with the symbolic links of its longest existing part resolved, the last component left
// alone: it may be a mount point whose daemon is dead or hanging.
std::string resolve_parents(const std::string& path);

}  // namespace vremote::node
