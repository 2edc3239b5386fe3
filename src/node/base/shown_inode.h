// The inode number that programs see under the mount (st_ino): the same on every node.
#pragma once

#include <cstdint>
#include <string_view>

namespace vremote::node {

// The origin's own, told apart from those of other homes and exports in the upper bits.
inline uint64_t shown_inode(std::string_view home, uint32_t export_index, uint64_t origin_inode) {
  uint64_t h = 1469598103934665603u;  // FNV-1a
  for (const char ch : home) h = (h ^ static_cast<unsigned char>(ch)) * 1099511628211u;
  h = (h ^ export_index) * 1099511628211u;
  return origin_inode ^ (h & 0x7FFF) << 48;
}

}  // namespace vremote::node
