// Pages of a file by number, in order. Pages live in chunks of neighbours: a page is found with one
// search among few chunks and no further step through cold memory (the dirty pages of a busy file
// are thousands, and every write looks for one).
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <map>
#include <optional>
#include <utility>

namespace vremote::coherence {

template <class Page>
class PageIndex {
  static constexpr unsigned kShift = 6;
  static constexpr unsigned kPerChunk = 1u << kShift;
  struct Chunk {
    uint64_t used = 0;  // a bit per page
    std::array<std::optional<Page>, kPerChunk> pages;
  };
  using Chunks = std::map<uint64_t, Chunk>;  // by the number of the first page >> kShift

  static uint64_t chunk_of(uint64_t number) { return number >> kShift; }
  static unsigned place_of(uint64_t number) { return number & (kPerChunk - 1); }
  // The bits of the pages from this place on.
  static uint64_t from(unsigned place) { return ~uint64_t{0} << place; }

 public:
  // Pages stay where they are until they are erased.
  template <class Map, class Base, class PageType>
  class Iterator {
   public:
    struct Entry {
      uint64_t number;
      PageType& page;
    };
    Iterator(Map* map, Base base, unsigned place) : map_(map), base_(base), place_(place) {}
    Entry operator*() const {
      return {(base_->first << kShift) + place_, *base_->second.pages[place_]};
    }
    Iterator& operator++() {
      const uint64_t left = place_ + 1 < kPerChunk ? base_->second.used & from(place_ + 1) : 0;
      if (left != 0) {
        place_ = static_cast<unsigned>(std::countr_zero(left));
      } else {
        ++base_;
        place_ = base_ == map_->end() ? 0 : first_of(base_);
      }
      return *this;
    }
    Iterator& operator--() {
      const uint64_t left = base_ == map_->end() ? 0 : base_->second.used & ~from(place_);
      if (left == 0) --base_;
      place_ = kPerChunk - 1 -
               static_cast<unsigned>(std::countl_zero(left != 0 ? left : base_->second.used));
      return *this;
    }
    bool operator==(const Iterator&) const = default;

   private:
    friend class PageIndex;
    Map* map_;
    Base base_;
    unsigned place_;
  };
  using iterator = Iterator<Chunks, typename Chunks::iterator, Page>;
  using const_iterator = Iterator<const Chunks, typename Chunks::const_iterator, const Page>;

  iterator begin() { return lower_bound(0); }
  iterator end() { return {&chunks_, chunks_.end(), 0}; }
  const_iterator begin() const { return lower_bound(0); }
  const_iterator end() const { return {&chunks_, chunks_.end(), 0}; }
  iterator lower_bound(uint64_t number) { return lower_bound_in<iterator>(chunks_, number); }
  const_iterator lower_bound(uint64_t number) const {
    return lower_bound_in<const_iterator>(chunks_, number);
  }

  // Null: there is none.
  Page* find(uint64_t number) { return find_in<Page>(chunks_, number); }
  const Page* find(uint64_t number) const { return find_in<const Page>(chunks_, number); }
  // The page, and whether it is new.
  std::pair<Page&, bool> get(uint64_t number) {
    auto& [used, pages] = chunks_[chunk_of(number)];
    std::optional<Page>& page = pages[place_of(number)];
    if (page) return {*page, false};
    used |= uint64_t{1} << place_of(number);
    ++size_;
    return {page.emplace(), true};
  }
  iterator erase(iterator it) {
    const iterator gone = it;
    ++it;
    erase_at(gone.base_, gone.place_);
    return it;
  }
  void erase(uint64_t number) {
    auto chunk = chunks_.find(chunk_of(number));
    if (chunk != chunks_.end() && chunk->second.pages[place_of(number)])
      erase_at(chunk, place_of(number));
  }

  size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }

 private:
  template <class Base>
  static unsigned first_of(Base chunk) {
    return static_cast<unsigned>(std::countr_zero(chunk->second.used));
  }
  template <class Result, class Map>
  static Result lower_bound_in(Map& chunks, uint64_t number) {
    auto chunk = chunks.lower_bound(chunk_of(number));
    if (chunk != chunks.end() && chunk->first == chunk_of(number)) {
      if (const uint64_t left = chunk->second.used & from(place_of(number)); left != 0)
        return {&chunks, chunk, static_cast<unsigned>(std::countr_zero(left))};
      ++chunk;
    }
    return {&chunks, chunk, chunk == chunks.end() ? 0 : first_of(chunk)};
  }
  template <class Result, class Map>
  static Result* find_in(Map& chunks, uint64_t number) {
    auto chunk = chunks.find(chunk_of(number));
    if (chunk == chunks.end()) return nullptr;
    auto& page = chunk->second.pages[place_of(number)];
    return page ? &*page : nullptr;
  }
  void erase_at(typename Chunks::iterator chunk, unsigned place) {
    chunk->second.pages[place].reset();
    chunk->second.used &= ~(uint64_t{1} << place);
    if (chunk->second.used == 0) chunks_.erase(chunk);
    --size_;
  }

  Chunks chunks_;  // none is empty
  size_t size_ = 0;
};

}  // namespace vremote::coherence
