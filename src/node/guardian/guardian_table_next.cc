// What the next daemon must know beside inodes and locks: exports, and what was agreed on.
#include <algorithm>
#include <cstring>

#include "node/guardian/guardian_table_memory.h"

namespace vremote::node {

void GuardianTable::set_exports(uint32_t home, const std::vector<Export>& exports) {
  std::lock_guard guard(mutex_);
  for (auto& slot : memory_->shown)
    if (slot.used.load(std::memory_order_relaxed) != 0 && slot.home == home)
      slot.used.store(0, std::memory_order_release);
  size_t at = 0;
  for (const Export& e : exports) {
    while (at < kExportsMax && memory_->shown[at].used.load(std::memory_order_relaxed) != 0) ++at;
    if (at == kExportsMax || e.name.size() >= Memory::kExportNameMax) {
      memory_->exports_without_slot.store(1);
      return;
    }
    auto& slot = memory_->shown[at];
    slot.home = home;
    slot.root = e.root;
    slot.read_only = e.read_only ? 1 : 0;
    slot.name.fill(0);
    std::memcpy(slot.name.data(), e.name.data(), e.name.size());
    slot.used.store(1, std::memory_order_release);
  }
}

namespace {

constexpr uint32_t kMmap = 1, kResend = 2, kExpire = 4, kEpoch = 8, kKillpriv = 16, kAbort = 32;

}  // namespace

void GuardianTable::identify(uint64_t identity, uint32_t generation) {
  memory_->identity.store(identity);
  memory_->generation.store(generation);
}

void GuardianTable::set_capabilities(const fuse::Capabilities& c) {
  auto& agreed = memory_->agreed;
  agreed.minor = c.minor;
  agreed.max_pages = c.max_pages;
  agreed.max_write = c.max_write;
  agreed.max_read_ahead = c.max_read_ahead;
  agreed.flags = (c.direct_io_allow_mmap ? kMmap : 0) | (c.resend ? kResend : 0) |
                 (c.expire_only ? kExpire : 0) | (c.inc_epoch ? kEpoch : 0) |
                 (c.handle_killpriv_v2 ? kKillpriv : 0) | (c.abort_error ? kAbort : 0);
  agreed.there.store(1, std::memory_order_release);
}

void GuardianTable::set_early_deaths(uint32_t deaths) { memory_->early_deaths.store(deaths); }

uint64_t GuardianTable::identity() const { return memory_->identity.load(); }
uint32_t GuardianTable::generation() const { return memory_->generation.load(); }
uint32_t GuardianTable::early_deaths() const { return memory_->early_deaths.load(); }

std::optional<fuse::Capabilities> GuardianTable::capabilities() const {
  const auto& agreed = memory_->agreed;
  if (agreed.there.load(std::memory_order_acquire) == 0) return std::nullopt;
  const uint32_t flags = agreed.flags;
  fuse::Capabilities c;
  c.minor = agreed.minor;
  c.max_pages = agreed.max_pages;
  c.max_write = agreed.max_write;
  c.max_read_ahead = agreed.max_read_ahead;
  c.direct_io_allow_mmap = (flags & kMmap) != 0;
  c.resend = (flags & kResend) != 0;
  c.expire_only = (flags & kExpire) != 0;
  c.inc_epoch = (flags & kEpoch) != 0;
  c.handle_killpriv_v2 = (flags & kKillpriv) != 0;
  c.abort_error = (flags & kAbort) != 0;
  return c;
}

std::optional<std::vector<GuardianTable::Export>> GuardianTable::exports() const {
  if (memory_->exports_without_slot.load() != 0) return std::nullopt;
  std::vector<Export> found;
  for (const auto& slot : memory_->shown)
    if (slot.used.load(std::memory_order_acquire) != 0)
      found.push_back(
          {std::string(slot.name.data(), ::strnlen(slot.name.data(), Memory::kExportNameMax)),
           slot.home, slot.root, slot.read_only != 0});
  return found;
}

}  // namespace vremote::node
