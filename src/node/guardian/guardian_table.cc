#include "node/guardian/guardian_table.h"

#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <memory>

#include "node/guardian/guardian_table_memory.h"

namespace vremote::node {
namespace {

// Of this layout; a table of another size or with another word is of another version.
constexpr uint64_t kLayout = 0x5652'5442'4c00'0004;

}  // namespace

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
    if (home_name(i) == name.substr(0, Memory::kHomeNameMax - 1)) return i;  // of the daemon before
  const uint32_t index = memory_->homes.load();
  if (index >= kHomesMax) return kHomesMax;
  auto& slot = memory_->home[index];
  std::memcpy(slot.name.data(), name.data(), std::min(name.size(), Memory::kHomeNameMax - 1));
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

bool GuardianTable::incomplete() const { return memory_->without_slot.load() != 0; }

}  // namespace vremote::node
