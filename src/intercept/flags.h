// What the flags of an open() mean when it carries O_REMOTE.
#pragma once

#include <cstdint>

namespace vremote::intercept {

inline constexpr uint32_t kRemoteFlag = 020;  // O_REMOTE of <vremote/fcntl.h>
inline constexpr uint32_t kOriginFlag = 010;  // O_ORIGIN
// O_ORIGIN as the original project's README has it: the *decimal* literal 10000000, 0x989680. Its
// bits are those of O_EXCL, O_TRUNC, O_APPEND, O_DSYNC, O_LARGEFILE, O_CLOEXEC, __O_SYNC and
// 0x800000. The last one is no open flag at all, so no program has all of these bits without
// meaning the literal.
inline constexpr uint32_t kDecimalOrigin = 10000000;

struct OpenFlags {
  bool remote = false;   // O_REMOTE: ours to serve; else `kernel` are the flags as given
  bool origin = false;   // O_ORIGIN in either spelling
  bool decimal = false;  // in the decimal one
  uint32_t kernel = 0;   // what is left for openat2(2): no bit of ours, none the kernel does not
                         // know, no combination only open() allows
  bool operator==(const OpenFlags&) const = default;
  bool cloexec() const;
  bool creates() const;       // a mode counts: O_CREAT or O_TMPFILE
  bool changes() const;       // the open itself may create or truncate
  bool follows_last() const;  // a symbolic link as the last component is followed
};

// Interprets the flags of one open() or openat().
//
// The decimal literal counts only when all its bits are there (others may be or-ed to them: O_RDWR,
// O_CREAT, …). Then every one of them is removed: whether the program also meant O_TRUNC or O_EXCL
// cannot be told, and a file that is not truncated can be mended.
OpenFlags interpret_flags(uint32_t flags);

// The mode for openat2(2), which refuses bits that open() ignores.
uint32_t interpret_mode(const OpenFlags& flags, uint32_t mode);

}  // namespace vremote::intercept
