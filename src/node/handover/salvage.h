// What the next daemon of a node takes from the guardian of a dead one, to go on with its mount
// (docs/architecture.md, "A daemon that died").
//
// The kernel's descriptors come over the guardian's socket, and the table that the dead daemon kept
// (guardian_table.h). A daemon may have died in the middle of writing it, or because it had written
// anywhere: all of it is judged like what comes from a stranger, and one thing that cannot be means
// that nothing is taken. Then, and where the node is not the same any more, the mount is begun
// anew.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"
#include "fuse/init.h"
#include "node/config/config.h"
#include "node/guardian/guardian_table.h"

namespace vremote::node {

// What a table says, when it can be.
struct Salvage {
  uint32_t generation = 0;  // of the dead daemon
  uint32_t early_deaths = 0;
  fuse::Capabilities capabilities;
  std::vector<std::string> homes;
  std::vector<GuardianTable::Export> exports;
  std::vector<GuardianTable::Inode> inodes;
  std::vector<GuardianLock> locks;
};
// A crash that comes again each time ends so: programs get ENOTCONN instead of waiting for ever.
inline constexpr uint32_t kEarlyDeathsMax = 5;

Result<Salvage> read_salvage(const GuardianTable& table, uint64_t identity);

// Of a node: its name, its mount and its exports. Another one cannot go on with the mount.
uint64_t identity_of(const Config& config);

}  // namespace vremote::node
