// Which files of a home have bytes, names or attributes that no fsync has brought to its disk yet:
// a power failure of the origin may take them. Whoever is granted something of such a file is told
// (Grant::unsynced), so that its next fsync is about that, too (S2 of docs/protocol.md).
//
// Bounded: when they are more than `most`, all files count as such, as after a start (what was
// written before is not known), until everything has been synced.
//
// Pure, not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "base/ids.h"

namespace vremote::coherence {

class UnsyncedFiles {
 public:
  explicit UnsyncedFiles(size_t most = 65536) : most_(most) {}

  // `by_call`: mode, owner, extended attributes, names: what fdatasync(2) need not bring to the
  // disk.
  void changed(FileId file, bool by_call = false) {
    Change& change = changes_[file];
    change.number = ++now_;
    change.by_call = change.by_call || by_call;
    if (changes_.size() > most_) all_changed();
  }
  void all_changed() {
    all_ = ++now_;
    changes_.clear();
  }
  bool has(FileId file) const { return all_ != 0 || changes_.contains(file); }
  // Whether fdatasync(2) would not bring all of it to the disk.
  bool needs_fsync(FileId file) const {
    auto it = changes_.find(file);
    return all_ != 0 || (it != changes_.end() && it->second.by_call);
  }
  bool too_many() const { return all_ != 0; }
  // Unless they are too many.
  std::vector<FileId> files() const {
    std::vector<FileId> out;
    for (const auto& [file, change] : changes_) out.push_back(file);
    return out;
  }

  // What was changed before a sync began is on the disk when it has ended.
  uint64_t sync_begins() const { return now_; }
  void synced(FileId file, uint64_t begun) {
    auto it = changes_.find(file);
    if (it != changes_.end() && it->second.number <= begun) changes_.erase(it);
  }
  void all_synced(uint64_t begun) {
    if (all_ <= begun) all_ = 0;
    std::erase_if(changes_, [&](const auto& change) { return change.second.number <= begun; });
  }

 private:
  size_t most_;
  uint64_t now_ = 0;  // counts changes
  struct Change {
    uint64_t number = 0;  // the last one's
    bool by_call = false;
  };
  std::unordered_map<FileId, Change, FileIdHash> changes_;
  uint64_t all_ = 0;  // since this change; 0: only those of changes_
};

}  // namespace vremote::coherence
