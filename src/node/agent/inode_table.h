// The kernel's node numbers and the files they stand for. Thread-safe.
//
// A number is never used again while the mount lives, so (number, generation 0) is unique as FUSE
// wants it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <vector>

#include "base/ids.h"
#include "node/guardian/guardian_table.h"

namespace vremote::node {

class AgentService;

struct Inode {
  uint64_t node = 0;
  AgentService* agent = nullptr;
  FileId file;
  uint32_t slot = GuardianTable::kNoSlot;  // in the guardian's table
};

class InodeTable {
 public:
  // Before the first inode: what is known here is known to the guardian too.
  void show_to(GuardianTable* guardian) { guardian_ = guardian; }
  void add_home(AgentService* agent, uint32_t home) {
    std::lock_guard lock(mutex_);
    homes_[agent] = home;
  }

  // The file's number, with one lookup more (each answer that names a node counts as one).
  uint64_t look_up(AgentService* agent, FileId file) {
    std::lock_guard lock(mutex_);
    auto [known, fresh] = numbers_.try_emplace(Key{agent, file}, next_);
    if (fresh) {
      inodes_.emplace(next_++,
                      Counted{{known->second, agent, file, show(known->second, agent, file)}, 0});
    }
    Counted& inode = inodes_.at(known->second);
    ++inode.lookups;
    if (guardian_ != nullptr) guardian_->set_lookups(inode.inode.slot, inode.lookups);
    return known->second;
  }

  std::optional<Inode> get(uint64_t node) const {
    std::lock_guard lock(mutex_);
    auto it = inodes_.find(node);
    if (it == inodes_.end()) return std::nullopt;
    return it->second.inode;
  }

  std::optional<uint64_t> find(AgentService* agent, FileId file) const {
    std::lock_guard lock(mutex_);
    auto it = numbers_.find(Key{agent, file});
    if (it == numbers_.end()) return std::nullopt;
    return it->second;
  }

  // The kernel forgot `lookups` of them; returns the file when none is left.
  std::optional<Inode> forget(uint64_t node, uint64_t lookups) {
    std::lock_guard lock(mutex_);
    auto it = inodes_.find(node);
    if (it == inodes_.end()) return std::nullopt;
    it->second.lookups -= std::min(it->second.lookups, lookups);
    if (it->second.lookups > 0) {
      if (guardian_ != nullptr) guardian_->set_lookups(it->second.inode.slot, it->second.lookups);
      return std::nullopt;
    }
    const Inode gone = it->second.inode;
    if (guardian_ != nullptr) guardian_->remove_inode(gone.slot);
    numbers_.erase(Key{gone.agent, gone.file});
    inodes_.erase(it);
    return gone;
  }

  // ---- for the daemon after a crash of this one (guardian_table.h) ----
  // A handle is about to be given out; one is gone.
  void opened(uint64_t node, bool reads, bool may_map) {
    if (guardian_ == nullptr) return;
    std::lock_guard lock(mutex_);
    if (auto it = inodes_.find(node); it != inodes_.end())
      guardian_->opened(it->second.inode.slot, reads, may_map);
  }
  void closed(uint64_t node, bool reads, bool may_map) {
    if (guardian_ == nullptr) return;
    std::lock_guard lock(mutex_);
    if (auto it = inodes_.find(node); it != inodes_.end())
      guardian_->closed(it->second.inode.slot, reads, may_map);
  }
  // All that was written to the file is at its home.
  void owes_nothing(AgentService* agent, FileId file) {
    if (guardian_ == nullptr) return;
    std::lock_guard lock(mutex_);
    if (auto it = numbers_.find(Key{agent, file}); it != numbers_.end())
      guardian_->set_owes(inodes_.at(it->second).inode.slot, false);
  }

  std::vector<uint64_t> nodes() const {
    std::lock_guard lock(mutex_);
    std::vector<uint64_t> out;
    out.reserve(inodes_.size());
    for (const auto& [node, inode] : inodes_) out.push_back(node);
    return out;
  }

  // ---- the next daemon of this node ----
  struct Kept {
    Inode inode;
    uint64_t lookups = 0;
  };
  std::vector<Kept> kept(uint64_t* next) const {
    std::lock_guard lock(mutex_);
    *next = next_;
    std::vector<Kept> out;
    out.reserve(inodes_.size());
    for (const auto& [node, counted] : inodes_) out.push_back({counted.inode, counted.lookups});
    return out;
  }
  // `slot`: of the inode in the guardian's table. False: it cannot be one, or is there already.
  bool take_over(const Kept& kept, uint32_t slot) {
    std::lock_guard lock(mutex_);
    const Inode& inode = kept.inode;
    if (inode.node < 2 || kept.lookups == 0 || inodes_.contains(inode.node) ||
        !numbers_.try_emplace(Key{inode.agent, inode.file}, inode.node).second)
      return false;
    if (slot == GuardianTable::kNoSlot) slot = show(inode.node, inode.agent, inode.file);
    if (guardian_ != nullptr) guardian_->set_lookups(slot, kept.lookups);
    inodes_.emplace(inode.node, Counted{{inode.node, inode.agent, inode.file, slot}, kept.lookups});
    next_ = std::max(next_, inode.node + 1);
    return true;
  }
  void go_on_at(uint64_t next) {
    std::lock_guard lock(mutex_);
    next_ = std::max(next_, next);
  }

  size_t size() const {
    std::lock_guard lock(mutex_);
    return inodes_.size();
  }

 private:
  struct Key {
    AgentService* agent = nullptr;
    FileId file;
    bool operator==(const Key&) const = default;
  };
  struct KeyHash {
    size_t operator()(const Key& key) const {
      return FileIdHash{}(key.file) ^ (reinterpret_cast<uintptr_t>(key.agent) * 31);
    }
  };
  struct Counted {
    Inode inode;
    uint64_t lookups = 0;
  };

  uint32_t show(uint64_t node, AgentService* agent, FileId file) {
    if (guardian_ == nullptr) return GuardianTable::kNoSlot;
    auto home = homes_.find(agent);
    return guardian_->add_inode(
        node, home != homes_.end() ? home->second : GuardianTable::kHomesMax, file);
  }

  GuardianTable* guardian_ = nullptr;
  mutable std::mutex mutex_;
  std::map<AgentService*, uint32_t> homes_;
  uint64_t next_ = 2;  // 1 is the root
  std::unordered_map<uint64_t, Counted> inodes_;
  std::unordered_map<Key, uint64_t, KeyHash> numbers_;
};

}  // namespace vremote::node
