// What the hammer writes into pages: cells, each filled with a stamp that nobody else ever writes
// anywhere.
//
// A stamp names its writer, the writer's count and the place it belongs to, so that lost, torn,
// stale and misplaced bytes all show.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>

#include "base/page_range.h"

namespace vremote::live {

inline constexpr unsigned kCellsMax = 4;  // of a page

// How the pages of a file are divided. What one call writes is whole cells.
enum class Layout : uint8_t {
  Pages,  // one cell: whole pages only, never to be seen half old and half new
  Odd,    // four cells whose borders are aligned to nothing
  Words,  // four words of eight bytes: what a mapped load or store moves at once
  Sim,    // four cells of 1 KiB, as the simulator's checkers have them (truncations)
};

struct Cell {
  uint32_t offset, length;
};
inline constexpr std::array<Cell, 1> kPageCells{{{0, 4096}}};
inline constexpr std::array<Cell, 4> kOddCells{
    {{0, 1001}, {1001, 1047}, {2048, 953}, {3001, 1095}}};
inline constexpr std::array<Cell, 4> kWordCells{{{0, 8}, {512, 8}, {2040, 8}, {4088, 8}}};
inline constexpr std::array<Cell, 4> kSimCells{
    {{0, 1024}, {1024, 1024}, {2048, 1024}, {3072, 1024}}};

constexpr std::span<const Cell> cells_of(Layout layout) {
  switch (layout) {
    case Layout::Pages:
      return kPageCells;
    case Layout::Odd:
      return kOddCells;
    case Layout::Words:
      return kWordCells;
    case Layout::Sim:
      return kSimCells;
  }
  return {};
}

// 0 is what a file holds before anybody wrote it.
constexpr uint64_t stamp(uint32_t process, uint64_t write, uint32_t file, uint64_t page,
                         uint32_t cell) {
  return uint64_t{process + 1} << 56 | (write & 0xFFFFFFF) << 28 | uint64_t{file & 0xFF} << 20 |
         (page & 0xFFFF) << 4 | (cell & 0xF);
}
constexpr uint32_t stamp_process(uint64_t stamp) { return static_cast<uint32_t>(stamp >> 56) - 1; }
constexpr uint64_t stamp_write(uint64_t stamp) { return stamp >> 28 & 0xFFFFFFF; }
// Whether the stamp was made for this place.
constexpr bool stamp_fits(uint64_t stamp, uint32_t file, uint64_t page, uint32_t cell) {
  return stamp == 0 ||
         (stamp & 0xFFFFFFF) == (uint64_t{file & 0xFF} << 20 | (page & 0xFFFF) << 4 | (cell & 0xF));
}

inline void fill(std::span<std::byte> cell, uint64_t value) {
  for (size_t at = 0; at < cell.size(); at += sizeof value)
    std::memcpy(cell.data() + at, &value, std::min(sizeof value, cell.size() - at));
}

// The stamp all bytes of the cell agree on; nothing when it is torn.
inline std::optional<uint64_t> value_of(std::span<const std::byte> cell) {
  uint64_t value = 0;
  std::memcpy(&value, cell.data(), sizeof value);
  // Shifted by one stamp the cell must equal itself.
  if (std::memcmp(cell.data(), cell.data() + sizeof value, cell.size() - sizeof value) != 0)
    return std::nullopt;
  return value;
}

}  // namespace vremote::live
