// How a dead daemon's process is set free that hangs in a purge.
//
// SIGKILL does not end a thread that waits in the kernel for a locked page: the process keeps its
// port and its descriptors until somebody answers the fill that locks the page. Only the next
// daemon can answer that with bytes, and it cannot start before (a service manager waits for the
// end of the last one). So the guardian refuses what such a thread waits for:
//   - what the dead daemon's own threads have asked its kernel for, at once (EIO);
//   - fills of several pages in the range of a purge: readahead, no program sees its error. Whoever
//     needs one of the pages asks for that page alone, which is held as ever;
//   - when that has not helped, fills of one page there. A read(2) of it ends with EINTR: nothing
//     is lost, and it may try again, which many libraries do by themselves. A page fault fails when
//     it happens twice to it. The next fill of that page is left alone for a while, so that the
//     purge gets the page first.
// The page is neither locked nor filled then: nothing of before can be seen (rule K3).
//
// A thread that ends a name waits for the lock of the directory, which whoever looks up, lists or
// changes names there holds until it is answered. Such calls are ended, too: the kernel looks once
// more when it is told ESTALE, and its program sees nothing of it; by then the thread has had the
// lock, for it stands first in line. What the dead daemon may have done already is told EIO, as the
// next daemon would.
#pragma once

#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "base/page_range.h"
#include "base/time.h"
#include "node/guardian/guardian_table.h"

namespace vremote::node {

class GuardianCorpse {
 public:
  static constexpr int64_t kReadAheadNs = 100'000'000;
  static constexpr int64_t kPageNs = 400'000'000;
  // Far more than a thread that is woken needs. Where a program asks again and again, the purge
  // gets the page at the sixth attempt at the latest (page_lock_unfairness).
  static constexpr int64_t kAgainNs = 200'000'000;

  // `found`: since when it is known to hang; `purges`: in which it may.
  GuardianCorpse(Instant found, std::vector<GuardianTable::Fill> purges)
      : found_(found), purges_(std::move(purges)) {}

  // Whose locks are to be let go now: each is told of once, and again when that has not helped.
  // Then it may be the lock of a directory that somebody removes or moves (`also_others`).
  struct Directories {
    std::vector<uint64_t> nodes;
    bool also_others = false;
  };
  Directories directories(Instant now) {
    Directories due;
    for (const GuardianTable::Fill& p : purges_) {
      if (p.offset != GuardianTable::kNames) continue;
      const auto [next, first] = refused_.try_emplace({p.node, p.offset}, found_ + kPageNs);
      if (now < next->second) continue;
      next->second = now + kAgainNs;
      due.nodes.push_back(p.node);
      due.also_others = due.also_others || now - found_ >= kPageNs + kAgainNs;
    }
    return due;
  }

  // Whether the fill is to be refused now.
  bool refuses(Instant now, uint64_t node, uint64_t offset, uint64_t length) {
    if (!is_purged(node, offset, length)) return false;
    if (length > kPageSize) return now - found_ >= kReadAheadNs;
    const auto next = refused_.try_emplace({node, offset}, found_ + kPageNs).first;
    if (now < next->second) return false;
    next->second = now + kAgainNs;
    return true;
  }

 private:
  bool is_purged(uint64_t node, uint64_t offset, uint64_t length) const {
    for (const GuardianTable::Fill& p : purges_)
      if (p.node == node && offset + length > p.offset &&
          (p.length == 0 || offset < p.offset + p.length))
        return true;
    return false;
  }

  const Instant found_;
  const std::vector<GuardianTable::Fill> purges_;
  std::map<std::pair<uint64_t, uint64_t>, Instant> refused_;  // from when on, by node and offset
};

}  // namespace vremote::node
