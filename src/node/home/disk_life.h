// The time in which nothing that was written to this machine's disks has been lost (S1 of
// docs/protocol.md): a number that nodes compare with the one they were told before. It is another
// one when the machine has been started anew since, unless everything had been synced before.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"

namespace vremote::node {

struct DiskLife {
  std::string boot;     // of the kernel under which it was last used
  uint64_t number = 0;  // never 0
  bool synced = false;  // and nothing was written since
};
// Nothing when the text is damaged.
std::optional<DiskLife> parse_disk_life(std::string_view text);

// Of this start of the machine; empty: nobody knows.
std::string boot_id();

// To be called before anything is written; notes that the disk is in use. `fresh`: for a life that
// begins. Returned `synced`: nothing that was written before can still be lost. What cannot be read
// begins a new life; what cannot be noted is an error, and then each start is to begin one.
Result<DiskLife> begin_disk_life(const std::string& path, const std::string& boot, uint64_t fresh);
// Everything is on the disks, and nothing more is written.
Status end_disk_life(const std::string& path, DiskLife life);
// The disks have refused something, and tell nobody a second time: the next daemon's nodes are to
// hear of it as of a power failure.
Status break_disk_life(const std::string& path, DiskLife life, uint64_t fresh);

}  // namespace vremote::node
