// What the kernel may take the size of one file for: its i_size.
//
// It takes a size from answers (attributes, the end of a write, a short fill), but not always:
// whatever crosses another change of the inode is dropped, and nothing tells. A size that is too
// small is asked for again by the reader itself. One that is too large is not: a reader finds
// zeroes where the file has no bytes. And a kernel that takes in a smaller size cuts its cached
// pages after that, when it comes to it: pages that were filled anew meanwhile, too.
//  Z1  The kernel's size is at most the largest it was told since it was last looked at.
//  Z2  Before an answer that relies on a smaller one the driver settles it (SettleSize): it makes
//  the kernel ask, and looks until the size is
//      there. Such an answer is every fill with the file's end in it or before it, and attributes.
//  Z3  Until the cutting is done the file's size stays: the Attributes lease, and writes that make
//  the file longer. Z4  Both waits have an end (`patience`): the kernel can hold up a cutting on a
//  page whose fill waits for another node, which waits
//      for our lease. A kernel thread that has not run for so long may show zeroes once.
#pragma once

#include <cstdint>
#include <map>
#include <optional>

#include "base/time.h"

namespace vremote::coherence {

class KernelSize {
 public:
  struct Settle {
    uint64_t id = 0;
    uint64_t size = 0;
  };
  // A kernel thread that has been answered is through with it after a moment.
  // Without patience nothing is settled; what relies on a truncation's size waits a moment then.
  KernelSize(int64_t patience_ns, int64_t moment_ns)
      : patience_ns_(patience_ns), moment_ns_(moment_ns) {}

  void told(uint64_t size);
  // By the answer to a write: its caller sets the size, whatever it is by then, when it comes to
  // it.
  void told_by_write(Instant now, uint64_t size) {
    told(size);
    written_until_ = now + moment_ns_;
  }
  void forgotten();
  bool nothing_told() const { return at_most_ == 0; }
  uint64_t at_most() const { return at_most_; }

  // True when the kernel's size is at most `size`. Else one is under way, or *start says what to
  // start.
  bool settled(Instant now, uint64_t size, uint64_t* next_id, std::optional<Settle>* start);
  // The kernel is about to be answered that its truncation is done.
  // That answer brings the size.
  std::optional<Settle> truncated(Instant now, uint64_t size, bool under_lock, uint64_t* next_id);
  void seen(uint64_t id);   // the size was there
  bool ended(uint64_t id);  // and what had to be cut is; true when by a truncation of ours
  // A request arrived that holds the inode's lock: a truncation before it is through.
  void lock_is_held();
  // Another node's truncation waits for our Attributes, and the page that the cutting is stuck on
  // for that node (Z4).
  void give_way() { cutting_.clear(); }

  bool cutting(Instant now) const { return cutting_until(now).has_value(); }
  std::optional<Instant> cutting_until(Instant now) const;
  Instant settling_until() const;

 private:
  struct Cutting {
    Instant until;
    bool under_lock = false;
  };
  struct Current {
    Settle settle;
    Instant until;
  };

  int64_t patience_ns_, moment_ns_;
  uint64_t at_most_ = 0;
  std::optional<Current> current_;
  std::map<uint64_t, Cutting> cutting_;
  Instant truncated_until_, written_until_;
};

}  // namespace vremote::coherence
