// The kernel's FUSE interface: <linux/fuse.h> and what headers of older distributions do not have
// yet.
//
// The base is 7.38 (Linux 6.1). What is newer is defined here under names of our own, so that the
// file compiles with old and new system headers alike; each has the protocol minor and the kernel
// that brought it. Nothing of <linux/fuse.h> may be needed that is younger than 7.38.
#pragma once

#include <linux/fuse.h>

#include <cstddef>
#include <cstdint>

namespace vremote::fuse {

// The protocol we know: replies to INIT never claim more. Everything up to here is listed below or
// unused by us.
inline constexpr uint32_t kProtocolMajor = 7;
inline constexpr uint32_t kProtocolMinor = 45;
// EXPLICIT_INVAL_DATA (7.30) and the hot-path behaviour we rely on begin with Linux 5.4.
inline constexpr uint32_t kProtocolMinorMin = 31;

// INIT flags, bits 32 to 63 (fuse_init_*.flags2 has them shifted down).
inline constexpr uint64_t kInitHasExpireOnly = uint64_t{1} << 35;      // 7.38, Linux 6.2
inline constexpr uint64_t kInitDirectIoAllowMmap = uint64_t{1} << 36;  // 7.39, Linux 6.6
inline constexpr uint64_t kInitPassthrough = uint64_t{1} << 37;        // 7.40, Linux 6.9
inline constexpr uint64_t kInitHasResend = uint64_t{1} << 39;          // 7.40, Linux 6.9
inline constexpr uint64_t kInitOverIoUring = uint64_t{1} << 41;        // 7.42, Linux 6.14
inline constexpr uint64_t kInitRequestTimeout = uint64_t{1} << 42;     // 7.43, Linux 6.15

// Opcodes.
inline constexpr uint32_t kOpStatx = 52;  // 7.39, Linux 6.6: statx(2) that asks for the birth time
inline constexpr uint32_t kOpCopyFileRange64 =
    53;  // 7.45, Linux 6.18: as COPY_FILE_RANGE, answered with CopyOut64

// Notifications.
inline constexpr int32_t kNotifyResend =
    7;  // 7.40, Linux 6.9: re-deliver what was read and not answered
inline constexpr int32_t kNotifyIncEpoch =
    8;  // 7.44, Linux 6.16: every dentry is dropped at its next walk

// Set in fuse_in_header.unique of a re-delivered request (7.40, Linux 6.9, only after HAS_RESEND).
inline constexpr uint64_t kUniqueResend = uint64_t{1} << 63;

// Bit 0 of fuse_notify_inval_entry_out.flags (7.38, Linux 6.2): the name is looked up again, not
// dropped.
inline constexpr uint32_t kExpireOnly = 1u << 0;

// STATX (7.39, Linux 6.6).
struct StatxTime {
  int64_t seconds;
  uint32_t nanoseconds;
  int32_t reserved;
};
struct StatxAttributes {
  uint32_t mask;
  uint32_t block_size;
  uint64_t attributes;
  uint32_t nlink;
  uint32_t uid;
  uint32_t gid;
  uint16_t mode;
  uint16_t spare0;
  uint64_t inode;
  uint64_t size;
  uint64_t blocks;
  uint64_t attributes_mask;
  StatxTime atime, btime, ctime, mtime;
  uint32_t rdev_major, rdev_minor;
  uint32_t dev_major, dev_minor;
  uint64_t spare2[14];
};
struct StatxIn {
  uint32_t getattr_flags;
  uint32_t reserved;
  uint64_t fh;
  uint32_t statx_flags;
  uint32_t statx_mask;
};
struct StatxOut {
  uint64_t attr_valid;
  uint32_t attr_valid_nsec;
  uint32_t flags;
  uint64_t spare[2];
  StatxAttributes stat;
};
static_assert(sizeof(StatxAttributes) == 256 && sizeof(StatxIn) == 24 && sizeof(StatxOut) == 288);

// COPY_FILE_RANGE_64 (7.45, Linux 6.18).
struct CopyOut64 {
  uint64_t bytes_copied;
};

// What the structs of <linux/fuse.h> must look like for the bytes we read and write.
static_assert(sizeof(fuse_in_header) == 40 && sizeof(fuse_out_header) == 16);
static_assert(sizeof(fuse_init_out) == 64 && sizeof(fuse_write_in) == 40 &&
              sizeof(fuse_attr) == 88);

// One request fits into 256 pages of 4 KiB; both the largest read and the largest write.
inline constexpr uint32_t kMaxPages = 256;
inline constexpr uint32_t kMaxTransfer = kMaxPages * 4096;

}  // namespace vremote::fuse
