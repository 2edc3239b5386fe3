// Identities that cross layers.
#pragma once

#include <compare>
#include <cstdint>
#include <functional>

namespace vremote {

// A file of one export: its inode number and generation on the origin's file system. It survives
// renames and restarts; a reused inode number comes with another generation. The export number is
// given by the origin (its index, stable for one incarnation) and is 0-based; an agent keeps files
// of several origins apart by OriginId.
struct FileId {
  uint32_t export_index = 0;
  uint32_t generation = 0;
  uint64_t inode = 0;
  auto operator<=>(const FileId&) const = default;
};

struct FileIdHash {
  size_t operator()(const FileId& id) const {
    uint64_t h = id.inode * 0x9E3779B97F4A7C15u;
    h ^= (uint64_t{id.export_index} << 32 | id.generation) * 0xC2B2AE3D27D4EB4Fu;
    return static_cast<size_t>(h ^ (h >> 29));
  }
};

// A node as a home knows it: a number given per session, dense and small. 0 is the home's own
// machine.
struct NodeId {
  uint32_t value = 0;
  auto operator<=>(const NodeId&) const = default;
};

}  // namespace vremote
