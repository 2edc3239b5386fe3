// The guardian: a small process that keeps a mount honest when its daemon dies or stops.
//
// The kernel goes on serving cached pages, attributes and names without a daemon. So the daemon
// forks this process before it has threads, and gives it the connection's descriptors and a table
// in shared memory (guardian_table.h). When the daemon is gone, or has not moved and the leases of
// a home are over, the guardian reads the kernel's requests in its place and purges:
//   G1  What the kernel writes back is taken at once and kept in a recovery file: a purge waits for
//       it. RELEASE and FLUSH are answered too, or no process could end.
//   G2  All else is held: nobody is told anything that the guardian cannot know. Who waits can be
//       killed (FUSE_INTERRUPT), and gets EIO after soft_timeout_ms. The mount's root answers
//       stat(2), so that umount(8) works.
//   G3  A daemon that wakes up takes everything back, in order, before it looks at anything newer
//       of the kernel, also what was answered: then it is as if it had been slow. No purge counts
//       as returned before that: what it wrote back may be here.
//   G4  A daemon that is dead is waited for: the next one takes the mount over (salvage.h), when
//       all is purged, and has a guardian of its own. What cannot be taken over is retired: the
//       guardian ends the connection. So it does after restart_wait_ms, at SIGTERM, and when it has
//       no room for what it must hold.
//   G5  A dead daemon's process that hangs in the kernel is set free (guardian_corpse.h): the next
//       one cannot come before.
//   G6  What lives in descriptors only goes on here: files of the exports that have no name and are
//       open.
// It has no cache, never touches the mount, and keeps the one capability that ending a connection
// needs.
#pragma once

#include <string>

#include "base/fd.h"
#include "node/guardian/guardian_table.h"

namespace vremote::node {

struct GuardianOptions {
  std::string socket;        // where the next daemon finds it
  std::string recovery_dir;  // for what is written back
  int64_t restart_wait_ms = 60'000;
  int64_t soft_timeout_ms = 0;  // what is held longer gets EIO; 0: nothing does
  // A daemon that has not moved for so long is looked at. It says that it lives three times as
  // often; both together must fit between the end of the shortest lease here and that at its home.
  int64_t stall_ms = 300;
};

// Runs in the forked process; returns its exit status.
int run_guardian(const GuardianOptions& options, GuardianTable& table, Fd link);

}  // namespace vremote::node
