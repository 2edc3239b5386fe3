#include "coherence/kernel_size.h"

#include <algorithm>

namespace vremote::coherence {

void KernelSize::told(uint64_t size) {
  at_most_ = std::max(at_most_, size);
  // What is seen of a settle from before says nothing any more.
  if (current_ && current_->settle.size < size) current_.reset();
}

void KernelSize::forgotten() {
  at_most_ = 0;
  current_.reset();
  cutting_.clear();
}

bool KernelSize::settled(Instant now, uint64_t size, uint64_t* next_id,
                         std::optional<Settle>* start) {
  if (patience_ns_ == 0) return now >= truncated_until_;
  if (at_most_ <= size) return true;
  if (current_ && current_->settle.size <= size) {
    if (now < current_->until) return false;
    at_most_ = size;  // Z4
    current_.reset();
    return true;
  }
  current_.reset();
  if (now < written_until_) return false;
  const Settle settle{(*next_id)++, size};
  current_ = Current{settle, now + patience_ns_};
  cutting_.emplace(settle.id, Cutting{now + patience_ns_, false});
  *start = settle;
  return false;
}

std::optional<KernelSize::Settle> KernelSize::truncated(Instant now, uint64_t size, bool under_lock,
                                                        uint64_t* next_id) {
  truncated_until_ = now + moment_ns_;
  told(size);
  if (patience_ns_ == 0) return std::nullopt;
  const Settle settle{(*next_id)++, size};
  current_ = Current{settle, now + patience_ns_};
  cutting_.emplace(settle.id, Cutting{now + patience_ns_, under_lock});
  return settle;
}

void KernelSize::seen(uint64_t id) {
  if (!current_ || current_->settle.id != id) return;
  at_most_ = current_->settle.size;
  current_.reset();
}

bool KernelSize::ended(uint64_t id) {
  const auto it = cutting_.find(id);
  if (it == cutting_.end()) return false;
  const bool truncated = it->second.under_lock;
  cutting_.erase(it);
  // An older one's lock was free before.
  return truncated && std::none_of(cutting_.begin(), cutting_.end(),
                                   [](const auto& entry) { return entry.second.under_lock; });
}

void KernelSize::lock_is_held() {
  std::erase_if(cutting_, [](const auto& entry) { return entry.second.under_lock; });
}

std::optional<Instant> KernelSize::cutting_until(Instant now) const {
  std::optional<Instant> latest;
  for (const auto& [id, cutting] : cutting_)
    if (now < cutting.until && (!latest || *latest < cutting.until)) latest = cutting.until;
  return latest;
}

Instant KernelSize::settling_until() const {
  if (patience_ns_ == 0) return truncated_until_;
  return current_ ? current_->until : written_until_;
}

}  // namespace vremote::coherence
