// When to tell the home of changes made behind its back: each file at once the first time, then at
// most every kApart, so that a busy writer on the origin costs the cluster a few recalls a second
// and no change waits longer than that.
//
// A pure queue: the caller has the clock.
#pragma once

#include <map>
#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/ids.h"
#include "base/time.h"
#include "coherence/operation_needs.h"

namespace vremote::node {

class OutsideChanges {
 public:
  static constexpr int64_t kApart = 100'000'000;  // ns

  void note(Instant now, FileId file, const coherence::OutsideChange& change);
  using Due = std::vector<std::pair<FileId, coherence::OutsideChange>>;
  Due take_due(Instant now);
  // When take_due() has something to do next; nullopt: nothing is waiting.
  std::optional<Instant> next() const;
  size_t size() const { return files_.size(); }

 private:
  // A file stays here for kApart after it was due, with nothing to tell unless it changes again.
  std::unordered_map<FileId, coherence::OutsideChange, FileIdHash> files_;
  std::multimap<Instant, FileId> order_;  // each file of files_ once
};

}  // namespace vremote::node
