// What the origin's disk has refused at an fsync: it says so once, to whoever asks first, and then
// that all is well. Every node that had a session may have written some of it, so each is told
// once.
//
// Pure, not thread-safe. Bounded by the files that the home knows: a file that nobody has is
// forgotten here, too.
#pragma once

#include <algorithm>
#include <cstdint>
#include <unordered_map>

#include "base/ids.h"
#include "coherence/file_errors.h"

namespace vremote::node {

class SyncRefusals {
 public:
  // Sessions' numbers only grow.
  void seen(NodeId node) { next_ = std::max<uint64_t>(next_, uint64_t{node.value} + 1); }

  // What an fsync of `node` has to say, for which the disk has said `error` (0: done).
  int32_t tell(FileId file, NodeId node, int32_t error) {
    if (error != 0) {
      coherence::FileErrors& errors = files_[file];
      errors.add(error, 0);
      return errors.tell({node.value, next_}, 0);
    }
    auto it = files_.find(file);
    return it == files_.end() ? 0 : it->second.tell({node.value, next_}, 0);
  }
  void forget(FileId file) { files_.erase(file); }

 private:
  uint64_t next_ = 1;
  std::unordered_map<FileId, coherence::FileErrors, FileIdHash> files_;
};

}  // namespace vremote::node
