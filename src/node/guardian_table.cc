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

}  // namespace

struct GuardianTable::Memory {
  struct HomeSlot {
    std::array<char, kHomeNameMax> name;
    std::atomic<int64_t> until_ns;
  };
  struct InodeSlot {
    std::atomic<uint64_t> node;  // 0: free
    uint32_t home;
    FileId file;
  };
  struct FillSlot {
    std::atomic<uint64_t> unique;  // 0: free
    uint64_t node, offset, length;
  };
  std::atomic<int64_t> alive_ns;
  std::atomic<uint32_t> in_charge;
  std::atomic<uint32_t> homes;
  std::atomic<uint32_t> inodes_used;  // slots from here on were never used
  std::atomic<uint32_t> without_slot;
  std::array<HomeSlot, kHomesMax> home;
  std::array<FillSlot, kFillsMax> fill;
  std::array<InodeSlot, kInodesMax> inode;
};

Result<GuardianTable> GuardianTable::make() {
  static_assert(std::atomic<uint64_t>::is_always_lock_free);  // it works between processes
  Fd fd(::memfd_create("vremote-guardian", MFD_CLOEXEC));
  if (!fd.valid() || ::ftruncate(fd.get(), sizeof(Memory)) != 0)
    return fail(errno, "no memory to share with the guardian");
  void* memory = ::mmap(nullptr, sizeof(Memory), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE,
                        fd.get(), 0);
  if (memory == MAP_FAILED) return fail(errno, "no memory to share with the guardian");
  return GuardianTable(static_cast<Memory*>(memory), std::move(fd));  // zeroes are an empty table
}

Result<GuardianTable> GuardianTable::take_over(Fd fd) {
  struct stat st {};
  if (::fstat(fd.get(), &st) != 0 || st.st_size != static_cast<off_t>(sizeof(Memory)))
    return fail(EPROTO, "the guardian's table has another size than here");
  void* memory = ::mmap(nullptr, sizeof(Memory), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE,
                        fd.get(), 0);
  if (memory == MAP_FAILED) return fail(errno, "no memory to share with the guardian");
  return GuardianTable(static_cast<Memory*>(memory), std::move(fd));
}

std::unordered_map<uint64_t, uint32_t> GuardianTable::begin_anew() {
  for (auto& fill : memory_->fill) fill.unique.store(0);
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
      free_(std::move(other.free_)) {}

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
  inode.node.store(node, std::memory_order_release);
  return slot;
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

bool GuardianTable::guardian_in_charge() const {
  return memory_->in_charge.load(std::memory_order_acquire) != 0;
}
void GuardianTable::set_guardian_in_charge(bool on) { memory_->in_charge.store(on ? 1 : 0); }

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
      found.push_back({node, slot.home, slot.file});
  }
  return found;
}

std::optional<GuardianTable::Inode> GuardianTable::find(uint64_t node) const {
  const uint32_t used = std::min<uint32_t>(memory_->inodes_used.load(), kInodesMax);
  for (uint32_t i = 0; i < used; ++i) {
    const auto& slot = memory_->inode[i];
    if (slot.node.load(std::memory_order_acquire) == node) return Inode{node, slot.home, slot.file};
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
