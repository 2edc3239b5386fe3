// What is left of files that have lost their last name and that no node has open.
//
// A program may still refer to one: by a working directory, a directory's descriptor, one opened
// with O_PATH. On a local disk such an inode lives on until nobody refers to it; here nobody tells
// the origin of references that are not opens. So for a while the last attributes are kept, and
// what has no content of its own (directories and the like) is kept open as a whole. Thread-safe.
#pragma once

#include <sys/stat.h>

#include <cstddef>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <utility>

#include "base/attributes.h"
#include "base/ids.h"
#include "store/open_file.h"

namespace vremote::store {

class Departed {
 public:
  // The oldest go first.
  static constexpr size_t kMost = 65536, kMostOpen = 128;

  // `file` is kept open unless it is a regular one, which may hold much of the disk.
  void add(FileId id, const struct stat& st, std::shared_ptr<OpenFile> file) {
    if (file != nullptr && file->is_regular()) file.reset();
    std::shared_ptr<OpenFile> closing;  // without the lock
    std::lock_guard lock(mutex_);
    auto [it, fresh] = last_.try_emplace(id);
    it->second.attributes = attributes_of(st);
    if (file != nullptr && it->second.file == nullptr) {
      it->second.file = std::move(file);
      open_.push_back(id);
    }
    if (open_.size() > kMostOpen) {
      if (auto oldest = last_.find(open_.front()); oldest != last_.end())
        closing = std::move(oldest->second.file);
      open_.pop_front();
    }
    if (fresh) order_.push_back(id);
    if (order_.size() <= kMost) return;
    last_.erase(order_.front());
    order_.pop_front();
  }
  std::optional<Attributes> attributes(FileId id) const {
    std::lock_guard lock(mutex_);
    auto it = last_.find(id);
    if (it == last_.end()) return std::nullopt;
    return it->second.attributes;
  }
  std::shared_ptr<OpenFile> open(FileId id) const {
    std::lock_guard lock(mutex_);
    auto it = last_.find(id);
    return it == last_.end() ? nullptr : it->second.file;
  }

 private:
  struct Last {
    Attributes attributes;
    std::shared_ptr<OpenFile> file;
  };
  mutable std::mutex mutex_;
  std::unordered_map<FileId, Last, FileIdHash> last_;
  std::deque<FileId> order_, open_;
};

}  // namespace vremote::store
