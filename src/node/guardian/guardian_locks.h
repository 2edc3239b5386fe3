// The part of a guardian's table that says through which handles locks are held: the next daemon
// cannot bring them back, and tells who relies on one.
//
// The daemon finds what it has noted by an index of its own, so that a close(2) costs what that
// handle holds and not what all of them do. What finds no room is remembered there too, and takes
// the place of the next that goes; while there is such a lock, nobody can go on with the mount.
#pragma once

#include <array>
#include <atomic>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <vector>

namespace vremote::node {

// A lock was taken through the handle, by this owner.
struct GuardianLock {
  uint64_t handle = 0, node = 0, owner = 0;
  uint8_t kind = 0;  // coherence::LockKind
  bool operator==(const GuardianLock&) const = default;
};

// Thread-safe.
class GuardianLocks {
 public:
  static constexpr size_t kMax = 16384;

  // Shared, and zeroes at first. A slot counts while its handle is set: that is written last and
  // cleared first.
  struct Memory {
    struct Slot {
      std::atomic<uint64_t> handle;  // 0: free
      uint64_t node, owner;
      uint32_t kind;
    };
    std::atomic<uint32_t> used;  // slots from here on were never used
    std::atomic<uint32_t> without_slot;
    std::array<Slot, kMax> slot;
  };
  explicit GuardianLocks(Memory& memory) : memory_(memory) {}

  void note(const GuardianLock& lock);
  // The owner has none of this kind on the inode any more; or whoever took one through the handle.
  void drop(uint64_t node, uint8_t kind, uint64_t owner);
  void drop(uint64_t handle);

  // What another daemon, or another process, has noted is known from here on.
  void learn();
  // Behind learn(), by who knows better: all that are held, of which some may have had no room.
  // Their inodes may be unknown (0): such a lock without room counts until its handle is dropped.
  void learn_all(std::span<const GuardianLock> held);

  // Of the memory alone. Nothing: there were more than could be noted.
  std::optional<std::vector<GuardianLock>> all() const;

 private:
  struct Key {  // by handle
    uint64_t handle = 0, owner = 0;
    uint8_t kind = 0;
    auto operator<=>(const Key&) const = default;
  };
  struct Owned {  // by who may let go of it
    uint64_t node = 0, owner = 0;
    uint8_t kind = 0;
    uint64_t handle = 0;
    auto operator<=>(const Owned&) const = default;
  };
  struct Place {
    uint64_t node = 0;
    std::optional<uint32_t> slot;
  };
  using Known = std::map<Key, Place>;

  // With the lock.
  void add(const GuardianLock& lock);
  void write(uint32_t slot, const Key& key, uint64_t node);
  std::optional<uint32_t> take_slot();
  Known::iterator remove(Known::iterator known);
  void tell_unnoted();

  Memory& memory_;
  std::mutex mutex_;
  Known known_;
  std::set<Owned> owned_;
  std::set<Key> unnoted_;
  std::vector<uint32_t> free_;
  uint32_t unnoted_before_ = 0;  // of another daemon; which, nobody knows
};

}  // namespace vremote::node
