// What is under way between a daemon and its kernel: fills, truncations and purges.
#include "node/guardian/guardian_table_memory.h"

namespace vremote::node {
namespace {

constexpr size_t kProbes = 8;
constexpr uint64_t kBeingWritten = 1;  // no request has an odd number
constexpr uint64_t kTaken = uint64_t{1} << 62;

}  // namespace

void GuardianTable::fill_begins(uint64_t unique, uint64_t node, uint64_t offset, uint32_t length) {
  for (size_t i = 0; i < kProbes; ++i) {
    auto& slot = memory_->fill[(unique / 2 + i) % kFillsMax];
    uint64_t free = 0;
    if (!slot.unique.compare_exchange_strong(free, kBeingWritten, std::memory_order_acquire))
      continue;
    slot.node = node;
    slot.offset = offset;
    slot.length = length;
    slot.unique.store(unique, std::memory_order_release);
    return;
  }
  // Not noted: a purge that it holds up is found out by that, and others go round it.
}

void GuardianTable::fill_ended(uint64_t unique) {
  for (size_t i = 0; i < kProbes; ++i) {
    auto& slot = memory_->fill[(unique / 2 + i) % kFillsMax];
    if (slot.unique.load(std::memory_order_relaxed) != unique) continue;
    slot.unique.store(0, std::memory_order_release);
    return;
  }
}

void GuardianTable::truncation_begins(uint64_t unique) {
  for (size_t i = 0; i < kProbes; ++i) {
    uint64_t free = 0;
    if (memory_->truncation[(unique / 2 + i) % kTruncationsMax].unique.compare_exchange_strong(
            free, unique, std::memory_order_release))
      return;
  }
  // Not noted: so many wait that the guardian can do without one.
}

bool GuardianTable::truncation_ended(uint64_t unique) {
  for (size_t i = 0; i < kProbes; ++i) {
    auto& slot = memory_->truncation[(unique / 2 + i) % kTruncationsMax].unique;
    uint64_t known = unique;
    if (slot.compare_exchange_strong(known, 0, std::memory_order_acq_rel)) return false;
    if (known != (unique | kTaken)) continue;
    slot.store(0, std::memory_order_release);
    return true;
  }
  return false;
}

std::vector<uint64_t> GuardianTable::take_truncations() {
  std::vector<uint64_t> taken;
  for (auto& slot : memory_->truncation) {
    uint64_t unique = slot.unique.load(std::memory_order_acquire);
    if (unique != 0 && (unique & kTaken) == 0 &&
        slot.unique.compare_exchange_strong(unique, unique | kTaken, std::memory_order_acq_rel))
      taken.push_back(unique);
  }
  return taken;
}

size_t GuardianTable::purge_begins(uint64_t node, uint64_t offset, uint64_t length) {
  const uint32_t first = memory_->next_purge.fetch_add(1, std::memory_order_relaxed);
  for (uint32_t i = 0; i < kProbes; ++i) {
    const size_t at = (first + i) % kPurgesMax;
    auto& slot = memory_->purge[at];
    uint64_t free = 0;
    if (!slot.node.compare_exchange_strong(free, kBeingWritten, std::memory_order_acquire))
      continue;
    slot.offset = offset;
    slot.length = length;
    slot.node.store(node, std::memory_order_release);
    return at;
  }
  return kPurgesMax;  // not noted: should it hang in a dead daemon, the mount is begun anew
}

void GuardianTable::purge_ended(size_t purge) {
  if (purge < kPurgesMax) memory_->purge[purge].node.store(0, std::memory_order_release);
}

std::vector<GuardianTable::Fill> GuardianTable::purges() const {
  std::vector<Fill> found;
  for (const auto& slot : memory_->purge)
    if (const uint64_t node = slot.node.load(std::memory_order_acquire); node > kBeingWritten)
      found.push_back({node, slot.offset, slot.length});
  return found;
}

std::vector<GuardianTable::Fill> GuardianTable::fills() const {
  std::vector<Fill> found;
  for (const auto& slot : memory_->fill)
    if (slot.unique.load(std::memory_order_acquire) > kBeingWritten)
      found.push_back({slot.node, slot.offset, slot.length});
  return found;
}

}  // namespace vremote::node
