// The names this node's kernel may use without asking, and how that ends before their lease does.
//
// Two notifications end a name. Expiring it (FUSE_NOTIFY_INVAL_ENTRY, EXPIRE_ONLY) costs nothing
// else, but waits for the directory's inode lock, which every create, unlink, rename, first lookup
// or readdir in it holds until we answer: two nodes that change one directory would wait for each
// other for ever. Advancing the epoch (FUSE_NOTIFY_INC_EPOCH, Linux 6.16) takes no lock, but drops
// every name of the mount at its next use, and /proc then calls open files "(deleted)".
//
// So names are expired on a helper thread, and the epoch is advanced when that takes too long, when
// a change of this node in the directory is known to be under way, or when a name is not settled:
// an expiry may come between our reply and the kernel's use of it (fuse_dentry_revalidate sets the
// new time without a lock), and would be undone. A name is settled when the thread that looked it
// up has sent another request: its lookup is over then. The epoch needs no such care: the kernel
// notes it before it asks. Where the kernel has no epoch no name is ever given.
//
// A directory from which names had to be taken is contended: for a while it is given none.
//
// Thread-safe; nothing here blocks but the helper threads' expiries.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/time.h"
#include "fuse/channel.h"
#include "net/event_loop.h"
#include "node/helper_threads.h"

namespace vremote::node {

class KernelNames {
 public:
  using Then = std::move_only_function<void()>;

  KernelNames(HelperThreads& threads, net::EventLoop& loop) : threads_(threads), loop_(loop) {}
  ~KernelNames();
  KernelNames(const KernelNames&) = delete;
  KernelNames& operator=(const KernelNames&) = delete;

  // The kernel has what is needed. `channel` outlives this object.
  void enable(const fuse::Channel* channel) { channel_ = channel; }

  // Thread `tid` of the kernel's side is about to be told, by an answer to its LOOKUP, that it may
  // keep `name` of the directory with node number `directory`. False: it may not. `exists`: whether
  // there is such a file.
  bool give(uint64_t directory, const std::string& name, bool exists, uint32_t tid, Instant now);
  // An own rename is about to move a name, and with it the kernel's right to use it. False: that
  // cannot be followed, so end_all() when it is done. `to_leased`: the lease on the directory it
  // goes to is held.
  bool move(uint64_t from, const std::string& old_name, uint64_t to, const std::string& new_name,
            bool to_leased, uint32_t tid);
  // An own create made the name anew; the kernel was told not to keep it.
  void renewed(uint64_t directory, const std::string& name);
  // A request of the thread was read.
  void request_from(uint32_t tid);

  // Ends all names of the directory. True: done already. Otherwise `then` runs when it is done, on
  // another thread. `at_once`: not by expiry.
  bool end(uint64_t directory, bool at_once, Instant now, Then then);
  void end_all();
  // The kernel forgot the directory, and all names in it before.
  void forget(uint64_t directory);

  struct Counts {
    uint64_t names = 0, expiries = 0, epochs = 0;
  };
  Counts counts() const;

  static constexpr int64_t kContendedNs = 1'000'000'000;
  static constexpr int64_t kExpiryMostNs = 10'000'000;

 private:
  struct Directory {
    std::unordered_map<std::string, bool> names;  // whether it exists
    uint32_t unsettled = 0;
    Instant contended_until;
  };
  struct Ending {
    Then then;
    net::Timer timer;
  };

  void unsettle(uint64_t directory, uint32_t tid);
  void settle(uint32_t tid);
  void advance_epoch();  // with the lock
  void expire(uint64_t id, uint64_t directory,
              const std::vector<std::pair<std::string, bool>>& names);
  void finish(uint64_t id, bool by_epoch);

  HelperThreads& threads_;
  net::EventLoop& loop_;
  std::atomic<const fuse::Channel*> channel_{nullptr};  // null: no name is given
  std::atomic<uint64_t> unsettled_count_{0};
  mutable std::mutex mutex_;
  std::unordered_map<uint64_t, Directory> directories_;
  std::unordered_map<uint32_t, uint64_t> unsettled_;  // thread -> the directory of its last lookup
  std::map<uint64_t, Ending> endings_;
  uint64_t next_ending_ = 1;
  uint64_t names_ = 0, expiries_ = 0, epochs_ = 0;
};

}  // namespace vremote::node
