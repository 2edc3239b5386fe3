// The process that owns a playground and clears it away, whatever becomes of the test.
//
// A FUSE mount whose users are stuck outlives the test that made it. So the playground is not the
// test's child but the child of this small process, forked before anything else: it sees the test's
// end by a pipe (also after SIGKILL), and only it, as the parent, can end the playground and its
// nodes without ever hitting a process that took over a number.
#pragma once

#include <string>

namespace vremote::live {

struct GuardOrders {
  std::string program;  // vremote
  std::string dir;      // fresh, ours alone: removed at the end
  unsigned nodes = 2;
  int seconds = 0;    // from now on, at most
  bool keep = false;  // leave the directory (the mounts go in any case)
};

// What guard_playground() returns and the guard exits with.
enum GuardResult : int {
  kGuardClean = 0,    // the playground ended by itself when told to, everything gone
  kGuardUnclean = 1,  // it had to be forced, or a node failed
  kGuardTimeout = 2,  // the time was over
};

// Runs in the guard: starts the playground, waits until `alive` closes, the playground ends or the
// time is over, then clears away.
int guard_playground(const GuardOrders& orders, int alive);

// Aborts the FUSE connections of all mounts below `dir` and detaches them. Never touches what is
// mounted.
void remove_mounts_below(const std::string& dir, bool abort_first);

}  // namespace vremote::live
