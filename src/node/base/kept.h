// What the parts of a daemon leave to the next daemon of their node (handover.h).
#pragma once

#include <cstdint>
#include <vector>

#include "coherence/agent.h"
#include "fuse/init.h"

namespace vremote::node {

// Of one home, and of what was asked of it.
struct KeptHome {
  std::vector<coherence::KeptFile> files;
  uint64_t next_id = 0, next_call = 0;
  std::vector<coherence::LockCall> locks;  // that are held, as Reclaim
  struct Call {
    coherence::Call call;
    uint64_t request = 0;  // of the kernel, without the resend bit; 0: of none
  };
  std::vector<Call> calls;  // not replied to
  // An fsync that is under way, with the moments (Agent::sync_begins()) from when it was asked for,
  // and from when the home was; UINT64_MAX: not yet. It speaks of what was before them.
  struct Sync {
    uint64_t request = 0;
    uint64_t asked = 0, begun = 0;
    bool operator==(const Sync&) const = default;
  };
  std::vector<Sync> syncs;
  uint64_t next_sync = 0;
};

// Of the kernel, beside the inodes.
struct KeptMount {
  uint32_t connection = 0;
  fuse::Capabilities capabilities;
  std::vector<int> channels;  // descriptors
  int guardians_channel = -1;
  uint64_t next_handle = 1, next_directory = 1;
  uint32_t generation = 0;  // of the mount's daemons: one more after each that died (handle.h)
  struct Locked {
    uint64_t handle = 0;
    uint64_t node = 0;  // 0: of a daemon that did not know
    coherence::LockKind kind = coherence::LockKind::Range;
    uint64_t owner = 0;
  };
  std::vector<Locked> locked;  // by whom locks were taken through which handle
  std::vector<uint64_t> locked_nodes;
  std::vector<uint64_t> directories;  // open streams
  // Locks that died with a daemon: by whom they were taken through which handle of which inode.
  struct Lost {
    uint64_t handle = 0, node = 0;
    coherence::LockKind kind = coherence::LockKind::Range;
    uint64_t owner = 0;
  };
  std::vector<Lost> lost;
};

}  // namespace vremote::node
