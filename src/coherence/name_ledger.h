// What one kernel may know of names without asking, and how that is ended before a lease is.
//
// Two notifications end a name. Expiring it (FUSE_NOTIFY_INVAL_ENTRY, EXPIRE_ONLY) costs nothing
// else, but waits for the directory's inode lock, which every create, unlink, rename, first lookup
// or readdir in it holds until we answer: two nodes that change one directory would wait for each
// other for ever. Advancing the epoch (FUSE_NOTIFY_INC_EPOCH, Linux 6.16) takes no lock, but drops
// every name of the mount at its next use, and /proc then calls open files "(deleted)".
//
// Rules:
//  N1  Names are expired, and the epoch is advanced when that takes too long, when a change of this
//  node in the directory is known to be under way, or when a name of it is not settled.
//  N2  A name is settled when the thread that looked it up has sent another request: its lookup is
//  over then. Until then an expiry may come between our reply and the kernel's use of it
//  (fuse_dentry_revalidate sets the new time without a lock), and would be undone. The epoch needs
//  no such care: the kernel notes it before it asks.
//  N3  A rename takes the kernel's right to use the old name along to the new one, and with it the
//  lookups of the old name by other threads that are not over: they set the time of the moved name.
//  That holds for a name that is being expired, too: the expiry waits for the rename, and does not
//  find it then.
//  N4  The same goes for lookups of the old name that are answered after the rename, and those that
//  are asked after it by a thread that had found the name before: they set the time of the moved
//  name if its file has got the old name again. So that name is not kept by what is asked until
//  `moved_ns` after our answer to the rename; no thread is kept from running in its kernel for so
//  long.
//  N5  A directory from which names had to be taken is contended: for a while it is given none.
//
// Pure: calls in, decisions out. Not thread-safe. Directories are the kernel's node numbers,
// threads its thread ids.
#pragma once

#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/time.h"
#include "coherence/mistakes.h"

namespace vremote::coherence {

struct NameLedgerOptions {
  int64_t moved_ns = 10'000'000'000;     // N4
  int64_t contended_ns = 1'000'000'000;  // N5
  int64_t expiry_most_ns = 10'000'000;   // N1
  Mistakes mistakes;
};

class NameLedger {
 public:
  struct Name {
    std::string name;
    bool exists = false;  // the kernel knows a file by it, not that there is none
  };
  enum class How : uint8_t {
    Nothing,  // the kernel knows none: over
    Epoch,    // advance the epoch now and call epoch_advanced(): over
    Expiry,   // expire `names`, beside everything else, and call finish()
  };
  struct Ending {
    How how = How::Nothing;
    uint64_t id = 0;
    std::vector<Name> names;
  };
  enum class Finish : uint8_t { WasOver, Over, Epoch };
  // A LOOKUP of the kernel.
  struct Asked {
    uint32_t tid = 0;
    Instant at;  // not after it was read
  };

  explicit NameLedger(const NameLedgerOptions& options = {}) : options_(options) {}

  // A thread is about to be told, by an answer to its LOOKUP, that the kernel may keep `name`.
  // False: it may not.
  bool give(uint64_t directory, const std::string& name, bool exists, const Asked& asked,
            Instant now);
  // An own rename is about to move a name (N3). False: that cannot be followed, so everything must
  // be ended (end_all()) when it is done. `to_leased`: the lease on the directory it goes to is
  // held.
  bool move(uint64_t from, const std::string& old_name, uint64_t to, const std::string& new_name,
            bool to_leased, uint32_t tid);
  // Its answer is about to be given (N4). False: too many, advance the epoch and call
  // epoch_advanced().
  bool moved(uint64_t from, const std::string& old_name, bool done, Instant now);
  // An own create made the name anew; the kernel was told not to keep it.
  void renewed(uint64_t directory, const std::string& name);
  // A request of the thread was read.
  void request_from(uint32_t tid);
  // The kernel forgot the directory, and all names in it before.
  void forget(uint64_t directory);

  // Ends all names of the directory. `at_once`: not by expiry.
  Ending end(uint64_t directory, bool at_once, Instant now);
  // When finish(id, false) is to be called if the expiries have not come back; never with
  // Mistake::ExpiryOnly.
  std::optional<Instant> deadline(Instant now) const;
  // The expiries have come back (`expired`: each has surely done what it should), or have not in
  // time. Epoch: advance it and call epoch_advanced(). WasOver: it was called before.
  Finish finish(uint64_t id, bool expired);
  // True: advance the epoch and call epoch_advanced().
  bool end_all() const { return names_ > 0 || !endings_.empty(); }
  // Under the same lock as the notification: what is given from here on is noted after it, what was
  // noted before is void.
  void epoch_advanced();

  // A thread that has ended settles nothing any more. With very many unsettled ones, see which
  // have.
  bool many_unsettled() const { return unsettled_.size() >= kUnsettledMany; }
  void settle_ended(const std::function<bool(uint32_t tid)>& has_ended);

  bool all_settled() const { return unsettled_.empty(); }
  uint64_t names() const { return names_; }
  // That the counts are those of what is there.
  void check() const;

 private:
  static constexpr uint64_t kNamesMax = 1 << 20;
  static constexpr size_t kExpiredMost = 1024;  // more are not worth their expiries
  static constexpr size_t kUnsettledMany = 256;
  static constexpr size_t kMovedMax = 1 << 16;
  static constexpr size_t kMovedFew = 64;  // so many need no looking through for old ones

  struct Directory {
    std::unordered_map<std::string, bool> names;  // whether it exists
    uint32_t unsettled = 0;
    Instant moved_until;  // of names that are in moved_ no more
    Instant contended_until;
  };
  using Place = std::pair<uint64_t, std::string>;  // a directory and a name in it

  bool may_have_moved(const Directory& d, const Place& place, Instant asked) const;
  void forget_old_moves(Instant now);
  bool may_be_known(uint64_t directory, const std::string& name) const;
  void unsettle(uint64_t directory, uint32_t tid);
  void add(std::vector<uint64_t>& unsettled, uint64_t directory);
  void settle(uint32_t tid);

  NameLedgerOptions options_;
  std::unordered_map<uint64_t, Directory> directories_;
  // Thread -> the directory of its last lookup, and those that renames have taken names of it to.
  std::unordered_map<uint32_t, std::vector<uint64_t>> unsettled_;
  // Whence renames have taken names, and until when what is asked there may mean them (N4).
  std::map<Place, Instant> moved_;
  size_t look_through_at_ = kMovedFew;
  // Of the expiries under way: what the kernel may use until they are over, and a rename that came
  // before them takes along.
  struct Expiring {
    uint64_t directory = 0;
    std::set<std::string> names;
  };
  std::map<uint64_t, Expiring> endings_;
  uint64_t next_ending_ = 1;
  uint64_t names_ = 0;
};

}  // namespace vremote::coherence
