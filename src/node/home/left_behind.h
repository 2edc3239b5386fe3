// Files without a name that a node had open whose session is over.
//
// Its daemon may have been killed, and its programs wait for the next one with these files open
// (docs/architecture.md, "A daemon that died"). The next one says that it has them open as soon as
// it has a session; until then, or until nobody can come for them any more, they are kept. Not
// thread-safe.
#pragma once

#include <algorithm>
#include <map>
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

  // `is_there`: the node's next session has begun. False: it is there already, for longer now.
  bool add(FileId file, const std::string& node, bool is_there, Instant now) {
    const Instant until = now + (is_there ? kIsThereNs : kForTheNextNs);
    const auto [it, fresh] = files_.try_emplace({node, file}, until);
    it->second = std::max(it->second, until);
    return fresh;
  }
  void came_back(const std::string& node, Instant now) {
    for (auto it = files_.lower_bound({node, FileId{}}); it != files_.end(); ++it) {
      if (it->first.first != node) break;
      it->second = std::min(it->second, now + kIsThereNs);
    }
  }
  // Those that nobody will come for, once.
  std::vector<FileId> take_old(Instant now) {
    std::vector<FileId> old;
    std::erase_if(files_, [&](const auto& kept) {
      if (kept.second > now) return false;
      old.push_back(kept.first.second);
      return true;
    });
    return old;
  }

 private:
  std::map<std::pair<std::string, FileId>, Instant> files_;  // and until when they are kept
};

}  // namespace vremote::node
