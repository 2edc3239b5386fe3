// Whether an owner has a lock on an inode, of all that were granted and given up. Not thread-safe.
#pragma once

#include <compare>
#include <cstdint>
#include <iterator>
#include <map>

#include "coherence/messages.h"

namespace vremote::node {

class HeldRanges {
 public:
  struct Owner {
    uint64_t node = 0;
    coherence::LockKind kind = coherence::LockKind::Range;
    uint64_t owner = 0;
    auto operator<=>(const Owner&) const = default;
  };
  // Both ends inclusive.
  void granted(const Owner& owner, uint64_t start, uint64_t end) {
    cut(owner, start, end);
    Pieces& pieces = held_[owner];
    auto next = pieces.upper_bound(start);
    if (next != pieces.end() && end != UINT64_MAX && next->first == end + 1) {
      end = next->second;
      next = pieces.erase(next);
    }
    if (next != pieces.begin()) {
      auto before = std::prev(next);
      if (start != 0 && before->second == start - 1) {
        before->second = end;
        return;
      }
    }
    pieces.emplace(start, end);
  }
  // True when nothing is left.
  bool given_up(const Owner& owner, uint64_t start, uint64_t end) {
    cut(owner, start, end);
    auto it = held_.find(owner);
    if (it == held_.end()) return true;
    if (!it->second.empty()) return false;
    held_.erase(it);
    return true;
  }
  void gone(const Owner& owner) { held_.erase(owner); }
  size_t owners() const { return held_.size(); }

 private:
  using Pieces = std::map<uint64_t, uint64_t>;  // start to end; disjoint, none touches another
  void cut(const Owner& owner, uint64_t start, uint64_t end) {
    auto it = held_.find(owner);
    if (it == held_.end()) return;
    Pieces& pieces = it->second;
    auto piece = pieces.upper_bound(start);
    if (piece != pieces.begin()) --piece;
    while (piece != pieces.end() && piece->first <= end) {
      const auto [first, last] = *piece;
      if (last < start) {
        ++piece;
        continue;
      }
      piece = pieces.erase(piece);
      if (first < start) pieces.emplace(first, start - 1);
      if (last > end) piece = std::next(pieces.emplace(end + 1, last).first);
    }
  }

  std::map<Owner, Pieces> held_;
};

}  // namespace vremote::node
