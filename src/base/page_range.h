// Pages of a file: indexes, half-open ranges and sets of ranges.
#pragma once

#include <algorithm>
#include <compare>
#include <cstdint>
#include <map>
#include <vector>

#include "base/check.h"

namespace vremote {

inline constexpr uint64_t kPageShift = 12;
inline constexpr uint64_t kPageSize = uint64_t{1} << kPageShift;
// One past the last page a file can have (off_t is signed: 2^63 bytes).
inline constexpr uint64_t kPageEnd = uint64_t{1} << (63 - kPageShift);

// The pages first, first + 1, …, end - 1. Empty when first == end; never first > end.
struct PageRange {
  uint64_t first = 0;
  uint64_t end = 0;

  auto operator<=>(const PageRange&) const = default;
  bool empty() const { return first >= end; }
  uint64_t count() const { return end - first; }
  bool contains(uint64_t page) const { return first <= page && page < end; }
  bool contains(const PageRange& other) const { return first <= other.first && other.end <= end; }
  bool overlaps(const PageRange& other) const { return first < other.end && other.first < end; }
  PageRange intersect(const PageRange& other) const {
    PageRange r{std::max(first, other.first), std::min(end, other.end)};
    return r.first < r.end ? r : PageRange{};
  }
  uint64_t byte_offset() const { return first << kPageShift; }
  uint64_t byte_length() const { return count() << kPageShift; }

  static PageRange all() { return {0, kPageEnd}; }
  // Every page that the bytes [offset, offset + length) touch.
  static PageRange of_bytes(uint64_t offset, uint64_t length) {
    if (length == 0) return {offset >> kPageShift, offset >> kPageShift};
    return {offset >> kPageShift, ((offset + length - 1) >> kPageShift) + 1};
  }
};

// A set of pages, kept as disjoint, non-touching ranges in order.
class PageSet {
 public:
  void add(PageRange range) {
    if (range.empty()) return;
    auto it = ranges_.upper_bound(range.first);
    if (it != ranges_.begin()) {
      auto before = std::prev(it);
      if (before->second >= range.first) {
        range.first = before->first;
        range.end = std::max(range.end, before->second);
        it = ranges_.erase(before);
      }
    }
    while (it != ranges_.end() && it->first <= range.end) {
      range.end = std::max(range.end, it->second);
      it = ranges_.erase(it);
    }
    ranges_.emplace(range.first, range.end);
  }

  void remove(PageRange range) {
    if (range.empty()) return;
    auto it = ranges_.upper_bound(range.first);
    if (it != ranges_.begin()) --it;
    while (it != ranges_.end() && it->first < range.end) {
      PageRange have{it->first, it->second};
      if (!have.overlaps(range)) {
        ++it;
        continue;
      }
      it = ranges_.erase(it);
      if (have.first < range.first) ranges_.emplace(have.first, range.first);
      if (have.end > range.end) {
        ranges_.emplace(range.end, have.end);
        break;
      }
    }
  }
  void remove(const PageSet& other) {
    for (auto [first, end] : other.ranges_) remove(PageRange{first, end});
  }

  bool overlaps(PageRange range) const { return !first_overlap(range).empty(); }
  bool contains(PageRange range) const {
    if (range.empty()) return true;
    return first_overlap(range) == range;
  }
  // The lowest piece of the set inside `range`; empty when there is none.
  PageRange first_overlap(PageRange range) const {
    if (range.empty()) return {};
    auto it = ranges_.upper_bound(range.first);
    if (it != ranges_.begin()) {
      auto before = std::prev(it);
      if (before->second > range.first)
        return PageRange{before->first, before->second}.intersect(range);
    }
    if (it != ranges_.end() && it->first < range.end)
      return PageRange{it->first, it->second}.intersect(range);
    return {};
  }
  PageSet intersect(PageRange range) const {
    PageSet result;
    while (!range.empty()) {
      PageRange piece = first_overlap(range);
      if (piece.empty()) break;
      result.ranges_.emplace(piece.first, piece.end);
      range.first = piece.end;
    }
    return result;
  }
  // The pages of `range` that are not in the set.
  PageSet missing(PageRange range) const {
    PageSet result;
    result.add(range);
    result.remove(intersect(range));
    return result;
  }

  // The widest range around `range` that no page of the set outside `range` lies in.
  PageRange gap_around(PageRange range) const {
    PageRange wide = PageRange::all();
    auto it = ranges_.lower_bound(range.first);
    if (it != ranges_.begin()) wide.first = std::min(std::prev(it)->second, range.first);
    auto above = ranges_.lower_bound(range.end);
    if (above != ranges_.end()) wide.end = above->first;
    if (above != ranges_.begin() && std::prev(above)->second > range.end) wide.end = range.end;
    return wide;
  }

  bool empty() const { return ranges_.empty(); }
  size_t range_count() const { return ranges_.size(); }
  uint64_t page_count() const {
    uint64_t n = 0;
    for (auto [first, end] : ranges_) n += end - first;
    return n;
  }
  void clear() { ranges_.clear(); }
  std::vector<PageRange> ranges() const {
    std::vector<PageRange> out;
    out.reserve(ranges_.size());
    for (auto [first, end] : ranges_) out.push_back({first, end});
    return out;
  }
  bool operator==(const PageSet&) const = default;

 private:
  std::map<uint64_t, uint64_t> ranges_;  // first -> end
};

}  // namespace vremote
