// The names an agent remembers of the directories it holds an Entries lease on. Not thread-safe.
#pragma once

#include <optional>
#include <string>
#include <unordered_map>

#include "base/ids.h"

namespace vremote::coherence {

class NameCache {
 public:
  struct Answer {
    bool known = false;
    std::optional<FileId> file;  // empty: no such name
  };

  Answer find(FileId dir, const std::string& name) const {
    auto it = directories_.find(dir);
    if (it == directories_.end() || it->second.changing > 0) return {};
    auto entry = it->second.names.find(name);
    if (entry == it->second.names.end()) return {};
    return {true, entry->second};
  }

  // Take it when asking the home for names: the answer may be overtaken by that of an operation
  // which has changed them since (a rename between two directories answers on the lane of one of
  // them).
  uint64_t changes() const { return changes_; }

  // What an answer says that was asked for at `asked` changes. Ignored while an operation of this
  // node is changing the directory, or when one has since.
  void remember(FileId dir, const std::string& name, std::optional<FileId> file, uint64_t asked) {
    if (asked != changes_) return;
    Directory& directory = directories_[dir];
    if (directory.changing > 0) return;
    if (entries_ >= kEntriesMax) clear_names();
    auto [it, fresh] = directory.names.insert_or_assign(name, file);
    entries_ += fresh ? 1 : 0;
  }

  bool changing(FileId dir) const {
    auto it = directories_.find(dir);
    return it != directories_.end() && it->second.changing > 0;
  }

  // From the moment an operation that changes `dir` is sent until it is answered, nothing
  // remembered of it is used: the home has perhaps carried it out already, and other nodes have
  // seen it.
  void begin_change(FileId dir) { ++directories_[dir].changing; }
  // `name`: forgotten, since its meaning may have changed.
  void end_change(FileId dir, const std::string& name) {
    ++changes_;
    auto it = directories_.find(dir);
    if (it == directories_.end()) return;
    entries_ -= it->second.names.erase(name);
    if (it->second.changing > 0) --it->second.changing;
    if (it->second.changing == 0 && it->second.names.empty()) directories_.erase(it);
  }

  void forget(FileId dir, const std::string& name) {
    if (auto it = directories_.find(dir); it != directories_.end())
      entries_ -= it->second.names.erase(name);
  }

  // The Entries lease is gone.
  void lost(FileId dir) {
    auto it = directories_.find(dir);
    if (it == directories_.end()) return;
    entries_ -= it->second.names.size();
    it->second.names.clear();
    if (it->second.changing == 0) directories_.erase(it);
  }

  size_t entries() const { return entries_; }

 private:
  static constexpr size_t kEntriesMax = 1 << 20;
  struct Directory {
    std::unordered_map<std::string, std::optional<FileId>> names;
    int changing = 0;
  };
  void clear_names() {
    for (auto it = directories_.begin(); it != directories_.end();) {
      it->second.names.clear();
      it = it->second.changing == 0 ? directories_.erase(it) : std::next(it);
    }
    entries_ = 0;
  }

  std::unordered_map<FileId, Directory, FileIdHash> directories_;
  size_t entries_ = 0;
  uint64_t changes_ = 0;
};

}  // namespace vremote::coherence
