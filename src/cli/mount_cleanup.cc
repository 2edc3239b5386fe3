#include "cli/mount_cleanup.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mount.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/fd.h"
#include "fuse/mountinfo.h"

namespace vremote::cli {
namespace {

constexpr int kStackedMax = 16;  // mounts at one point; a bound for the loop, nobody has so many

bool is_fuse(const fuse::MountEntry& mount) {
  return mount.type == "fuse" || mount.type.starts_with("fuse.");
}

Status abort_entry(const fuse::MountEntry& mount) {
  // The connection is named by the device number, which mountinfo tells; stat on the mount could
  // hang.
  const std::string file = fmt::format("/sys/fs/fuse/connections/{}/abort", mount.minor);
  Fd fd(::open(file.c_str(), O_WRONLY | O_CLOEXEC));
  if (fd.valid() && ::write(fd.get(), "1", 1) == 1) return {};
  if (errno == ENOENT)
    return {};  // the connection is gone (or fusectl is not mounted: the detach has to do)
  return fail(errno, fmt::format("{}: {}", file, std::strerror(errno)));
}

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
