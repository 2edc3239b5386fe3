#include "fuse/fusectl.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mount.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cerrno>

#include "base/fd.h"

namespace vremote::fuse {
namespace {

constexpr long kMagic = 0x65735543;  // FUSE_CTL_SUPER_MAGIC, in no uapi header
constexpr const char* kUsualPlace = "/sys/fs/fuse/connections";

Result<Fd> open_control() {
  Fd usual(::open(kUsualPlace, O_PATH | O_DIRECTORY | O_CLOEXEC));
  struct statfs info {};
  if (usual.valid() && ::fstatfs(usual.get(), &info) == 0 && info.f_type == kMagic) return usual;
  // Containers and systems without systemd often do not mount it. A detached mount is seen by
  // nobody and goes with its descriptor (Linux 5.2).
  const Fd context(::fsopen("fusectl", FSOPEN_CLOEXEC));
  if (!context.valid() ||
      ::fsconfig(context.get(), FSCONFIG_CMD_CREATE, nullptr, nullptr, 0) != 0) {
    return fail(errno, fmt::format("run `mount -t fusectl none {}` first", kUsualPlace));
  }
  Fd detached(::fsmount(context.get(), FSMOUNT_CLOEXEC, 0));
  if (!detached.valid())
    return fail(errno, fmt::format("run `mount -t fusectl none {}` first", kUsualPlace));
  return detached;
}

}  // namespace

Status abort_connection(uint32_t id) {
  VR_TRY(control, open_control());
  const Fd file(::openat(control.get(), fmt::format("{}/abort", id).c_str(), O_WRONLY | O_CLOEXEC));
  if (!file.valid() && errno == ENOENT) return {};
  if (!file.valid() || ::write(file.get(), "1", 1) != 1) {
    return fail(errno, fmt::format("cannot abort FUSE connection {}", id));
  }
  return {};
}

}  // namespace vremote::fuse
