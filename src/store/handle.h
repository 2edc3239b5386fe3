// File-system handles (name_to_handle_at) and the FileIds made of them.
#pragma once

#include <sys/stat.h>

#include <optional>
#include <string>

#include "base/fd.h"
#include "base/ids.h"
#include "base/result.h"

namespace vremote::store {

// What identifies a file, and the stat that goes with it.
struct Identity {
  FileId file;
  std::string handle;  // empty in a store without handles
  struct stat stat {};
};

struct NamedHandle {
  std::string handle;  // the type (4 bytes), then the file system's bytes
  int mount_id = 0;
};

// The handle of `name` in `dir` (links are not followed), or of `dir` itself when `name` is empty.
Result<NamedHandle> handle_of(int dir, const char* name);

// An O_PATH descriptor of the file. `mount` is any descriptor of the file system but an O_PATH one.
Result<Fd> open_handle(int mount, const std::string& handle);

// Never 0. Two handles with one inode number collide once in 2^32.
uint32_t generation_of(const std::string& handle);

// The same for file systems without handles, from the time of birth; 1 where there is none either,
// so that the reuse of an inode number goes unnoticed there.
Result<uint32_t> generation_by_birth(int dir, const char* name);

}  // namespace vremote::store
