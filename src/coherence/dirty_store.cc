#include "coherence/dirty_store.h"

#include <algorithm>
#include <array>
#include <atomic>

#include "base/page_memory.h"

namespace vremote::coherence {
namespace {

Bytes zeros(size_t length) {
  static const auto memory = std::make_shared<std::byte[]>(1 << 20);
  return Bytes(memory, std::span<const std::byte>(memory.get(), length));
}

// A whole page, into memory that is in no near cache.
void copy_page(std::byte* to, const std::byte* from) {
#ifdef __x86_64__
  // Whole lines are written without being read first (Intel's optimization manual, "Enhanced REP
  // MOVSB"); memcpy() does so for bigger copies only.
  size_t left = kPageSize;
  asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(left) : : "memory");
#else
  std::memcpy(to, from, kPageSize);
#endif
}

void append(std::vector<Bytes>& pieces, Bytes piece) {
  if (piece.empty()) return;
  if (!pieces.empty() && pieces.back().joins(piece)) {
    pieces.back() = pieces.back().joined(piece);
  } else {
    pieces.push_back(std::move(piece));
  }
}

// Calls f(page index, first byte in the page, first byte of the whole, length) for each page of a
// range of bytes.
template <class F>
void for_each_page(uint64_t offset, size_t size, F f) {
  for (size_t done = 0; done < size;) {
    const uint64_t at = offset + done;
    const uint32_t first = at & (kPageSize - 1);
    const size_t length = std::min<size_t>(kPageSize - first, size - done);
    f(at >> kPageShift, first, done, length);
    done += length;
  }
}

}  // namespace

void DirtyStore::write(uint64_t offset, const Bytes& bytes) {
  for_each_page(offset, bytes.size(),
                [&](uint64_t index, uint32_t first, size_t at, size_t length) {
                  Page& page = dirty_page(index);
                  if (length != kPageSize) {
                    copy_into(page, first, bytes.view().subspan(at, length));
                    return;
                  }
                  page.bytes = bytes.part(at, length);
                  page.own = nullptr;
                  page.whole = true;
                  page.valid.assign(1, Piece{0, static_cast<uint16_t>(kPageSize)});
                });
}

void DirtyStore::write(uint64_t offset, std::span<const std::byte> bytes) {
  for_each_page(offset, bytes.size(),
                [&](uint64_t index, uint32_t first, size_t at, size_t length) {
                  copy_into(dirty_page(index), first, bytes.subspan(at, length));
                });
}

// The page, new or again with bytes that no flush carries.
DirtyStore::Page& DirtyStore::dirty_page(uint64_t index) {
  auto [page, fresh] = pages_.get(index);
  if (fresh) {
    ++unsent_;
  } else if (page.flush != 0) {
    page.flush = 0;
    ++unsent_;
  }
  return page;
}

void DirtyStore::copy_into(Page& page, uint32_t first, std::span<const std::byte> part) {
  // A flush under way still reads the old memory: write into a copy then.
  if (page.own == nullptr || !page.bytes.unshared()) {
    auto memory = new_page_memory();
    if (!page.bytes.empty() && part.size() != kPageSize)
      std::memcpy(memory.get(), page.bytes.data(), kPageSize);
    page.own = memory.get();
    std::span<const std::byte> view(memory.get(), kPageSize);
    page.bytes = Bytes(std::move(memory), view);
  }
  if (part.size() == kPageSize) {
    copy_page(page.own, part.data());
  } else {
    std::memcpy(page.own + first, part.data(), part.size());
  }
  if (page.whole) return;
  Piece added{static_cast<uint16_t>(first), static_cast<uint16_t>(first + part.size())};
  for (const Piece& piece : page.valid)
    if (piece.first <= added.first && added.end <= piece.end) return;
  std::vector<Piece> merged;
  merged.reserve(page.valid.size() + 1);
  for (const Piece& piece : page.valid) {
    if (piece.end < added.first || piece.first > added.end) {
      merged.push_back(piece);
    } else {
      added.first = std::min(added.first, piece.first);
      added.end = std::max(added.end, piece.end);
    }
  }
  merged.insert(std::upper_bound(merged.begin(), merged.end(), added,
                                 [](const Piece& a, const Piece& b) { return a.first < b.first; }),
                added);
  page.valid = std::move(merged);
  page.whole = page.valid.front().first == 0 && page.valid.front().end == kPageSize;
}

bool DirtyStore::covers(uint64_t offset, uint64_t length) const {
  if (length == 0) return true;
  PageRange range = PageRange::of_bytes(offset, length);
  for (uint64_t index = range.first; index < range.end; ++index) {
    const Page* page = pages_.find(index);
    if (page == nullptr) return false;
    const uint64_t start = index << kPageShift;
    const uint64_t first = std::max(offset, start) - start;
    const uint64_t end = std::min(offset + length, start + kPageSize) - start;
    bool inside = false;
    for (const Piece& piece : page->valid)
      inside = inside || (piece.first <= first && end <= piece.end);
    if (!inside) return false;
  }
  return true;
}

