#include "fuse/reply.h"

#include <sys/sysmacros.h>

#include <cstring>

namespace vremote::fuse {
namespace {

constexpr size_t kNameMax = 255;         // what Linux programs expect of a directory entry
constexpr uint32_t kBirthTime = 0x800;   // STATX_BTIME
constexpr uint32_t kBasicStats = 0x7ff;  // STATX_BASIC_STATS: everything but the birth time

StatxTime statx_time(Timestamp t) {
  return {.seconds = t.seconds, .nanoseconds = t.nanoseconds, .reserved = 0};
}

bool kernel_accepts(std::string_view name) {
  return !name.empty() && name.size() <= kNameMax && name.find('/') == std::string_view::npos &&
         name.find('\0') == std::string_view::npos;
}

}  // namespace

fuse_attr attr(const Attributes& attributes, uint64_t shown_inode) {
  fuse_attr out{};
  out.ino = shown_inode;
  out.size = attributes.size;
  out.blocks = attributes.blocks;
  out.atime = static_cast<uint64_t>(attributes.atime.seconds);
  out.mtime = static_cast<uint64_t>(attributes.mtime.seconds);
  out.ctime = static_cast<uint64_t>(attributes.ctime.seconds);
  out.atimensec = attributes.atime.nanoseconds;
  out.mtimensec = attributes.mtime.nanoseconds;
  out.ctimensec = attributes.ctime.nanoseconds;
  out.mode = attributes.mode;
  out.nlink = attributes.nlink;
  out.uid = attributes.uid;
  out.gid = attributes.gid;
  out.rdev = attributes.rdev;
  out.blksize = attributes.block_size;
  return out;
}

fuse_attr_out attr_out(const Attributes& attributes, uint64_t shown_inode, Validity valid) {
  fuse_attr_out out{};
  out.attr_valid = valid.seconds;
  out.attr_valid_nsec = valid.nanoseconds;
  out.attr = attr(attributes, shown_inode);
  return out;
}

StatxOut statx_out(const Attributes& attributes, uint64_t shown_inode, Validity valid) {
  StatxOut out{};
  out.attr_valid = valid.seconds;
  out.attr_valid_nsec = valid.nanoseconds;
  StatxAttributes& stat = out.stat;
  stat.mask = kBasicStats;
  stat.block_size = attributes.block_size;
  stat.nlink = attributes.nlink;
  stat.uid = attributes.uid;
  stat.gid = attributes.gid;
  stat.mode = static_cast<uint16_t>(attributes.mode);
  stat.inode = shown_inode;
  stat.size = attributes.size;
  stat.blocks = attributes.blocks;
  stat.atime = statx_time(attributes.atime);
  stat.ctime = statx_time(attributes.ctime);
  stat.mtime = statx_time(attributes.mtime);
  if (attributes.has_btime) {
    stat.mask |= kBirthTime;
    stat.btime = statx_time(attributes.btime);
  }
  stat.rdev_major = gnu_dev_major(attributes.rdev);
  stat.rdev_minor = gnu_dev_minor(attributes.rdev);
  return out;
}

fuse_entry_out entry_out(uint64_t node, uint64_t generation, const Attributes& attributes,
                         uint64_t shown_inode, Validity name_valid, Validity attributes_valid) {
  fuse_entry_out out{};
  out.nodeid = node;
  out.generation = generation;
  out.entry_valid = name_valid.seconds;
  out.entry_valid_nsec = name_valid.nanoseconds;
  out.attr_valid = attributes_valid.seconds;
  out.attr_valid_nsec = attributes_valid.nanoseconds;
  out.attr = attr(attributes, shown_inode);
  return out;
}

fuse_entry_out negative_entry_out(Validity name_valid) {
  fuse_entry_out out{};
  out.entry_valid = name_valid.seconds;
  out.entry_valid_nsec = name_valid.nanoseconds;
  return out;
}

fuse_open_out open_out(uint64_t fh, uint32_t fopen_flags) {
  fuse_open_out out{};
  out.fh = fh;
  out.open_flags = fopen_flags;
  return out;
}

CreateOut create_out(const fuse_entry_out& entry, uint64_t fh, uint32_t fopen_flags) {
  static_assert(sizeof(CreateOut) == sizeof(fuse_entry_out) + sizeof(fuse_open_out));
  return {.entry = entry, .open = open_out(fh, fopen_flags)};
}

fuse_write_out write_out(uint32_t size) {
  fuse_write_out out{};
  out.size = size;
  return out;
}

CopyOut64 copy_out_64(uint64_t size) { return {.bytes_copied = size}; }

fuse_lseek_out lseek_out(uint64_t offset) {
  fuse_lseek_out out{};
  out.offset = offset;
  return out;
}

fuse_getxattr_out getxattr_out(uint32_t size) {
  fuse_getxattr_out out{};
  out.size = size;
  return out;
}

fuse_poll_out poll_out(uint32_t events) {
  fuse_poll_out out{};
  out.revents = events;
  return out;
}

fuse_lk_out lk_out(const LockOut& lock) {
  fuse_lk_out out{};
  out.lk.start = lock.start;
  out.lk.end = lock.end;
  out.lk.type = lock.type;
  out.lk.pid = lock.pid;
  return out;
}

fuse_statfs_out statfs_out(const FileSystemSize& size) {
  fuse_statfs_out out{};
  out.st.blocks = size.blocks;
  out.st.bfree = size.blocks_free;
  out.st.bavail = size.blocks_available;
  out.st.files = size.files;
  out.st.ffree = size.files_free;
  out.st.bsize = size.block_size;
  out.st.namelen = size.name_max;
  out.st.frsize = size.fragment_size;
  return out;
}

DirentWriter::DirentWriter(size_t capacity) : capacity_(capacity) {}

bool DirentWriter::add(std::string_view name, uint64_t shown_inode, uint32_t type,
                       uint64_t next_offset) {
  return append(name, {}, shown_inode, type, next_offset);
}

bool DirentWriter::add_plus(std::string_view name, const fuse_entry_out& entry,
                            uint64_t shown_inode, uint32_t type, uint64_t next_offset) {
  return append(name, std::as_bytes(std::span<const fuse_entry_out, 1>(&entry, 1)), shown_inode,
                type, next_offset);
}

bool DirentWriter::append(std::string_view name, std::span<const std::byte> entry,
                          uint64_t shown_inode, uint32_t type, uint64_t next_offset) {
  if (!kernel_accepts(name)) return true;
  fuse_dirent head{};
  head.ino = shown_inode;
  head.off = next_offset;
  head.namelen = static_cast<uint32_t>(name.size());
  head.type = type;

  const size_t length = FUSE_REC_ALIGN(entry.size() + FUSE_NAME_OFFSET + name.size());
  if (length > capacity_ - bytes_.size()) return false;
  const size_t start = bytes_.size();
  bytes_.resize(start + length);  // zeroes the padding: nothing of ours leaks to the kernel
  std::byte* out = bytes_.data() + start;
  if (!entry.empty()) std::memcpy(out, entry.data(), entry.size());
  std::memcpy(out + entry.size(), &head, FUSE_NAME_OFFSET);
  std::memcpy(out + entry.size() + FUSE_NAME_OFFSET, name.data(), name.size());
  return true;
}

}  // namespace vremote::fuse
