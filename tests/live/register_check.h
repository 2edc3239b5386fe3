// Whether what was seen of one cell can have been one copy: linearizability of a register whose
// writes are all different.
//
// Gibbons and Korach: take each value with its write and all its reads. Its zone goes from the
// first end to the last begin of these calls: when that is forwards, the register must have held
// the value all that time; else it must have held it at some moment of the (backward) zone. The
// history is linearizable exactly when no read ends before its write begins, no two forward zones
// overlap, and no backward zone lies inside a forward one. n log n, so every operation of a long
// run is checked.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace vremote::live {

inline constexpr uint64_t kNever = UINT64_MAX;  // the end of a call that did not return

// One call on the cell, or many reads of one value by one process with nothing else of that process
// between: [begin, end] is then the first and last_begin the begin of the last.
struct CellOp {
  uint64_t begin = 0, end = 0;
  uint64_t last_begin = 0;
  uint64_t value = 0;
  bool write = false;
  uint32_t index = 0;  // the caller's
};

struct Contradiction {
  std::string what;
  std::vector<uint32_t> operations;  // the indexes of those that contradict each other
};

// Value 0 is there from the beginning.
std::optional<Contradiction> check_register(std::span<const CellOp> operations);

}  // namespace vremote::live
