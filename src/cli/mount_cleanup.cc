#include "cli/mount_cleanup.h"

#include <fmt/format.h>
#include <sys/mount.h>

#include <cerrno>
#include <cstring>

#include "fuse/fusectl.h"
#include "fuse/mountinfo.h"

namespace vremote::cli {
namespace {

constexpr int kStackedMax = 16;  // mounts at one point; a bound for the loop, nobody has so many

bool is_fuse(const fuse::MountEntry& mount) {
  return mount.type == "fuse" || mount.type.starts_with("fuse.");
}

// The connection is named by the device number, which mountinfo tells; stat on the mount could
// hang.
Status abort_entry(const fuse::MountEntry& mount) { return fuse::abort_connection(mount.minor); }

}  // namespace

Status abort_connection(const std::string& point) {
  VR_TRY(mount, fuse::mounted_at(point));
  if (!mount || !is_fuse(*mount)) return {};
  return abort_entry(*mount);
}

Result<bool> remove_mounts(const std::string& point) {
  for (int i = 0; i < kStackedMax; ++i) {
    VR_TRY(mount, fuse::mounted_at(point));
    if (!mount) return i > 0;
    if (is_fuse(*mount)) VR_TRY_VOID(abort_entry(*mount));
    if (::umount2(point.c_str(), MNT_DETACH | UMOUNT_NOFOLLOW) != 0)
      return fail(errno, fmt::format("cannot unmount {}: {}", point, std::strerror(errno)));
  }
  return fail(EBUSY, fmt::format("{} is mounted again and again", point));
}

}  // namespace vremote::cli
