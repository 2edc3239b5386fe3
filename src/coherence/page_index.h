// Pages of a file by number: in order, and each found without a walk down a tree (the dirty pages
// of a busy file are thousands, and every write looks for one).
#pragma once

#include <cstdint>
#include <map>
#include <unordered_map>
#include <utility>

namespace vremote::coherence {

template <class Page>
class PageIndex {
  using Ordered = std::map<uint64_t, Page*>;

 public:
  // Pages stay where they are until they are erased.
  template <class Base, class PageType>
  class Iterator {
   public:
    struct Entry {
      uint64_t number;
      PageType& page;
    };
    explicit Iterator(Base base) : base_(base) {}
    Entry operator*() const { return {base_->first, *base_->second}; }
    Iterator& operator++() {
      ++base_;
      return *this;
    }
    Iterator& operator--() {
      --base_;
      return *this;
    }
    bool operator==(const Iterator&) const = default;

   private:
    friend class PageIndex;
    Base base_;
  };
  using iterator = Iterator<typename Ordered::iterator, Page>;
  using const_iterator = Iterator<typename Ordered::const_iterator, const Page>;

  iterator begin() { return iterator(ordered_.begin()); }
  iterator end() { return iterator(ordered_.end()); }
  const_iterator begin() const { return const_iterator(ordered_.begin()); }
  const_iterator end() const { return const_iterator(ordered_.end()); }
  iterator lower_bound(uint64_t number) { return iterator(ordered_.lower_bound(number)); }
  const_iterator lower_bound(uint64_t number) const {
    return const_iterator(ordered_.lower_bound(number));
  }

  // Null: there is none.
  Page* find(uint64_t number) {
    auto it = pages_.find(number);
    return it == pages_.end() ? nullptr : &it->second;
  }
  const Page* find(uint64_t number) const {
    auto it = pages_.find(number);
    return it == pages_.end() ? nullptr : &it->second;
  }
  // The page, and whether it is new.
  std::pair<Page&, bool> get(uint64_t number) {
    auto [it, fresh] = pages_.try_emplace(number);
    if (fresh) ordered_.emplace(number, &it->second);
    return {it->second, fresh};
  }
  iterator erase(iterator it) {
    const uint64_t number = it.base_->first;
    const auto next = ordered_.erase(it.base_);
    pages_.erase(number);
    return iterator(next);
  }
  void erase(uint64_t number) {
    ordered_.erase(number);
    pages_.erase(number);
  }

  size_t size() const { return pages_.size(); }
  bool empty() const { return pages_.empty(); }

 private:
  std::unordered_map<uint64_t, Page> pages_;
  Ordered ordered_;
};

}  // namespace vremote::coherence
