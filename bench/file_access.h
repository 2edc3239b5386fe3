// The system calls the benchmarks time, with an end to the program when one fails.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "base/fd.h"

namespace vremote::bench {

inline constexpr size_t kPage = 4096;

Fd open_file(const std::string& path, int flags);
// A file of `bytes` pseudo-random bytes, written in blocks of `block`.
void make_file(const std::string& path, uint64_t bytes, size_t block);
void read_whole(int fd, std::vector<std::byte>& block);

// Page-aligned offsets below `bytes`, the same in every run.
class Offsets {
 public:
  explicit Offsets(uint64_t bytes);
  int64_t operator[](int i) const { return offsets_[static_cast<size_t>(i) % offsets_.size()]; }

 private:
  std::vector<int64_t> offsets_;
};

}  // namespace vremote::bench
