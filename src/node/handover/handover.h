// What one daemon of a node leaves to the next: `vremote upgrade` (docs/architecture.md).
//
// A record in memory that both have (memfd), and descriptors that stay open over exec(2). The next
// daemon may be another version: it says beforehand which version of this format it reads, and the
// record is verified and bounded like everything that comes from outside.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/ids.h"
#include "base/result.h"
#include "coherence/bond.h"
#include "net/agent_session.h"
#include "node/base/kept.h"
#include "node/handover/after_crash.h"
#include "node/handover/handover_version.h"
#include "wire/handshake.h"

namespace vremote::node {

struct Handover {
  std::string node, cluster, mount_path;
  uint64_t incarnation = 0;  // as an agent
  uint32_t upgrades = 0;     // of this process, with this one
  int64_t began_ns = 0;      // CLOCK_MONOTONIC: since when nobody serves the kernel
  KeptMount mount;
  struct Inode {
    uint64_t node = 0, lookups = 0;
    uint32_t home = 0;  // index into homes
    FileId file;
  };
  uint64_t next_node = 0;
  std::vector<Inode> inodes;
  struct Home {
    std::string name;
    KeptHome kept;
    std::optional<net::KeptSession> session;  // none: of this very machine
    std::vector<wire::Export> exports;
    coherence::Bond::Kept bond;
  };
  std::vector<Home> homes;
  struct Guardian {
    int link = -1, table = -1;
    int pid = -1;
  };
  std::optional<Guardian> guardian;
  struct Held {  // files of exports (store::Store::held())
    FileId file;
    int descriptor = -1;
    bool pinned = false;
  };
  std::vector<Held> held;
  // The daemon before was killed, and another process (salvage.h). Not in the record.
  std::shared_ptr<AfterCrash> crash;

  // All that must stay open over exec(2).
  std::vector<int> descriptors() const;
};

// Fails for what is larger than any daemon should leave.
Result<std::vector<std::byte>> encode(const Handover& handover);
Result<Handover> decode_handover(std::span<const std::byte> bytes);

// In memory that has no name; the descriptor is not closed by exec(2).
Result<Fd> write_handover(std::span<const std::byte> bytes);
Result<Handover> read_handover(const Fd& memory);

}  // namespace vremote::node