std::vector<Bytes> DirtyStore::compose(uint64_t offset, uint64_t length, uint64_t base_offset,
                                       const Bytes& base) const {
  std::vector<Bytes> pieces;
  const uint64_t end = offset + length;
  uint64_t at = offset;
  auto fill_from_base = [&](uint64_t until) {
    while (at < until) {
      if (at >= base_offset && at < base_offset + base.size()) {
        const uint64_t n = std::min(until, base_offset + base.size()) - at;
        append(pieces, base.part(at - base_offset, n));
        at += n;
      } else {
        const uint64_t stop = at < base_offset ? std::min(until, base_offset) : until;
        const uint64_t n = std::min<uint64_t>(stop - at, 1 << 20);
        append(pieces, zeros(n));
        at += n;
      }
    }
  };
  if (length > 0) {
    for (auto it = pages_.lower_bound(offset >> kPageShift);
         it != pages_.end() && (*it).number << kPageShift < end; ++it) {
      const auto [number, page] = *it;
      const uint64_t start = number << kPageShift;
      for (const Piece& piece : page.valid) {
        const uint64_t first = std::max(start + piece.first, at);
        const uint64_t stop = std::min(start + piece.end, end);
        if (first >= stop) continue;
        fill_from_base(first);
        append(pieces, page.bytes.part(first - start, stop - first));
        at = stop;
      }
    }
  }
  fill_from_base(end);
  return pieces;
}

std::vector<Extent> DirtyStore::take_unsent(PageRange range, uint64_t flush, uint64_t bytes_max,
                                            uint64_t* bytes_taken) {
  std::vector<Extent> extents;
  *bytes_taken = 0;
  if (unsent_ == 0) return extents;
  for (auto it = pages_.lower_bound(range.first); it != pages_.end() && (*it).number < range.end;
       ++it) {
    const auto [number, page] = *it;
    if (page.flush != 0) continue;
    if (*bytes_taken + kPageSize > bytes_max) break;
    page.flush = flush;
    sent_[flush].push_back(number);
    --unsent_;
    for (const Piece& piece : page.valid) {
      const uint64_t offset = (number << kPageShift) + piece.first;
      Bytes bytes = page.bytes.part(piece.first, piece.end - piece.first);
      *bytes_taken += bytes.size();
      if (!extents.empty() && extents.back().offset + extents.back().bytes.size() == offset &&
          extents.back().bytes.joins(bytes)) {
        extents.back().bytes = extents.back().bytes.joined(bytes);
      } else {
        extents.push_back({offset, std::move(bytes)});
      }
    }
  }
  return extents;
}

PageSet DirtyStore::acked(uint64_t flush) {
  PageSet clean;
  auto sent = sent_.find(flush);
  if (sent == sent_.end()) return clean;
  for (uint64_t index : sent->second) {
    const Page* page = pages_.find(index);
    if (page == nullptr || page->flush != flush) continue;  // given up, or written since
    clean.add({index, index + 1});
    pages_.erase(index);
  }
  sent_.erase(sent);
  return clean;
}

void DirtyStore::resend() {
  for (auto [index, page] : pages_) page.flush = 0;
  unsent_ = pages_.size();
  sent_.clear();
}

void DirtyStore::remove(PageRange range) {
  for (auto it = pages_.lower_bound(range.first); it != pages_.end() && (*it).number < range.end;) {
    if ((*it).page.flush == 0) --unsent_;
    it = pages_.erase(it);
  }
}

void DirtyStore::truncate(uint64_t size) {
  const uint64_t last = size >> kPageShift;
  const uint16_t keep = static_cast<uint16_t>(size & (kPageSize - 1));
  if (Page* found = pages_.find(last); found != nullptr && keep > 0) {
    Page& page = *found;
    std::erase_if(page.valid, [&](const Piece& piece) { return piece.first >= keep; });
    if (!page.valid.empty()) page.valid.back().end = std::min(page.valid.back().end, keep);
    page.whole = false;
    if (page.valid.empty()) remove({last, last + 1});
    remove({last + 1, kPageEnd});
  } else {
    remove({last, kPageEnd});
  }
}

bool DirtyStore::overlaps(PageRange range) const {
  auto it = pages_.lower_bound(range.first);
  return it != pages_.end() && (*it).number < range.end;
}

PageRange DirtyStore::clean_around(PageRange range) const {
  PageRange wide = PageRange::all();
  auto below = pages_.lower_bound(range.first);
  if (below != pages_.begin()) wide.first = (*--below).number + 1;
  auto above = pages_.lower_bound(range.end);
  if (above != pages_.end()) wide.end = (*above).number;
  return wide;
}

uint64_t DirtyStore::end_in(const PageSet& pages) const {
  uint64_t end = 0;
  for (const auto [index, page] : pages_)
    if (!page.valid.empty() && pages.contains({index, index + 1}))
      end = std::max(end, (index << kPageShift) + page.valid.back().end);
  return end;
}

PageSet DirtyStore::pages() const {
  PageSet set;
  for (const auto [index, page] : pages_) set.add({index, index + 1});
  return set;
}

}  // namespace vremote::coherence
