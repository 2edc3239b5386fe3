// Who holds which pages of one resource: disjoint pieces in order, neighbours that say the same
// joined.
#pragma once

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <map>
#include <vector>

#include "base/ids.h"
#include "base/page_range.h"
#include "coherence/messages.h"

namespace vremote::coherence {

struct Holding {
  LeaseMode mode = LeaseMode::None;
  std::vector<NodeId> nodes;  // sorted; one node when Exclusive; never empty in the map
  bool operator==(const Holding&) const = default;
  bool has(NodeId node) const { return std::binary_search(nodes.begin(), nodes.end(), node); }
  bool only(NodeId node) const { return nodes.size() == 1 && nodes.front() == node; }
};

class HolderMap {
 public:
  // Calls visit(PageRange, const Holding&) for each piece that overlaps `range`, in order, cut to
  // it. `visit` returns false to stop.
  template <typename Visit>
  void each(PageRange range, Visit visit) const {
    if (range.empty()) return;
    auto it = pieces_.upper_bound(range.first);
    if (it != pieces_.begin()) --it;
    for (; it != pieces_.end() && it->first < range.end; ++it) {
      PageRange cut = PageRange{it->first, it->second.end}.intersect(range);
      if (!cut.empty() && !visit(cut, it->second.holding)) return;
    }
  }

  // Adds `node` with `mode` to all of `range`. Where it holds a stronger mode already, that stays.
  // The caller has made sure that nobody else there conflicts. Returns how many ranges more the
  // node has by it, as do the others that change something.
  ptrdiff_t grant(PageRange range, NodeId node, LeaseMode mode) {
    return change(range, node, [&](Holding& holding) {
      if (holding.nodes.empty()) {
        holding = Holding{mode, {node}};
      } else if (holding.only(node)) {
        if (!covers(holding.mode, mode))
          holding.mode = mode == LeaseMode::Exclusive || holding.mode == LeaseMode::None
                             ? mode
                             : stronger(holding.mode, mode);
      } else {
        VR_CHECK_MSG(compatible(holding.mode, mode) && holding.mode == mode,
                     "a grant conflicts with a holder");
        if (!holding.has(node))
          holding.nodes.insert(std::upper_bound(holding.nodes.begin(), holding.nodes.end(), node),
                               node);
      }
    });
  }

  // `node` keeps at most `to` (None or Shared) on `range`.
  ptrdiff_t reduce(PageRange range, NodeId node, LeaseMode to) {
    return change(range, node, [&](Holding& holding) {
      if (!holding.has(node)) return;
      if (to == LeaseMode::Shared && (holding.mode == LeaseMode::Shared || holding.only(node))) {
        holding.mode = LeaseMode::Shared;
        return;
      }
      std::erase(holding.nodes, node);
      if (holding.nodes.empty()) holding.mode = LeaseMode::None;
    });
  }

  ptrdiff_t remove(NodeId node) { return reduce(PageRange::all(), node, LeaseMode::None); }

  // Ranges of a node: runs of pages that it holds in one mode, whatever others hold beside it. So
  // nobody has more of them for how others cut the map into pieces.
  size_t ranges_of(NodeId node) const { return ranges_in(PageRange::all(), node); }
  size_t ranges_in(PageRange pages, NodeId node) const {
    return pages.empty() ? 0 : begins({pages.first, pages.end - 1}, node);
  }
  // From the first page that the node holds, of those from `from` on, to the end of the `most`-th
  // piece that it has there. Empty: it has none.
  PageRange span_of(NodeId node, uint64_t from, size_t most) const {
    PageRange span;
    each({from, kPageEnd}, [&](PageRange piece, const Holding& holding) {
      if (!holding.has(node)) return true;
      if (span.empty()) span.first = piece.first;
      span.end = piece.end;
      return --most > 0;
    });
    return span;
  }
  bool empty() const { return pieces_.empty(); }
  size_t size() const { return pieces_.size(); }

  Holding at(uint64_t page) const {
    Holding found;
    each({page, page + 1}, [&](PageRange, const Holding& holding) {
      found = holding;
      return false;
    });
    return found;
  }

