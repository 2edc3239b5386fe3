// Acting as the caller while a file is made.
//
// The file-system uid, gid and groups of this thread alone are switched around the call, rather
// than changing the owner afterwards: the file system itself then decides about set-group-ID
// directories, default ACLs, quotas and the caller's right to write in the directory, and there is
// no moment in which the file belongs to root.
//
// Side effect of the kernel (commit_creds): the process becomes undumpable and the thread's
// PR_SET_PDEATHSIG is cleared. A process that wants core dumps sets PR_SET_DUMPABLE again.
#pragma once

#include <sys/types.h>

#include <cerrno>
#include <vector>

#include "base/result.h"
#include "coherence/messages.h"

namespace vremote::store {

// True when this process may act as any user.
bool may_act_as_others();

class CallerScope {
 public:
  // Does nothing when `enabled` is false (an unprivileged daemon: files are its own).
  static Result<CallerScope> enter(const coherence::Caller& caller, bool enabled);
  CallerScope(CallerScope&& other) noexcept;
  CallerScope& operator=(CallerScope&&) = delete;
  ~CallerScope();  // back to the process's own identity; aborts if that fails

 private:
  CallerScope() = default;
  bool active_ = false;
  uid_t uid_ = 0;
  gid_t gid_ = 0;
  std::vector<gid_t> groups_;
};

// Runs a system call as the caller and gives its result, or its errno.
template <typename Function>
Result<int> as_caller(const coherence::Caller& caller, bool enabled, Function&& function) {
  int result = -1, code = 0;
  {
    VR_TRY(scope, CallerScope::enter(caller, enabled));
    static_cast<void>(scope);
    result = function();
    code = errno;
  }
  if (result < 0) return fail(code);
  return result;
}

}  // namespace vremote::store
