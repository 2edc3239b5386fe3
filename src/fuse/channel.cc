#include "fuse/channel.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <limits>
#include <vector>

#include "base/check.h"
#include "fuse/buffer.h"
#include "fuse/protocol.h"

namespace vremote::fuse {
namespace {

// Without what libc adds in processes of several threads for pthread_cancel(), which nobody calls
// here: four locked instructions per request.
ssize_t raw(long call, const Fd& fd, const void* memory, size_t count) {
  return ::syscall(call, fd.get(), memory, count);
}

constexpr const char* kDevice = "/dev/fuse";
constexpr size_t kPartsMax = 1024;  // UIO_MAXIOV
constexpr size_t kSmallReply = 256;
constexpr size_t kNameMax = 1024;  // FUSE_NAME_MAX of every kernel; newer ones take more
constexpr int kErrnoEnd = 512;     // the kernel refuses replies with errors from here on

constexpr const char* kMend =
    "remove what is there, then run `mknod -m 666 /dev/fuse c 10 229`; a container needs `--device "
    "/dev/fuse`";

// mount(2) says no more of another than EINVAL.
Status is_the_device(const Fd& fd) {
  struct stat info {};
  if (::fstat(fd.get(), &info) == 0 && S_ISCHR(info.st_mode) && info.st_rdev == makedev(10, 229))
    return {};
  return fail(ENODEV, fmt::format("/dev/fuse is not the kernel's device of that name: {}", kMend));
}

Result<Fd> open_device() {
  Fd fd(::open(kDevice, O_RDWR | O_CLOEXEC | O_NONBLOCK));
  if (fd.valid()) {
    VR_TRY_VOID(is_the_device(fd));
    return fd;
  }
  switch (errno) {
    case ENOENT:
    case ENODEV:
    case ENXIO:
      return fail(
          errno,
          "there is no /dev/fuse: run `modprobe fuse`; a container needs `--device /dev/fuse`");
    case EACCES: {
      struct stat st {};
      (void)::stat("/dev/fuse", &st);
      return fail(EACCES,
                  fmt::format("/dev/fuse may not be opened by this user (mode {:04o}, owner "
                              "{}): run as root, or `chmod 666 /dev/fuse` as root",
                              st.st_mode & 07777, st.st_uid));
    }
    case EPERM:
      return fail(
          errno,
          "/dev/fuse may not be opened: run as root; a container needs `--device /dev/fuse`");
    default:
      return fail(errno, fmt::format("cannot open /dev/fuse: {}; {}", std::strerror(errno), kMend));
  }
}

iovec part_of(std::span<const std::byte> bytes) {
  return {.iov_base = const_cast<std::byte*>(bytes.data()), .iov_len = bytes.size()};
}

template <typename T>
std::span<const std::byte> bytes_of(const T& value) {
  return std::as_bytes(std::span<const T, 1>(&value, 1));
}

// A reply or notification is one write(2) of all of it.
Status written(size_t length, auto write) {
  while (true) {
    const ssize_t done = write();
    if (done == static_cast<ssize_t>(length)) return {};
    if (done >= 0) return fail(EIO, "/dev/fuse took only a part of a reply");
    if (errno != EINTR) return fail(errno);
  }
}

// What is not there cannot be stale.
Status absent_is_done(Status status) {
  if (!status && status.error().code == ENOENT) return {};
  return status;
}

}  // namespace

Result<Channel> Channel::open() {
  VR_TRY(fd, open_device());
  return Channel(std::move(fd));
}

Result<Channel> Channel::clone() const {
  VR_TRY(fd, open_device());
  auto original = static_cast<uint32_t>(fd_.get());
  if (::ioctl(fd.get(), FUSE_DEV_IOC_CLONE, &original) != 0) {
    return fail(errno,
                "cannot clone the /dev/fuse descriptor; that is possible only while it is mounted");
  }
  return Channel(std::move(fd));
}

bool Channel::is_gone() const {
  pollfd entry{fd_.get(), 0, 0};
  return ::poll(&entry, 1, 0) == 1 && (entry.revents & POLLERR) != 0;
}

Result<size_t> Channel::receive(std::span<std::byte> buffer) const {
  VR_CHECK_MSG(buffer.size() >= kReceiveBufferSize, "the kernel refuses smaller buffers");
  while (true) {
    const ssize_t length = raw(SYS_read, fd_, buffer.data(), buffer.size());
    if (length > 0) return static_cast<size_t>(length);
    if (length == 0) return fail(EPROTO, "/dev/fuse delivered an empty request");
    // ENOENT: the request was interrupted before it was copied to us; the kernel has dealt with it.
    if (errno != ENOENT) return fail(errno);
  }
}

Status Channel::send(uint64_t unique, int32_t code, std::span<const iovec> parts) const {
  fuse_out_header head{};
  head.unique = unique;
  head.error = code;
  size_t length = sizeof(head);
  for (const iovec& part : parts) length += part.iov_len;
  VR_CHECK(length <= std::numeric_limits<uint32_t>::max());
  head.len = static_cast<uint32_t>(length);

  // Joined, since the kernel pins the memory of each part. Not a notification, which may name
  // memory that cannot be read (push_size()).
  if (unique != 0 && length <= kSmallReply) {
    std::array<std::byte, kSmallReply> small;
    std::memcpy(small.data(), &head, sizeof(head));
    size_t at = sizeof(head);
    for (const iovec& part : parts) {
      if (part.iov_len > 0) std::memcpy(small.data() + at, part.iov_base, part.iov_len);
      at += part.iov_len;
    }
    return written(length, [&] { return raw(SYS_write, fd_, small.data(), length); });
  }

  std::array<iovec, kPartsMax> all;  // left uninitialised: only the first `count` are used
  std::vector<std::byte> joined;
  size_t count = 1;
  all[0] = part_of(bytes_of(head));

  if (parts.size() < kPartsMax) {
    count += static_cast<size_t>(std::ranges::copy(parts, all.begin() + 1).out - (all.begin() + 1));
  } else {
    // More pieces than one writev takes, and a reply must be one write.
    joined.reserve(length - sizeof(head));
    for (const iovec& part : parts) {
      const auto* data = static_cast<const std::byte*>(part.iov_base);
      joined.insert(joined.end(), data, data + part.iov_len);
    }
    all[count++] = part_of(joined);
  }

  return written(length, [&] { return raw(SYS_writev, fd_, all.data(), count); });
}

Status Channel::reply_error(uint64_t unique, int error) const {
  // Errors come from other machines too; an odd one must not leave the request unanswered.
  const int known = error > 0 && error < kErrnoEnd ? error : EIO;
  return absent_is_done(send(unique, -known, {}));
}

Status Channel::reply(uint64_t unique, std::span<const iovec> parts) const {
  return absent_is_done(send(unique, 0, parts));
}

Status Channel::reply(uint64_t unique, std::span<const std::byte> bytes) const {
  const iovec part = part_of(bytes);
  return reply(unique, std::span<const iovec>(&part, 1));
}

Status Channel::reply(uint64_t unique) const { return reply(unique, std::span<const iovec>()); }

Status Channel::notify(int32_t code,
                       std::initializer_list<std::span<const std::byte>> parts) const {
  std::array<iovec, 4> all{};
  VR_CHECK(parts.size() <= all.size());
  std::ranges::transform(parts, all.begin(), part_of);
  return send(0, code, std::span<const iovec>(all.data(), parts.size()));
}

Status Channel::invalidate_data(uint64_t node, uint64_t offset, uint64_t length) const {
  constexpr auto kEnd = static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
  VR_CHECK(offset <= kEnd);  // a negative offset would silently drop attributes only
  fuse_notify_inval_inode_out out{};
  out.ino = node;
  out.off = static_cast<int64_t>(offset);
  out.len = length <= kEnd - offset ? static_cast<int64_t>(length) : 0;
  return absent_is_done(notify(FUSE_NOTIFY_INVAL_INODE, {bytes_of(out)}));
}

Status Channel::invalidate_attributes(uint64_t node) const {
  fuse_notify_inval_inode_out out{};
  out.ino = node;
  out.off = -1;
  return absent_is_done(notify(FUSE_NOTIFY_INVAL_INODE, {bytes_of(out)}));
}

Result<bool> Channel::expire_name(uint64_t directory, std::string_view name) const {
  if (name.empty() || name.size() > kNameMax) return fail(ENAMETOOLONG);
  fuse_notify_inval_entry_out out{};
  out.parent = directory;
  out.namelen = static_cast<uint32_t>(name.size());
  out.flags = kExpireOnly;
  constexpr std::byte kNul{0};
  auto done = notify(FUSE_NOTIFY_INVAL_ENTRY,
                     {bytes_of(out), std::as_bytes(std::span(name)), bytes_of(kNul)});
  if (!done && done.error().code == ENOENT) return false;
  if (!done) return std::unexpected(done.error());
  return true;
}

Status Channel::store(uint64_t node, uint64_t offset, std::span<const std::byte> bytes) const {
  VR_CHECK(bytes.size() <= kMaxTransfer);
  fuse_notify_store_out out{};
  out.nodeid = node;
  out.offset = offset;
  out.size = static_cast<uint32_t>(bytes.size());
  return absent_is_done(notify(FUSE_NOTIFY_STORE, {bytes_of(out), bytes}));
}

namespace {

// A page that cannot be read, for as long as the process lives.
std::byte* unreadable() {
  static void* const page = ::mmap(nullptr, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return page == MAP_FAILED ? nullptr : static_cast<std::byte*>(page);
}

}  // namespace

Status Channel::push_size(uint64_t node, uint64_t size) const {
  VR_CHECK(size > 0);
  fuse_notify_store_out out{};
  out.nodeid = node;
  out.offset = size - 1;
  out.size = 1;
  Status pushed =
      notify(FUSE_NOTIFY_STORE, {bytes_of(out), std::span<const std::byte>(unreadable(), 1)});
  if (!pushed && pushed.error().code == EFAULT)
    return {};  // the size is raised, nothing was copied
  return pushed;
}

Status Channel::resend() const { return notify(kNotifyResend, {}); }

Status Channel::inc_epoch() const { return notify(kNotifyIncEpoch, {}); }

}  // namespace vremote::fuse
