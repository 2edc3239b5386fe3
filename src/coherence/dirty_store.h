// Bytes written at this node and not yet at the origin, page by page.
//
// A page may be dirty in parts (a small write needs no fetch). Sending bytes to the home does not
// remove them: they overlay every read until the home has acked them, or until the pages are given
// up. Memory: whole pages refer to the buffer they came in (no copy; it lives until the last of its
// pages is flushed); parts of pages are copied into a page of their own.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "base/bytes.h"
#include "base/page_range.h"
#include "coherence/messages.h"
#include "coherence/page_index.h"

namespace vremote::coherence {

class DirtyStore {
 public:
  // Keeps a reference to whole pages of `bytes`.
  void write(uint64_t offset, const Bytes& bytes);
  // Copies; a page that is dirty already is changed in place.
  void write(uint64_t offset, std::span<const std::byte> bytes);

  // True when every byte of [offset, offset + length) is here.
  bool covers(uint64_t offset, uint64_t length) const;
  // The bytes [offset, offset + length): dirty ones first, then `base` (which begins at
  // base_offset), then zeros.
  std::vector<Bytes> compose(uint64_t offset, uint64_t length, uint64_t base_offset,
                             const Bytes& base) const;

  // Takes the bytes of `range` that no flush carries yet, at most about `bytes_max`, and marks them
  // as carried by `flush`.
  std::vector<Extent> take_unsent(PageRange range, uint64_t flush, uint64_t bytes_max,
                                  uint64_t* bytes_taken);
  // The home has the bytes of `flush`: pages not written since are clean. Returns what became
  // clean.
  PageSet acked(uint64_t flush);
  // No flush under way counts any more.
  void resend();
  void remove(PageRange range);
  void truncate(uint64_t size);

  bool empty() const { return pages_.empty(); }
  bool has_unsent() const { return unsent_ != 0; }
  uint64_t bytes() const { return pages_.size() * kPageSize; }
  bool overlaps(PageRange range) const;
  // The widest range around `range` in which no page outside `range` is dirty.
  PageRange clean_around(PageRange range) const;
  PageSet pages() const;
  // Behind the last dirty byte in these pages.
  uint64_t end_in(const PageSet& pages) const;

 private:
  struct Piece {
    uint16_t first = 0, end = 0;  // bytes of the page, end <= 4096
  };
  // What every write looks at comes first: random writes find none of it in a processor's nearer
  // caches.
  struct Page {
    uint64_t flush = 0;        // the flush that carries all of it; 0: not sent, or written since
    std::byte* own = nullptr;  // the same memory as `bytes` when it is ours to change
    Bytes bytes;               // kPageSize bytes
    bool whole = false;        // all of them are dirty; else `valid` tells which
    std::vector<Piece> valid;  // disjoint, in order
  };
  Page& dirty_page(uint64_t index);
  static void copy_into(Page& page, uint32_t first, std::span<const std::byte> part);

  PageIndex<Page> pages_;
  std::map<uint64_t, std::vector<uint64_t>> sent_;  // flush -> the pages it carries
  uint64_t unsent_ = 0;                             // pages with flush == 0
};

}  // namespace vremote::coherence
