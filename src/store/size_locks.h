// Keeps "grow the file to at least N" from shrinking it: it is a look at the size and a truncation,
// and a write between the two that goes further must not be cut off. Writes are shared, whatever
// sets the size is exclusive.
#pragma once

#include <array>
#include <shared_mutex>

#include "base/ids.h"

namespace vremote::store {

// One lock for many files: an OpenFile cannot hold it, a file may have two of them for a moment.
class SizeLocks {
 public:
  std::shared_mutex& of(FileId file) { return locks_[FileIdHash{}(file) % locks_.size()]; }

 private:
  std::array<std::shared_mutex, 64> locks_;
};

}  // namespace vremote::store
