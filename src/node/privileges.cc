#include "node/privileges.h"

#include <fmt/format.h>
#include <linux/capability.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace vremote::node {

// The system calls themselves: what libcap adds is not needed for three of them.
const std::vector<KeptCapability>& kept_capabilities() {
  static const std::vector<KeptCapability> kept = {
      {CAP_CHOWN, "chown", "files of exports change owners"},
      {CAP_DAC_OVERRIDE, "dac_override", "files of exports belong to all users"},
      {CAP_DAC_READ_SEARCH, "dac_read_search", "open_by_handle_at()"},
      {CAP_FOWNER, "fowner", "modes and times of files of exports; O_NOATIME"},
      {CAP_FSETID, "fsetid", "set-ID bits stay when the daemon writes"},
      {CAP_SETGID, "setgid", "to act as the caller: setfsgid(), setgroups()"},
      {CAP_SETUID, "setuid", "to act as the caller: setfsuid()"},
      {CAP_NET_BIND_SERVICE, "net_bind_service", "a port below 1024"},
      {CAP_SYS_ADMIN, "sys_admin", "mount, umount, fanotify, trusted.* attributes"},
      {CAP_SYS_RESOURCE, "sys_resource", "PR_SET_IO_FLUSHER; reserved blocks, as root has them"},
      {CAP_MKNOD, "mknod", "device nodes that root makes in exports"},
      {CAP_SETFCAP, "setfcap", "capabilities of files that root sets in exports"},
  };
  return kept;
}

std::string drop_privileges() {
  if (::geteuid() != 0) return {};
  uint64_t mask = 0;
  for (const KeptCapability& c : kept_capabilities()) mask |= uint64_t{1} << c.number;
  auto failed = [](const char* what) {
    return fmt::format("{}: {}; the daemon keeps more rights than it needs", what,
                       std::strerror(errno));
  };
  for (int c = 0; c < 64; ++c) {
    const int has = ::prctl(PR_CAPBSET_READ, c, 0, 0, 0);
    if (has < 0) break;  // beyond the kernel's last
    if (has == 1 && (mask >> c & 1) == 0 && ::prctl(PR_CAPBSET_DROP, c, 0, 0, 0) != 0)
      return failed("PR_CAPBSET_DROP");
  }
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct data[2] = {};
  if (::syscall(SYS_capget, &header, data) != 0) return failed("capget");
  for (int i = 0; i < 2; ++i) {
    const auto part = static_cast<uint32_t>(mask >> (32 * i));
    data[i].permitted &= part;
    data[i].effective = data[i].permitted;
    data[i].inheritable = 0;
  }
  if (::syscall(SYS_capset, &header, data) != 0) return failed("capset");
  (void)::prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return failed("PR_SET_NO_NEW_PRIVS");
  return {};
}

}  // namespace vremote::node
