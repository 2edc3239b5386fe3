// The last attributes of files that have lost their last name and that no node has open.
//
// A program may still look at one: fstat(2) of a removed directory, of a descriptor opened with
// O_PATH, of a working directory. On a local disk such an inode lives on until nobody refers to it;
// here nobody tells the origin of references that are not opens, so what is left to be seen of it
// is kept for a while. Thread-safe.
#pragma once

#include <cstddef>
#include <deque>
#include <mutex>
#include <optional>
#include <unordered_map>

#include "base/attributes.h"
#include "base/ids.h"

namespace vremote::store {

class Departed {
 public:
  static constexpr size_t kMost = 65536;  // the oldest go first

  void add(FileId file, const Attributes& attributes) {
    std::lock_guard lock(mutex_);
    if (!last_.insert_or_assign(file, attributes).second) return;
    order_.push_back(file);
    if (order_.size() <= kMost) return;
    last_.erase(order_.front());
    order_.pop_front();
  }
  std::optional<Attributes> find(FileId file) const {
    std::lock_guard lock(mutex_);
    auto it = last_.find(file);
    if (it == last_.end()) return std::nullopt;
    return it->second;
  }

 private:
  mutable std::mutex mutex_;
  std::unordered_map<FileId, Attributes, FileIdHash> last_;
  std::deque<FileId> order_;
};

}  // namespace vremote::store
