#include "sim/platter.h"

#include <algorithm>
#include <cstring>

namespace vremote::sim {

Platter::Page Platter::page_of(const Content& content, uint64_t index) {
  Page page{};
  const uint64_t at = index * kPageSize;
  if (at < content.size())
    std::memcpy(page.data(), content.data() + at, std::min(kPageSize, content.size() - at));
  return page;
}

void Platter::changed(const Content& now, uint64_t first, uint64_t end) {
  const uint64_t size = sizes_.empty() ? synced_.size() : sizes_.back();
  if (size != now.size()) sizes_.push_back(now.size());
  for (uint64_t index = first; index < end; ++index) {
    auto known = pages_.find(index);
    const Page before = known == pages_.end() ? page_of(synced_, index) : known->second.back();
    if (const Page page = page_of(now, index); page != before) pages_[index].push_back(page);
  }
}

Platter::Content Platter::after_power_loss(Prng& random, uint64_t kept) const {
  Content left = synced_;
  if (!sizes_.empty() && random.below(10) < kept) left.resize(sizes_[random.below(sizes_.size())]);
  for (const auto& [index, states] : pages_) {
    const uint64_t at = index * kPageSize;
    if (at >= left.size()) continue;
    // What the file did not have when it was synced is a hole.
    Page page = page_of(synced_, index);
    if (random.below(10) < kept) page = states[random.below(states.size())];
    std::memcpy(left.data() + at, page.data(), std::min(kPageSize, left.size() - at));
  }
  return left;
}

}  // namespace vremote::sim
