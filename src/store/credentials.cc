#include "store/credentials.h"

#include <linux/capability.h>
#include <sys/fsuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace vremote::store {
namespace {

constexpr uid_t kAsk =
    static_cast<uid_t>(-1);  // not a valid id: the call changes nothing and tells the present one

// The C library's setgroups() changes all threads; the system call only this one.
bool set_thread_groups(const std::vector<gid_t>& groups) {
  return ::syscall(SYS_setgroups, groups.size(), groups.data()) == 0;
}

}  // namespace

bool may_act_as_others() {
  if (::geteuid() != 0) return false;
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[2] = {};
  if (::syscall(SYS_capget, &header, data) != 0) return false;
  constexpr uint32_t kNeeded = 1u << CAP_SETUID | 1u << CAP_SETGID;
  if ((data[0].effective & kNeeded) != kNeeded) return false;
  // In a user's own namespace these are there and setgroups() is refused all the same.
  std::vector<gid_t> groups(static_cast<size_t>(std::max(0, ::getgroups(0, nullptr))));
  const int count = ::getgroups(static_cast<int>(groups.size()), groups.data());
  return count >= 0 && set_thread_groups(groups);
}

Result<CallerScope> CallerScope::enter(const coherence::Caller& caller, bool enabled) {
  if (caller.groups.size() > coherence::kGroupsMax || caller.uid == kAsk || caller.gid == kAsk)
    return fail(EINVAL);
  CallerScope scope;
  if (!enabled) return scope;
  int count = ::getgroups(0, nullptr);
  if (count < 0) return fail(errno);
  scope.groups_.resize(static_cast<size_t>(count));
  if (count > 0 && ::getgroups(count, scope.groups_.data()) != count) return fail(EAGAIN);
  scope.uid_ = ::geteuid();
  scope.gid_ = ::getegid();
  if (!set_thread_groups(caller.groups)) return fail(errno);
  scope.active_ = true;  // from here the destructor undoes it
  // Neither call reports failure: ask again. The uid comes last: it takes the capabilities of the
  // file system with it.
  ::setfsgid(caller.gid);
  if (static_cast<gid_t>(::setfsgid(kAsk)) != caller.gid) return fail(EPERM);
  ::setfsuid(caller.uid);
  if (static_cast<uid_t>(::setfsuid(kAsk)) != caller.uid) return fail(EPERM);
  return scope;
}

CallerScope::CallerScope(CallerScope&& other) noexcept
    : active_(std::exchange(other.active_, false)),
      uid_(other.uid_),
      gid_(other.gid_),
      groups_(std::move(other.groups_)) {}

CallerScope::~CallerScope() {
  if (!active_) return;
  ::setfsuid(uid_);
  ::setfsgid(gid_);
  bool restored = set_thread_groups(groups_) && static_cast<uid_t>(::setfsuid(kAsk)) == uid_ &&
                  static_cast<gid_t>(::setfsgid(kAsk)) == gid_;
  VR_CHECK_MSG(restored, "a thread kept a caller's identity");
}

}  // namespace vremote::store
