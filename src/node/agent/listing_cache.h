// What the home listed of directories, as long as this node holds their Entries lease and changes
// nothing in them. Not thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <unordered_map>

#include "base/ids.h"
#include "coherence/messages.h"

namespace vremote::node {

class ListingCache {
 public:
  // The page that begins behind `cookie`; null: not known.
  const coherence::DirectoryPage* find(FileId dir, uint64_t cookie) const {
    auto it = directories_.find(dir);
    if (it == directories_.end()) return nullptr;
    auto page = it->second.find(cookie);
    return page == it->second.end() ? nullptr : &page->second;
  }

  void remember(FileId dir, uint64_t cookie, const coherence::DirectoryPage& page) {
    if (page.entries.size() > kEntriesMax) return;
    if (entries_ + page.entries.size() > kEntriesMax) {
      directories_.clear();
      entries_ = 0;
    }
    auto [it, fresh] = directories_[dir].try_emplace(cookie, page);
    if (fresh) entries_ += page.entries.size();
  }

  void forget(FileId dir) {
    auto it = directories_.find(dir);
    if (it == directories_.end()) return;
    for (const auto& [cookie, page] : it->second) entries_ -= page.entries.size();
    directories_.erase(it);
  }

  size_t entries() const { return entries_; }

 private:
  static constexpr size_t kEntriesMax = 1 << 18;

  std::unordered_map<FileId, std::map<uint64_t, coherence::DirectoryPage>, FileIdHash> directories_;
  size_t entries_ = 0;
};

}  // namespace vremote::node
