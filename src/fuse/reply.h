// The kernel's out structs, filled from our values. Nothing here does I/O.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "base/attributes.h"
#include "fuse/protocol.h"

namespace vremote::fuse {

// How long the kernel may use a name or attributes without asking.
struct Validity {
  uint64_t seconds = 0;
  uint32_t nanoseconds = 0;
};
inline constexpr Validity kNotCached{0, 0};
// As good as for ever (34 years): only invalidation ends it. Beyond a few decades some kernels
// overflow.
inline constexpr Validity kUntilInvalidated{uint64_t{1} << 30, 0};

// `shown_inode` is st_ino on this node; it is not the kernel's node number and need not be the
// origin's inode number.
fuse_attr attr(const Attributes& attributes, uint64_t shown_inode);
fuse_attr_out attr_out(const Attributes& attributes, uint64_t shown_inode, Validity valid);
StatxOut statx_out(const Attributes& attributes, uint64_t shown_inode, Validity valid);

// LOOKUP and everything that makes a name. (node, generation) must be unique for the life of the
// mount.
fuse_entry_out entry_out(uint64_t node, uint64_t generation, const Attributes& attributes,
                         uint64_t shown_inode, Validity name_valid, Validity attributes_valid);
// "No such name", to be remembered for `name_valid`. With kNotCached answer ENOENT instead.
fuse_entry_out negative_entry_out(Validity name_valid);

struct CreateOut {  // CREATE is answered with both
  fuse_entry_out entry;
  fuse_open_out open;
};
fuse_open_out open_out(uint64_t fh, uint32_t fopen_flags);
CreateOut create_out(const fuse_entry_out& entry, uint64_t fh, uint32_t fopen_flags);
fuse_write_out write_out(uint32_t size);
CopyOut64 copy_out_64(uint64_t size);
fuse_lseek_out lseek_out(uint64_t offset);
fuse_getxattr_out getxattr_out(uint32_t size);
fuse_poll_out poll_out(uint32_t events);

struct LockOut {
  uint64_t start = 0;
  uint64_t end = 0;
  uint32_t type = 0;  // F_UNLCK: nothing is in the way
  uint32_t pid = 0;
};
fuse_lk_out lk_out(const LockOut& lock);

struct FileSystemSize {
  uint64_t blocks = 0, blocks_free = 0, blocks_available = 0, files = 0, files_free = 0;
  uint32_t block_size = 0, name_max = 0, fragment_size = 0;
};
fuse_statfs_out statfs_out(const FileSystemSize& size);

// Packs directory entries for READDIR or READDIRPLUS into at most `capacity` bytes, the request's
// size. Of one writer use only one of the two add functions.
class DirentWriter {
 public:
  explicit DirentWriter(size_t capacity);

  // False when the entry does not fit; then the writer is as before. `next_offset` is what READDIR
  // will ask for to go on after this entry. A name the kernel refuses (empty, with a slash or a
  // NUL, beyond 255 bytes) is left out and true returned: it answers EIO for the whole directory,
  // and one bad entry of an origin must not hide the others.
  bool add(std::string_view name, uint64_t shown_inode, uint32_t type, uint64_t next_offset);
  // The same with what LOOKUP would answer, and it counts as a lookup of entry.nodeid. nodeid 0
  // ("." and "..", and names not looked up): only the name is used.
  bool add_plus(std::string_view name, const fuse_entry_out& entry, uint64_t shown_inode,
                uint32_t type, uint64_t next_offset);

  std::span<const std::byte> bytes() const { return bytes_; }
  bool empty() const { return bytes_.empty(); }

 private:
  bool append(std::string_view name, std::span<const std::byte> entry, uint64_t shown_inode,
              uint32_t type, uint64_t next_offset);

  size_t capacity_;
  std::vector<std::byte> bytes_;
};

}  // namespace vremote::fuse
