// The middle one of run()'s three processes: starts CMD, serves its opens, reports how it fares.
#pragma once

#include <signal.h>

#include "base/fd.h"
#include "intercept/supervisor.h"

namespace vremote::intercept {

// The signal settings CMD shall start with: those run() was called with.
struct SignalSettings {
  sigset_t mask;
  struct sigaction on_child;
};

// The whole life of the supervisor, in a process just forked for it. Tells `link` Started or
// Failed, then Stopped and Ended.
[[noreturn]] void supervisor_main(const RunOptions& options, const SignalSettings& settings,
                                  Fd link);

}  // namespace vremote::intercept
