// What stat(2) tells of a file, as the origin's file system has it.
#pragma once

#include <cstdint>

#include "base/time.h"

namespace vremote {

// What says who may do what with a file.
struct Access {
  uint32_t mode = 0, uid = 0, gid = 0;
  bool operator==(const Access&) const = default;
};

struct Attributes {
  uint64_t inode = 0;  // the origin's st_ino
  uint64_t size = 0;
  uint64_t blocks = 0;  // of 512 bytes
  Timestamp atime, mtime, ctime;
  uint32_t mode = 0;  // type and permission bits
  uint32_t nlink = 0;
  uint32_t uid = 0;
  uint32_t gid = 0;
  uint32_t rdev = 0;
  uint32_t block_size = 4096;
  bool has_btime = false;  // not every file system knows, and not every answer needs it
  Timestamp btime;         // when the file was made
  Access access() const { return {mode, uid, gid}; }
  bool operator==(const Attributes&) const = default;
};

}  // namespace vremote
