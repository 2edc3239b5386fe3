#include "fuse/mount.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/capability.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <utility>

#include "base/check.h"
#include "fuse/fusectl.h"
#include "fuse/mount_point.h"
#include "fuse/mountinfo.h"
#include "fuse/probe.h"

namespace vremote::fuse {
namespace {

constexpr int kProbeMs = 3000;
constexpr int kStackedMax = 16;  // dead mounts on top of each other that one start clears away

Result<std::string> real_path(const std::string& path) {
  std::array<char, PATH_MAX> buffer;
  if (::realpath(path.c_str(), buffer.data()) == nullptr) {
    if (errno == ENOENT)
      return fail(ENOENT, fmt::format("{} does not exist: run `mkdir -p {}`", path, path));
    return fail(errno, fmt::format("cannot resolve {}: {}", path, std::strerror(errno)));
  }
  return std::string(buffer.data());
}

// `path` without symbolic links, and without asking a file system that may be mounted exactly
// there: it may be dead, or ours.
Result<std::string> resolve(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  const size_t slash = path.rfind('/');
  const std::string name = slash == std::string::npos ? path : path.substr(slash + 1);
  if (name.empty() || name == "." || name == "..") {
    return fail(EINVAL, fmt::format("cannot mount on '{}': name a directory of its own", path));
  }
  VR_TRY(parent, real_path(slash == std::string::npos ? "." : path.substr(0, slash + 1)));
  std::string point = parent == "/" ? "/" + name : parent + "/" + name;
  VR_TRY(mounted, mounted_at(point));
  if (mounted) return point;
  return real_path(point);
}

std::unexpected<Error> is_taken(const MountEntry& mounted) {
  return fail(EBUSY,
              fmt::format("a {} file system ({}) is mounted at {}: unmount it, or mount elsewhere",
                          mounted.type, mounted.source, mounted.point));
}

// Detaches what dead daemons of ours left at `point`; refuses anything else.
Status clear_point(const std::string& point) {
  for (int i = 0; i < kStackedMax; ++i) {
    VR_TRY(mounted, mounted_at(point));
    if (!mounted) return {};
    if (mounted->type != kMountType) return is_taken(*mounted);
    switch (probe(point, kProbeMs)) {
      case Liveness::Alive:
        return fail(EBUSY,
                    fmt::format("{} is already mounted and served: stop that daemon first", point));
      case Liveness::Silent:
        return fail(
            EBUSY,
            fmt::format("the daemon serving {} does not answer: end it, or run `umount -l {}`",
                        point, point));
      case Liveness::Dead:
        break;
    }
    if (::umount2(point.c_str(), MNT_DETACH | UMOUNT_NOFOLLOW) != 0) {
      return fail(errno,
                  fmt::format("cannot detach the dead mount at {}: run `umount -l {}` as root",
                              point, point));
    }
  }
  return fail(EBUSY, fmt::format("too many dead mounts at {}: run `umount -l {}` until it fails",
                                 point, point));
}

Status check_directory(const std::string& point) {
  std::error_code error;
  if (!std::filesystem::is_directory(point, error) || error) {
    return fail(error ? error.value() : ENOTDIR,
                fmt::format("{} is not a directory: name one to mount on", point));
  }
  const bool empty = std::filesystem::is_empty(point, error);
  if (error) return fail(error.value(), fmt::format("cannot read {}: {}", point, error.message()));
  if (!empty)
    return fail(ENOTEMPTY,
                fmt::format("{} is not empty: mounting would hide what is in it", point));
  return {};
}

std::string kernel_options(const MountOptions& options, int fd) {
  std::string text =
      fmt::format("fd={},rootmode=40000,user_id={},group_id={},max_read={}", fd, ::geteuid(),
                  ::getegid(), std::min(options.max_read, kMaxTransfer));
  if (options.default_permissions) text += ",default_permissions";
  if (options.allow_other) text += ",allow_other";
  return text;
}

unsigned long kernel_flags(const MountOptions& options) {
  unsigned long flags = 0;
  if (options.read_only) flags |= MS_RDONLY;
  if (!options.allow_suid) flags |= MS_NOSUID;
  if (!options.allow_devices) flags |= MS_NODEV;
  return flags;
}

constexpr const char* kMend =
    "run as root (CAP_SYS_ADMIN), or see 'Without root' in docs/operations.md";

Status attach(const std::string& point, const MountOptions& options, int fd) {
  const std::string data = kernel_options(options, fd);
  if (::mount(options.name.c_str(), point.c_str(), kMountType, kernel_flags(options),
              data.c_str()) == 0)
    return {};
  switch (errno) {
    case EPERM:
      return fail(EPERM, fmt::format("may not mount on {}: {}", point, kMend));
    case ENODEV:
      return fail(ENODEV, "this kernel has no FUSE: run `modprobe fuse`");
    default:
      return fail(errno, fmt::format("cannot mount on {}: {}", point, std::strerror(errno)));
  }
}

Status write_file(const std::string& path, std::string_view text) {
  const Fd fd(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
  if (!fd.valid()) return fail(errno, fmt::format("cannot open {}", path));
  if (::write(fd.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size())) {
    return fail(errno, fmt::format("cannot write '{}' to {}", text, path));
  }
  return {};
}

Result<uint32_t> read_number(const std::string& path) {
  const Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  std::array<char, 32> text;
  const ssize_t length = fd.valid() ? ::read(fd.get(), text.data(), text.size()) : -1;
  if (length < 0) return fail(errno, fmt::format("cannot read {}", path));
  uint32_t value = 0;
  if (std::from_chars(text.data(), text.data() + length, value).ec != std::errc()) {
    return fail(EPROTO, fmt::format("{} has no number", path));
  }
  return value;
}

std::string read_ahead_file(uint32_t connection) {
  // /sys/class/bdi is the documented place; minimal sysfs setups have only what it links to.
  for (const char* bdi : {"/sys/class/bdi", "/sys/devices/virtual/bdi"}) {
    std::string file = fmt::format("{}/0:{}/read_ahead_kb", bdi, connection);
    if (::access(file.c_str(), F_OK) == 0) return file;
  }
  return fmt::format("/sys/class/bdi/0:{}/read_ahead_kb", connection);
}

}  // namespace

Result<bool> check_mount_point(const std::string& path) {
  VR_TRY(point, resolve(path));
  VR_TRY(mounted, mounted_at(point));
  if (mounted && mounted->type != kMountType) return is_taken(*mounted);
  if (!mounted) VR_TRY_VOID(check_directory(point));
  return mounted.has_value();
}

Status check_may_mount() {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  std::array<__user_cap_data_struct, 2> has{};
  if (::syscall(SYS_capget, &header, has.data()) == 0 &&
      (has[0].effective & 1u << CAP_SYS_ADMIN) == 0)
    return fail(EPERM, fmt::format("this user may not mount: {}", kMend));
  VR_TRY_VOID(Channel::open());
  return {};
}

Result<Mount> Mount::mount(const std::string& path, const MountOptions& options) {
  VR_TRY(point, resolve(path));
  VR_TRY_VOID(clear_point(point));
  VR_TRY_VOID(check_directory(point));
  VR_TRY(channel, Channel::open());
  VR_TRY_VOID(attach(point, options, channel.fd()));
  auto entry = mounted_at(point);
  if (!entry || !*entry || (*entry)->type != kMountType) {
    ::umount2(point.c_str(), MNT_DETACH | UMOUNT_NOFOLLOW);
    return entry
               ? fail(EIO, fmt::format("{} was mounted, but is not in /proc/self/mountinfo", point))
               : std::unexpected(std::move(entry).error());
  }
  return Mount(std::move(point), (*entry)->minor, std::move(channel));
}

Result<Mount> Mount::take_over(const std::string& path, uint32_t connection) {
  VR_TRY(point, resolve(path));
  VR_TRY(mounted, mounted_at(point));
  if (!mounted || mounted->type != kMountType || mounted->minor != connection)
    return fail(ENOENT, fmt::format("{} is not mounted any more", point));
  return Mount(std::move(point), connection, std::nullopt);
}

Mount::Mount(std::string path, uint32_t connection, std::optional<Channel> channel)
    : path_(std::move(path)),
      connection_(connection),
      channel_(std::move(channel)),
      mounted_(true) {}

Mount::Mount(Mount&& other) noexcept
    : path_(std::move(other.path_)),
      connection_(other.connection_),
      channel_(std::exchange(other.channel_, std::nullopt)),
      mounted_(std::exchange(other.mounted_, false)) {}

Mount& Mount::operator=(Mount&& other) noexcept {
  if (this != &other) {
    end();
    path_ = std::move(other.path_);
    connection_ = other.connection_;
    channel_ = std::exchange(other.channel_, std::nullopt);
    mounted_ = std::exchange(other.mounted_, false);
  }
  return *this;
}

Mount::~Mount() { end(); }

void Mount::end() {
  if (!mounted_) return;
  // A destructor has nobody to tell, and the worst that can be left is a dead mount, which the next
  // start repairs.
  if (!abort()) channel_.reset();  // the last descriptor aborts too, if it is ours
  (void)unmount();
}

Channel Mount::take_channel() {
  VR_CHECK_MSG(channel_.has_value(), "the channel of a mount is taken once; clone it for more");
  Channel taken = std::move(*channel_);
  channel_.reset();
  return taken;
}

bool Mount::is_ours(const MountEntry& entry) const {
  return entry.point == path_ && entry.type == kMountType && entry.minor == connection_;
}

bool Mount::is_among(const std::vector<MountEntry>& entries) const {
  return std::ranges::any_of(entries, [this](const MountEntry& entry) { return is_ours(entry); });
}

Result<UnmountHow> Mount::unmount() {
  if (!mounted_) return UnmountHow::Clean;
  VR_TRY(top, mounted_at(path_));
  if (!top || !is_ours(*top)) {
    VR_TRY(entries, read_mountinfo());
    if (is_among(entries))
      return fail(EBUSY,
                  fmt::format("something else is mounted over {}: unmount that first", path_));
    mounted_ = false;
    return UnmountHow::Clean;
  }
  UnmountHow how = UnmountHow::Clean;
  if (::umount2(path_.c_str(), UMOUNT_NOFOLLOW) != 0) {
    if (::umount2(path_.c_str(), MNT_DETACH | UMOUNT_NOFOLLOW) != 0) {
      return fail(errno, fmt::format("cannot unmount {}: {}", path_, std::strerror(errno)));
    }
    how = UnmountHow::Lazy;
  }
  mounted_ = false;
  return how;
}

Status Mount::abort(const Channel* channel) const {
  if (channel == nullptr && channel_) channel = &*channel_;
  if (channel != nullptr) {
    if (channel->is_gone()) return {};
  } else {
    VR_TRY(entries, read_mountinfo());
    if (!is_among(entries)) return {};
  }
  Status aborted = abort_connection(connection_);
  if (aborted) return {};
  const auto top = mounted_at(path_);
  // A forced unmount aborts first; that it then cannot unmount what is in use does not matter here.
  if (top && *top && is_ours(**top) &&
      (::umount2(path_.c_str(), MNT_FORCE | UMOUNT_NOFOLLOW) == 0 || errno == EBUSY))
    return {};
  return aborted;
}

void Mount::detach_unseen() {
  if (!mounted_ || read_mountinfo()) return;
  // Forced it ends the connection, too, which not all may.
  (void)::umount2(path_.c_str(), MNT_FORCE | UMOUNT_NOFOLLOW);
  if (::umount2(path_.c_str(), MNT_DETACH | UMOUNT_NOFOLLOW) == 0) mounted_ = false;
}

Status Mount::set_read_ahead(uint32_t kib) const {
  return write_file(read_ahead_file(connection_), fmt::format("{}", kib));
}

Result<uint32_t> Mount::read_ahead() const { return read_number(read_ahead_file(connection_)); }

uint32_t Mount::kernel_max_pages() {
  const auto limit = read_number("/proc/sys/fs/fuse/max_pages_limit");
  return limit ? std::clamp(*limit, 1u, 65535u) : kMaxPages;
}

}  // namespace vremote::fuse
