// The leases one agent holds on the data of one file: disjoint pieces in order.
#pragma once

#include <map>

#include "base/page_range.h"
#include "coherence/messages.h"

namespace vremote::coherence {

class LeaseMap {
 public:
  LeaseMode at(uint64_t page) const {
    if (exclusive_.contains({page, page + 1})) return LeaseMode::Exclusive;
    return shared_.contains({page, page + 1}) ? LeaseMode::Shared : LeaseMode::None;
  }
  bool covers(PageRange range, LeaseMode mode) const {
    return exclusive_.contains(range) || (mode == LeaseMode::Shared && readable(range));
  }
  // A grant: never weakens what is held.
  void raise(PageRange range, LeaseMode mode) {
    if (mode == LeaseMode::Exclusive) {
      exclusive_.add(range);
      shared_.remove(range);
    } else {
      for (PageRange piece : exclusive_.missing(range).ranges()) shared_.add(piece);
    }
  }
  // A recall: keeps at most `to`.
  void reduce(PageRange range, LeaseMode to) {
    if (to == LeaseMode::Shared) {
      for (PageRange piece : exclusive_.intersect(range).ranges()) shared_.add(piece);
      exclusive_.remove(range);
    } else {
      exclusive_.remove(range);
      shared_.remove(range);
    }
  }
  void clear() {
    exclusive_.clear();
    shared_.clear();
  }
  bool empty() const { return exclusive_.empty() && shared_.empty(); }
  const PageSet& exclusive() const { return exclusive_; }
  const PageSet& shared() const { return shared_; }

 private:
  bool readable(PageRange range) const {
    for (PageRange piece : exclusive_.missing(range).ranges())
      if (!shared_.contains(piece)) return false;
    return true;
  }
  PageSet exclusive_, shared_;  // disjoint
};

}  // namespace vremote::coherence
