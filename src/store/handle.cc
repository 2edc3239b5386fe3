#include "store/handle.h"

#include <fcntl.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <ctime>
#include <span>

namespace vremote::store {
namespace {

// struct file_handle with room for the largest handle.
struct HandleBuffer {
  alignas(file_handle) std::byte bytes[sizeof(file_handle) + MAX_HANDLE_SZ] = {};
  file_handle* get() { return reinterpret_cast<file_handle*>(bytes); }
};

uint32_t nonzero_hash(std::span<const std::byte> data) {
  // FNV-1a, then a final mix: handles differ in few bits.
  uint64_t h = 0xCBF29CE484222325u;
  for (const std::byte byte : data) h = (h ^ static_cast<uint8_t>(byte)) * 0x100000001B3u;
  h ^= h >> 32;
  h *= 0x9E3779B97F4A7C15u;
  auto value = static_cast<uint32_t>(h >> 32);
  return value != 0 ? value : 1;
}

}  // namespace

Result<NamedHandle> handle_of(int dir, const char* name) {
  HandleBuffer buffer;
  file_handle* handle = buffer.get();
  handle->handle_bytes = MAX_HANDLE_SZ;
  NamedHandle result;
  int flags = *name == '\0' ? AT_EMPTY_PATH : 0;
  if (::name_to_handle_at(dir, name, handle, &result.mount_id, flags) != 0) return fail(errno);
  result.handle.resize(sizeof(handle->handle_type) + handle->handle_bytes);
  std::memcpy(result.handle.data(), &handle->handle_type, sizeof(handle->handle_type));
  std::memcpy(result.handle.data() + sizeof(handle->handle_type), handle->f_handle,
              handle->handle_bytes);
  return result;
}

Result<Fd> open_handle(int mount, const std::string& handle) {
  HandleBuffer buffer;
  file_handle* raw = buffer.get();
  if (handle.size() <= sizeof(raw->handle_type) ||
      handle.size() > sizeof(raw->handle_type) + MAX_HANDLE_SZ)
    return fail(EINVAL);
  raw->handle_bytes = static_cast<unsigned>(handle.size() - sizeof(raw->handle_type));
  std::memcpy(&raw->handle_type, handle.data(), sizeof(raw->handle_type));
  std::memcpy(raw->f_handle, handle.data() + sizeof(raw->handle_type), raw->handle_bytes);
  Fd fd(::open_by_handle_at(mount, raw, O_PATH | O_CLOEXEC));
  // A stale handle whose inode number is just being given to a new file is reported as ENOMEM
  // (iget_locked() has no other word for it, seen on ext4 and 6.18). A moment later it is ESTALE;
  // memory that is really short stays so.
  for (int attempt = 0; attempt < 100 && !fd.valid() && errno == ENOMEM; ++attempt) {
    timespec moment{0, 200'000};
    ::nanosleep(&moment, nullptr);
    fd = Fd(::open_by_handle_at(mount, raw, O_PATH | O_CLOEXEC));
  }
  if (!fd.valid()) return fail(errno == ENOENT ? ESTALE : errno);
  return fd;
}

uint32_t generation_of(const std::string& handle) {
  return nonzero_hash(std::as_bytes(std::span(handle)));
}

Result<uint32_t> generation_by_birth(int dir, const char* name) {
  struct statx sx {};
  int flags = AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | (*name == '\0' ? AT_EMPTY_PATH : 0);
  if (::statx(dir, name, flags, STATX_BTIME | STATX_INO, &sx) != 0) return fail(errno);
  if ((sx.stx_mask & STATX_BTIME) == 0) return 1;
  const std::array<uint64_t, 3> birth{sx.stx_ino, static_cast<uint64_t>(sx.stx_btime.tv_sec),
                                      sx.stx_btime.tv_nsec};
  return nonzero_hash(std::as_bytes(std::span(birth)));
}

}  // namespace vremote::store
