#include "node/guardian_table.h"

#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <memory>

#include "base/check.h"

namespace vremote::node {
namespace {

constexpr size_t kHomeNameMax = 64;
constexpr size_t kProbes = 8;
constexpr uint64_t kBeingWritten = 1;  // no request has an odd number
constexpr uint64_t kTaken = uint64_t{1} << 62;
// Of this layout; a table of another size or with another word is of another version.
constexpr uint64_t kLayout = 0x5652'5442'4c00'0004;
constexpr size_t kExportNameMax = 256;

}  // namespace

struct GuardianTable::Memory {
  struct HomeSlot {
    std::array<char, kHomeNameMax> name;
    std::atomic<int64_t> until_ns;
  };
  struct InodeSlot {
    std::atomic<uint64_t> node;  // 0: free
    std::atomic<uint64_t> lookups;
    FileId file;
    uint32_t home;
    std::atomic<uint32_t> opens, reading, mapping;
    std::atomic<uint32_t> owes;
  };
  struct ExportSlot {
    std::atomic<uint32_t> used;
    uint32_t home;
    FileId root;
    uint32_t read_only;
    std::array<char, kExportNameMax> name;
  };
  struct Agreed {
    std::atomic<uint32_t> there;
    uint32_t minor, max_pages, max_write, max_read_ahead, flags;
  };
  struct FillSlot {
    std::atomic<uint64_t> unique;  // 0: free
    uint64_t node, offset, length;
  };
  struct TruncationSlot {
    std::atomic<uint64_t> unique;  // 0: free; with kTaken: the guardian answers it
  };
  struct PurgeSlot {
    std::atomic<uint64_t> node;  // 0: free
    uint64_t offset, length;
  };
  std::atomic<int64_t> alive_ns;
  std::atomic<uint32_t> charge;
  std::atomic<uint32_t> homes;
  std::atomic<uint32_t> inodes_used;  // slots from here on were never used
  std::atomic<uint32_t> without_slot;
  std::atomic<uint64_t> layout;
  std::atomic<uint64_t> identity;
  std::atomic<uint32_t> generation;
  std::atomic<uint32_t> early_deaths;
  std::atomic<uint32_t> exports_without_slot;
  Agreed agreed;
  GuardianLocks::Memory locks;
  std::array<ExportSlot, kExportsMax> shown;
  std::array<HomeSlot, kHomesMax> home;
  std::array<FillSlot, kFillsMax> fill;
  std::array<TruncationSlot, kTruncationsMax> truncation;
  std::atomic<uint32_t> next_purge;
  std::array<PurgeSlot, kPurgesMax> purge;
  std::array<InodeSlot, kInodesMax> inode;
};

GuardianTable::GuardianTable(Memory* memory, Fd fd)
    : memory_(memory), fd_(std::move(fd)), locks_(std::make_unique<GuardianLocks>(memory->locks)) {}

Result<GuardianTable> GuardianTable::make() {
  static_assert(std::atomic<uint64_t>::is_always_lock_free);  // it works between processes
  Fd fd(::memfd_create("vremote-guardian", MFD_CLOEXEC));
  if (!fd.valid() || ::ftruncate(fd.get(), sizeof(Memory)) != 0)
    return fail(errno, "no memory to share with the guardian");
  void* memory = ::mmap(nullptr, sizeof(Memory), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE,
                        fd.get(), 0);
  if (memory == MAP_FAILED) return fail(errno, "no memory to share with the guardian");
  GuardianTable table(static_cast<Memory*>(memory), std::move(fd));  // zeroes are an empty table
  table.memory_->layout.store(kLayout);
  return table;
}

Result<GuardianTable> GuardianTable::take_over(Fd fd) {
  struct stat st {};
  if (::fstat(fd.get(), &st) != 0 || st.st_size != static_cast<off_t>(sizeof(Memory)))
    return fail(EPROTO, "the guardian's table has another size than here");
  void* memory = ::mmap(nullptr, sizeof(Memory), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE,
                        fd.get(), 0);
  if (memory == MAP_FAILED) return fail(errno, "no memory to share with the guardian");
  GuardianTable table(static_cast<Memory*>(memory), std::move(fd));
  if (table.memory_->layout.load() != kLayout)
    return fail(EPROTO, "the guardian's table has another layout than here");
  return table;
}

std::unordered_map<uint64_t, uint32_t> GuardianTable::begin_anew() {
  for (auto& fill : memory_->fill) fill.unique.store(0);
  for (auto& truncation : memory_->truncation) truncation.unique.store(0);
  for (auto& purge : memory_->purge) purge.node.store(0);
  locks_->learn();
  std::unordered_map<uint64_t, uint32_t> slots;
  free_.clear();
  const uint32_t used = std::min<uint32_t>(memory_->inodes_used.load(), kInodesMax);
  for (uint32_t i = 0; i < used; ++i) {
    const uint64_t node = memory_->inode[i].node.load(std::memory_order_acquire);
    if (node == 0) {
      free_.push_back(i);
    } else {
      slots.emplace(node, i);
    }
  }
  return slots;
}

GuardianTable::GuardianTable(GuardianTable&& other) noexcept
    : memory_(std::exchange(other.memory_, nullptr)),
      fd_(std::move(other.fd_)),
      free_(std::move(other.free_)),
      last_charge_(other.last_charge_),
      locks_(std::move(other.locks_)) {}

GuardianTable::~GuardianTable() {
  if (memory_ != nullptr) ::munmap(memory_, sizeof(Memory));
}

Instant GuardianTable::clock() {
  timespec t{};
  ::clock_gettime(CLOCK_BOOTTIME, &t);
  return {t.tv_sec * 1'000'000'000 + t.tv_nsec};
}

uint32_t GuardianTable::add_home(std::string_view name) {
  for (uint32_t i = 0; i < homes(); ++i)
    if (home_name(i) == name.substr(0, kHomeNameMax - 1)) return i;  // of the daemon before
  const uint32_t index = memory_->homes.load();
  if (index >= kHomesMax) return kHomesMax;
  auto& slot = memory_->home[index];
  std::memcpy(slot.name.data(), name.data(), std::min(name.size(), kHomeNameMax - 1));
  memory_->homes.store(index + 1, std::memory_order_release);
  return index;
}

void GuardianTable::renew(uint32_t home, int64_t until_ns) {
  if (home < kHomesMax) memory_->home[home].until_ns.store(until_ns, std::memory_order_relaxed);
}

void GuardianTable::alive(Instant now) {
  memory_->alive_ns.store(now.ns, std::memory_order_release);
}

uint32_t GuardianTable::add_inode(uint64_t node, uint32_t home, FileId file) {
  uint32_t slot = 0;
  if (!free_.empty()) {
    slot = free_.back();
    free_.pop_back();
  } else {
    slot = memory_->inodes_used.load(std::memory_order_relaxed);
    if (slot >= kInodesMax) {
      memory_->without_slot.fetch_add(1);
      return kNoSlot;
    }
    memory_->inodes_used.store(slot + 1, std::memory_order_release);
  }
  auto& inode = memory_->inode[slot];
  inode.home = home;
  inode.file = file;
  inode.lookups.store(1, std::memory_order_relaxed);
  inode.opens.store(0, std::memory_order_relaxed);
  inode.reading.store(0, std::memory_order_relaxed);
  inode.mapping.store(0, std::memory_order_relaxed);
  inode.owes.store(0, std::memory_order_relaxed);
  inode.node.store(node, std::memory_order_release);
  return slot;
}

void GuardianTable::set_lookups(uint32_t slot, uint64_t lookups) {
  if (slot < kInodesMax) memory_->inode[slot].lookups.store(lookups, std::memory_order_relaxed);
}

uint64_t GuardianTable::lookups(uint32_t slot) const {
  return slot < kInodesMax ? memory_->inode[slot].lookups.load(std::memory_order_relaxed) : 0;
}

void GuardianTable::opened(uint32_t slot, bool reads, bool may_map) {
  if (slot >= kInodesMax) return;
  auto& inode = memory_->inode[slot];
  inode.opens.fetch_add(1, std::memory_order_relaxed);
  if (reads) inode.reading.fetch_add(1, std::memory_order_relaxed);
  if (may_map) inode.mapping.fetch_add(1, std::memory_order_relaxed);
}

void GuardianTable::closed(uint32_t slot, bool reads, bool may_map) {
  if (slot >= kInodesMax) return;
  auto& inode = memory_->inode[slot];
  const auto less = [](std::atomic<uint32_t>& count) {
    if (count.load(std::memory_order_relaxed) > 0) count.fetch_sub(1, std::memory_order_relaxed);
  };
  if (may_map) less(inode.mapping);
  if (reads) less(inode.reading);
  less(inode.opens);
}

void GuardianTable::set_opens(uint32_t slot, Opens opens) {
  if (slot >= kInodesMax) return;
  auto& inode = memory_->inode[slot];
  inode.opens.store(opens.all, std::memory_order_relaxed);
  inode.reading.store(opens.reading, std::memory_order_relaxed);
  inode.mapping.store(opens.mapping, std::memory_order_relaxed);
}

void GuardianTable::set_owes(uint32_t slot, bool owes) {
  if (slot >= kInodesMax) return;
  auto& inode = memory_->inode[slot];
  // Most writes find it as it should be, and leave the line to whoever has it.
  const uint32_t wanted = owes ? 1 : 0;
  if (inode.owes.load(std::memory_order_relaxed) != wanted)
    inode.owes.store(wanted, std::memory_order_release);
}

void GuardianTable::remove_inode(uint32_t slot) {
  if (slot == kNoSlot) {
    memory_->without_slot.fetch_sub(1);
    return;
  }
  memory_->inode[slot].node.store(0, std::memory_order_release);
  free_.push_back(slot);
}

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

// ---- exports
// -----------------------------------------------------------------------------------------------------------

void GuardianTable::set_exports(uint32_t home, const std::vector<Export>& exports) {
  std::lock_guard guard(mutex_);
  for (auto& slot : memory_->shown)
    if (slot.used.load(std::memory_order_relaxed) != 0 && slot.home == home)
      slot.used.store(0, std::memory_order_release);
  size_t at = 0;
  for (const Export& e : exports) {
    while (at < kExportsMax && memory_->shown[at].used.load(std::memory_order_relaxed) != 0) ++at;
    if (at == kExportsMax || e.name.size() >= kExportNameMax) {
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

// ---- for the next daemon
// -------------------------------------------------------------------------------------------------------

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
      found.push_back({std::string(slot.name.data(), ::strnlen(slot.name.data(), kExportNameMax)),
                       slot.home, slot.root, slot.read_only != 0});
  return found;
}

uint32_t GuardianTable::charge() const { return memory_->charge.load(std::memory_order_acquire); }

uint32_t GuardianTable::take_charge() {
  if (++last_charge_ == 0) ++last_charge_;
  memory_->charge.store(last_charge_);
  return last_charge_;
}

bool GuardianTable::end_charge(uint32_t charge) {
  return memory_->charge.compare_exchange_strong(charge, 0);
}

Instant GuardianTable::last_alive() const {
  return {memory_->alive_ns.load(std::memory_order_acquire)};
}

// Bounded here, too: a daemon that dies may have written anywhere before.
size_t GuardianTable::homes() const {
  return std::min<size_t>(memory_->homes.load(std::memory_order_acquire), kHomesMax);
}

std::string GuardianTable::home_name(uint32_t home) const {
  if (home >= homes()) return "unknown";
  const auto& name = memory_->home[home].name;
  return std::string(name.data(), ::strnlen(name.data(), name.size()));
}

int64_t GuardianTable::leases_until(uint32_t home) const {
  return home < kHomesMax ? memory_->home[home].until_ns.load(std::memory_order_relaxed) : 0;
}

std::vector<GuardianTable::Inode> GuardianTable::inodes() const {
  std::vector<Inode> found;
  const uint32_t used = std::min<uint32_t>(memory_->inodes_used.load(), kInodesMax);
  for (uint32_t i = 0; i < used; ++i) {
    const auto& slot = memory_->inode[i];
    if (const uint64_t node = slot.node.load(std::memory_order_acquire); node != 0)
      found.push_back({.node = node,
                       .home = slot.home,
                       .file = slot.file,
                       .lookups = slot.lookups.load(std::memory_order_relaxed),
                       .opens = {slot.opens.load(std::memory_order_relaxed),
                                 slot.reading.load(std::memory_order_relaxed),
                                 slot.mapping.load(std::memory_order_relaxed)},
                       .owes = slot.owes.load(std::memory_order_acquire) != 0});
  }
  return found;
}

std::unordered_map<uint64_t, uint32_t> GuardianTable::slots() const {
  std::unordered_map<uint64_t, uint32_t> found;
  const uint32_t used = std::min<uint32_t>(memory_->inodes_used.load(), kInodesMax);
  for (uint32_t i = 0; i < used; ++i)
    if (const uint64_t node = memory_->inode[i].node.load(std::memory_order_acquire); node != 0)
      found.emplace(node, i);
  return found;
}

std::optional<GuardianTable::Inode> GuardianTable::find(uint64_t node) const {
  const uint32_t used = std::min<uint32_t>(memory_->inodes_used.load(), kInodesMax);
  for (uint32_t i = 0; i < used; ++i) {
    const auto& slot = memory_->inode[i];
    if (slot.node.load(std::memory_order_acquire) == node)
      return Inode{.node = node, .home = slot.home, .file = slot.file};
  }
  return std::nullopt;
}

std::vector<GuardianTable::Fill> GuardianTable::fills() const {
  std::vector<Fill> found;
  for (const auto& slot : memory_->fill)
    if (slot.unique.load(std::memory_order_acquire) > kBeingWritten)
      found.push_back({slot.node, slot.offset, slot.length});
  return found;
}

bool GuardianTable::incomplete() const { return memory_->without_slot.load() != 0; }

}  // namespace vremote::node
