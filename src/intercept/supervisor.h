// `vremote run -- CMD…`: runs CMD so that its open() and openat() calls with O_REMOTE open files of
// the mount.
//
// CMD and everything it starts carry a seccomp filter that traps only those calls (trap_filter.h);
// a supervisor serves them (open_server.h). Three processes:
//
//   run()'s caller     waits for CMD, hands on signals and stops, and ends as CMD ended
//    └ supervisor      serves and reaps until the last process of the tree is gone
//       └ CMD          in the caller's process group and session, so it keeps the terminal
//
// The supervisor is CMD's ancestor because only ancestors may read a program's memory where Yama
// restricts ptrace, and a process of its own because background children of CMD need it after the
// caller has returned CMD's status. It has a session of its own (no signal of the terminal reaches
// it) and keeps none of the caller's descriptors but stderr; when CMD is gone it gives up a stderr
// that is a pipe or a socket, so that nobody waits for its end. When it is killed, trapped opens
// fail with ENOSYS. When the caller is killed (SIGKILL cannot be handed on), so is CMD.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/result.h"
#include "intercept/resolve.h"

namespace vremote::intercept {

struct RunOptions {
  std::vector<std::string> argv;  // CMD and its arguments; CMD is looked up in PATH
  Namespace names;                // of the node CMD runs on
  // Asked for a fresh Namespace when a path is in no export (a peer may have connected since). May
  // be empty. Runs in the supervisor process, with all descriptors but 0 to 2 closed; one call at a
  // time, at most one a second.
  std::function<Result<Namespace>()> reload;
  // io_uring opens pass by the filter: without this, io_uring_setup fails with ENOSYS.
  bool allow_io_uring = false;
  // Refuse to open anything while names.mount is not a mount point. Tests with plain directories
  // say false.
  bool require_mount = true;
};

// Runs CMD until it ends. The value is CMD's exit status: 127 when it was not found, 126 when it
// could not be executed. When a signal killed CMD, the calling process kills itself with the same
// one (and returns 128 + its number if it survives that). Errors are those of the set-up: EBUSY
// when a supervisor is installed already (`vremote run` in `vremote run`), ENOSYS where the kernel
// is too old (Linux 5.14 needed), EINVAL for an empty argv. Call it from a single-threaded process.
Result<int> run(const RunOptions& options);

}  // namespace vremote::intercept
