// Short words for what tests do with files.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/fd.h"

namespace vremote::live {

Fd open_at(const std::string& path, int flags, unsigned mode = 0644);
// All of it; where there is none, or it cannot be read, a text that says why.
std::string read_all(const std::string& path);
// Creates or replaces; errno or 0.
int put(const std::string& path, std::string_view content);
// errno or 0; EIO when not all was written.
int write_at(const Fd& fd, uint64_t offset, std::string_view content);
bool exists(const std::string& path);

}  // namespace vremote::live