  // The widest range around `need` in which `allowed(Holding)` is true of every piece (`need`
  // itself is taken as allowed).
  template <typename Allowed>
  PageRange widest(PageRange need, Allowed allowed) const {
    PageRange result{0, kPageEnd};
    auto after = pieces_.lower_bound(need.first);
    for (auto it = after; it != pieces_.begin();) {
      --it;
      if (it->second.end > need.first) continue;  // overlaps need
      if (!allowed(it->second.holding)) {
        result.first = it->second.end;
        break;
      }
    }
    // A piece that begins before need and reaches into it may still forbid its own front part.
    auto before = pieces_.upper_bound(need.first);
    if (before != pieces_.begin()) {
      --before;
      if (before->first < need.first && before->second.end > need.first &&
          !allowed(before->second.holding))
        result.first = need.first;
    }
    for (auto it = pieces_.lower_bound(need.first); it != pieces_.end(); ++it) {
      if (it->second.end <= need.end) continue;
      if (!allowed(it->second.holding)) {
        result.end = std::max(it->first, need.end);
        break;
      }
    }
    if (before != pieces_.end() && before->first < need.first && before->second.end > need.end &&
        !allowed(before->second.holding))
      result.end = need.end;
    return result;
  }

  void check() const {
    const Piece* last = nullptr;
    uint64_t last_end = 0;
    for (const auto& [first, piece] : pieces_) {
      VR_CHECK(first < piece.end && first >= last_end);
      VR_CHECK(!piece.holding.nodes.empty() && piece.holding.mode != LeaseMode::None);
      VR_CHECK(std::is_sorted(piece.holding.nodes.begin(), piece.holding.nodes.end()));
      VR_CHECK_MSG(piece.holding.mode != LeaseMode::Exclusive || piece.holding.nodes.size() == 1,
                   "I1: two exclusive holders");
      VR_CHECK(last == nullptr || last_end < first || !(last->holding == piece.holding));
      last = &piece;
      last_end = piece.end;
    }
  }

 private:
  struct Piece {
    uint64_t end = 0;
    Holding holding;
  };

  static LeaseMode stronger(LeaseMode a, LeaseMode b) {
    // Shared and Update are not ordered: having both rights is Exclusive.
    if (a == b) return a;
    return LeaseMode::Exclusive;
  }

  void split(uint64_t page) {
    auto it = pieces_.upper_bound(page);
    if (it == pieces_.begin()) return;
    --it;
    if (it->first < page && page < it->second.end) {
      Piece tail = it->second;
      it->second.end = page;
      pieces_.emplace(page, std::move(tail));
    }
  }

  // Where ranges of the node begin, from the first of these pages to the one behind the last.
  size_t begins(PageRange range, NodeId node) const {
    size_t found = 0;
    for (auto it = pieces_.lower_bound(range.first); it != pieces_.end() && it->first <= range.end;
         ++it) {
      const Piece& piece = it->second;
      if (!piece.holding.has(node)) continue;
      if (it != pieces_.begin()) {
        const auto& [first, before] = *std::prev(it);
        if (before.end == it->first && before.holding.mode == piece.holding.mode &&
            before.holding.has(node))
          continue;
      }
      ++found;
    }
    return found;
  }

  // `apply` changes what `node` has, and nobody else.
  template <typename Change>
  ptrdiff_t change(PageRange range, NodeId node, Change apply) {
    if (range.empty()) return 0;
    const size_t before = begins(range, node);
    split(range.first);
    split(range.end);
    uint64_t at = range.first;
    auto it = pieces_.lower_bound(range.first);
    while (at < range.end) {
      if (it == pieces_.end() || it->first > at) {
        uint64_t gap_end = it == pieces_.end() ? range.end : std::min(it->first, range.end);
        Holding holding;
        apply(holding);
        if (!holding.nodes.empty()) pieces_.emplace(at, Piece{gap_end, std::move(holding)});
        at = gap_end;
        continue;
      }
      at = it->second.end;
      apply(it->second.holding);
      if (it->second.holding.nodes.empty()) {
        it = pieces_.erase(it);
      } else {
        ++it;
      }
    }
    join(range);
    return static_cast<ptrdiff_t>(begins(range, node)) - static_cast<ptrdiff_t>(before);
  }

  void join(PageRange range) {
    auto it = pieces_.upper_bound(range.first);
    if (it != pieces_.begin()) --it;
    if (it != pieces_.begin()) --it;
    while (it != pieces_.end() && it->first <= range.end) {
      auto next = std::next(it);
      if (next != pieces_.end() && it->second.end == next->first &&
          it->second.holding == next->second.holding) {
        it->second.end = next->second.end;
        pieces_.erase(next);
      } else {
        it = next;
      }
    }
  }

  std::map<uint64_t, Piece> pieces_;
};

}  // namespace vremote::coherence
