// Files without a name that a node had open whose session is over.
//
// Its daemon may have been killed, and its programs wait for the next one with these files open
// (docs/architecture.md, "A daemon that died"). The next one says that it has them open as soon as
// it has a session; until then, or until nobody can come for them any more, they are kept. Not
// thread-safe.
#pragma once

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "base/ids.h"
#include "base/time.h"

namespace vremote::node {

class LeftBehind {
 public:
  // As long as a guardian waits for the next daemon by itself; and what one that is there needs.
  static constexpr int64_t kForTheNextNs = 60'000'000'000;
  static constexpr int64_t kIsThereNs = 10'000'000'000;

  // `is_there`: the node's next session has begun.
  void add(FileId file, std::string node, bool is_there, Instant now) {
    files_.push_back({file, std::move(node), now + (is_there ? kIsThereNs : kForTheNextNs)});
  }
  void came_back(const std::string& node, Instant now) {
    for (File& f : files_)
      if (f.node == node) f.until = std::min(f.until, now + kIsThereNs);
  }
  // Those that nobody will come for, once.
  std::vector<FileId> take_old(Instant now) {
    std::vector<FileId> old;
    std::erase_if(files_, [&](const File& f) {
      if (f.until > now) return false;
      old.push_back(f.file);
      return true;
    });
    return old;
  }

 private:
  struct File {
    FileId file;
    std::string node;
    Instant until;
  };
  std::vector<File> files_;
};

}  // namespace vremote::node
