#include "coherence/kernel_cache.h"

namespace vremote::coherence {

void KernelCache::fill_arrived(uint64_t fill, PageRange range) {
  fills_.emplace(fill, range);
  resident_.remove(range);  // C2
}

void KernelCache::fill_answered(uint64_t fill, PageRange range, Instant keep_until) {
  fills_.erase(fill);
  if (!mistakes_.has(Mistake::OldPurgeCounts))
    for (auto& [id, purge] : purges_) purge.valid.remove(range);  // C3
  resident_.add(range);
  if (!mistakes_.has(Mistake::NoResidency)) recent_.push_back({range, keep_until});
}

void KernelCache::fill_failed(uint64_t fill) { fills_.erase(fill); }

bool KernelCache::fill_pending(PageRange range) const {
  for (const auto& [id, fill] : fills_)
    if (fill.overlaps(range)) return true;
  return false;
}

bool KernelCache::held_up(const InFlight& purge) const {
  return !mistakes_.has(Mistake::WaitForStuckPurge) && fill_pending(purge.range);
}

bool KernelCache::is_purging(PageRange range) const {
  return std::ranges::any_of(purges_,
                             [&](const auto& entry) { return entry.second.range.overlaps(range); });
}

std::vector<KernelCache::Purge> KernelCache::start_purges(const PageSet& need, uint64_t* next_id) {
  std::vector<Purge> started;
  for (PageRange wanted : need.ranges()) {
    PageSet missing = resident_.intersect(wanted);
    if (missing.empty()) continue;
    for (const auto& [id, purge] : purges_)
      if (!held_up(purge)) missing.remove(purge.valid.intersect(wanted));
    for (PageRange piece : missing.ranges()) {
      InFlight purge{piece, {}};
      purge.valid.add(piece);
      const uint64_t id = (*next_id)++;
      purges_.emplace(id, std::move(purge));
      started.push_back({id, piece});
    }
  }
  return started;
}

void KernelCache::purge_returned(uint64_t id) {
  auto it = purges_.find(id);
  VR_CHECK_MSG(it != purges_.end(), "a purge returned twice");
  resident_.remove(it->second.valid);
  purges_.erase(it);
}

std::optional<Instant> KernelCache::keep_until(PageRange range, Instant now) {
  std::erase_if(recent_, [&](const Recent& r) { return r.until <= now; });
  std::optional<Instant> latest;
  for (const Recent& r : recent_)
    if (r.range.overlaps(range) && (!latest || *latest < r.until)) latest = r.until;
  return latest;
}

}  // namespace vremote::coherence
