// What the agent knows of the kernel's page cache of one file.
//
// The kernel tells when it wants a page (a fill) and never when it drops one, so we keep the pages
// that *may* be cached: `resident`.
//  C1  A page enters the cache only by an answered fill: it is resident from the answer on.
//  C2  A fill that has arrived proves its pages absent: their folios are locked and empty until we
//  answer (rule K3). C3  A purge that has returned proves absent those of its pages no fill was
//  answered for since it began (rule K4): each was dropped at
//      some moment after the start, and only an answered fill could have brought it back.
//  C4  A purge may be held up by a pending fill inside its range. It then counts for nothing yet,
//  and what is still needed gets a purge of
//      its own; how many run at once has no bound here (rule K5).
// Any waiting task (a recall, a direct write, an open) asks one question, "is every page I care
// about absent?", and shares the purges in flight with all others.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "base/page_range.h"
#include "base/time.h"
#include "coherence/mistakes.h"

namespace vremote::coherence {

class KernelCache {
 public:
  explicit KernelCache(Mistakes mistakes) : mistakes_(mistakes) {}

  void fill_arrived(uint64_t fill, PageRange range);
  // `keep_until`: a recall should leave the pages alone until then (rule K13).
  void fill_answered(uint64_t fill, PageRange range, Instant keep_until);
  // The fill was answered with an error: nothing is cached.
  void fill_failed(uint64_t fill);

  const PageSet& resident() const { return resident_; }
  bool fill_pending(PageRange range) const;

  struct Purge {
    uint64_t id = 0;
    PageRange range;
  };
  // The purges to start now so that all of `need` becomes absent, beside those in flight. Takes ids
  // from *next_id.
  std::vector<Purge> start_purges(const PageSet& need, uint64_t* next_id);
  void purge_returned(uint64_t id);
  size_t purges_in_flight() const { return purges_.size(); }
  bool is_purging(PageRange range) const;

  // The earliest moment at which no page of `range` was filled only just now; nullopt when that is
  // already so.
  std::optional<Instant> keep_until(PageRange range, Instant now);

  // Nothing is known of what the kernel has: it may have all.
  void may_have_all() { resident_.add(PageRange::all()); }

  // The kernel has dropped the whole inode.
  void forgotten() { resident_.clear(); }

 private:
  struct InFlight {
    PageRange range;
    PageSet valid;  // pages it will have proved absent when it returns
  };
  struct Recent {
    PageRange range;
    Instant until;
  };
  bool held_up(const InFlight& purge) const;

  Mistakes mistakes_;
  PageSet resident_;
  std::map<uint64_t, PageRange> fills_;  // pending
  std::map<uint64_t, InFlight> purges_;
  std::vector<Recent> recent_;
};

}  // namespace vremote::coherence
