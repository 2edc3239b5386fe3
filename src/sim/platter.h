// What a loss of power leaves of a file: of each page one of the states that it had since it was
// last synced, of the size the same, each by itself. (A disk that tears pages is not modelled.)
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "base/page_range.h"
#include "base/prng.h"

namespace vremote::sim {

class Platter {
 public:
  using Content = std::vector<std::byte>;

  // All of it is there, now and after whatever comes.
  void synced(const Content& now) {
    synced_ = now;
    pages_.clear();
    sizes_.clear();
  }
  // It is so in the origin's page cache, since the pages from `first` on were changed.
  void changed(const Content& now, uint64_t first, uint64_t end);
  const Content& for_sure() const { return synced_; }
  // f(page, bytes) of each state that is not there for sure.
  template <typename F>
  void for_each_unsynced(F f) const {
    for (const auto& [index, states] : pages_)
      for (const Page& page : states) f(index, std::span<const std::byte>(page));
  }

  // `kept`: of ten pages, about.
  Content after_power_loss(Prng& random, uint64_t kept) const;

 private:
  using Page = std::array<std::byte, kPageSize>;
  static Page page_of(const Content& content, uint64_t index);

  Content synced_;
  std::map<uint64_t, std::vector<Page>> pages_;  // later states
  std::vector<uint64_t> sizes_;
};

}  // namespace vremote::sim
