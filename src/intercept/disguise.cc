#include <fmt/format.h>
#include <linux/capability.h>
#include <sys/fsuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

#include "base/check.h"
#include "intercept/caller.h"

// Raw system calls where glibc's wrappers would change every thread of the process.

namespace vremote::intercept {
namespace {

struct Capabilities {
  uint64_t effective = 0, permitted = 0, inheritable = 0;
};

Capabilities get_capabilities() {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[2]{};
  VR_CHECK(::syscall(SYS_capget, &header, data) == 0);
  auto join = [](uint32_t low, uint32_t high) { return uint64_t{high} << 32 | low; };
  return {join(data[0].effective, data[1].effective), join(data[0].permitted, data[1].permitted),
          join(data[0].inheritable, data[1].inheritable)};
}

bool set_effective(uint64_t effective) {
  Capabilities now = get_capabilities();
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[2]{};
  for (int i = 0; i < 2; ++i) {
    data[i].effective = static_cast<uint32_t>(effective >> (32 * i));
    data[i].permitted = static_cast<uint32_t>(now.permitted >> (32 * i));
    data[i].inheritable = static_cast<uint32_t>(now.inheritable >> (32 * i));
  }
  return ::syscall(SYS_capset, &header, data) == 0;
}

bool set_ids(const Credentials& c) {
  // Groups first: giving up the user first may give up the right to do the rest. setfsuid() reports
  // nothing; ask again.
  static_assert(sizeof(gid_t) == 4);
  if (::syscall(SYS_setgroups, c.groups.size(), c.groups.data()) < 0) return false;
  ::setfsgid(c.fsgid);
  ::setfsuid(c.fsuid);
  return static_cast<gid_t>(::setfsgid(static_cast<gid_t>(-1))) == c.fsgid &&
         static_cast<uid_t>(::setfsuid(static_cast<uid_t>(-1))) == c.fsuid;
}

}  // namespace

Disguise::Disguise() {
  own_.fsuid = static_cast<uid_t>(::setfsuid(static_cast<uid_t>(-1)));
  own_.fsgid = static_cast<gid_t>(::setfsgid(static_cast<gid_t>(-1)));
  int n = ::getgroups(0, nullptr);
  VR_CHECK(n >= 0);
  own_.groups.resize(static_cast<size_t>(n));
  VR_CHECK(::getgroups(n, own_.groups.data()) == n);
  Capabilities capabilities = get_capabilities();
  own_.capabilities = capabilities.effective;
  permitted_ = capabilities.permitted;
}

Status Disguise::wear(const Credentials& credentials) {
  bare();
  if (credentials == own_) return {};
  worn_ = true;
  bool same_ids = credentials.fsuid == own_.fsuid && credentials.fsgid == own_.fsgid &&
                  credentials.groups == own_.groups;
  // Capabilities last: setfsuid() itself takes and gives those of the file system.
  if ((same_ids || set_ids(credentials)) && set_effective(credentials.capabilities & permitted_))
    return {};
  bare();
  return fail(EPERM, fmt::format("the supervisor may not act as user {}", credentials.fsuid));
}

void Disguise::bare() {
  if (!worn_) return;
  worn_ = false;
  // A failed wear() may have stopped anywhere, also where nothing was allowed in the first place.
  set_effective(own_.capabilities | permitted_);
  bool same_groups = true;
  if (int n = ::getgroups(0, nullptr); n >= 0) {
    std::vector<gid_t> groups(static_cast<size_t>(n));
    same_groups = ::getgroups(n, groups.data()) == n && groups == own_.groups;
  }
  if (!same_groups) VR_CHECK(::syscall(SYS_setgroups, own_.groups.size(), own_.groups.data()) == 0);
  ::setfsgid(own_.fsgid);
  ::setfsuid(own_.fsuid);
  VR_CHECK(static_cast<uid_t>(::setfsuid(static_cast<uid_t>(-1))) == own_.fsuid);
  VR_CHECK(set_effective(own_.capabilities));
}

}  // namespace vremote::intercept
