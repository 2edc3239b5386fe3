// The names this node's kernel may use without asking: drives coherence::NameLedger, which decides,
// with real notifications. Where the kernel has no epoch no name is ever given.
//
// Thread-safe; nothing here blocks but the helper threads' expiries.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "base/time.h"
#include "coherence/name_ledger.h"
#include "fuse/channel.h"
#include "net/event_loop.h"
#include "node/base/helper_threads.h"
#include "node/guardian/guardian_table.h"

namespace vremote::node {

class KernelNames {
 public:
  using Then = std::move_only_function<void()>;

  // `guardian`: is told what threads wait for; may be none.
  KernelNames(HelperThreads& threads, net::EventLoop& loop, GuardianTable* guardian,
              coherence::Mistakes mistakes)
      : threads_(threads), loop_(loop), guardian_(guardian), ledger_({.mistakes = mistakes}) {}
  ~KernelNames();
  KernelNames(const KernelNames&) = delete;
  KernelNames& operator=(const KernelNames&) = delete;

  // The kernel has what is needed. `channel` outlives this object.
  void enable(const fuse::Channel* channel) { channel_ = channel; }

  // As in NameLedger.
  bool give(uint64_t directory, const std::string& name, bool exists,
            const coherence::NameLedger::Asked& asked, Instant now);
  bool move(uint64_t from, const std::string& old_name, uint64_t to, const std::string& new_name,
            bool to_leased, uint32_t tid);
  void moved(uint64_t from, const std::string& old_name, bool done, Instant now);
  void renewed(uint64_t directory, const std::string& name);
  void request_from(uint32_t tid);
  void forget(uint64_t directory);

  // Ends all names of the directory. True: done already. Otherwise `then` runs when it is done, on
  // another thread. `at_once`: not by expiry.
  bool end(uint64_t directory, bool at_once, Instant now, Then then);
  void end_all();

  struct Counts {
    uint64_t names = 0, expiries = 0, epochs = 0;
  };
  Counts counts() const;

 private:
  struct Ending {
    Then then;
    net::Timer timer;
  };

  void note_settled();   // with the lock
  void advance_epoch();  // with the lock
  void expire(uint64_t id, uint64_t directory,
              const std::vector<coherence::NameLedger::Name>& names);
  void finish(uint64_t id, bool expired);

  HelperThreads& threads_;
  net::EventLoop& loop_;
  GuardianTable* const guardian_;
  std::atomic<const fuse::Channel*> channel_{nullptr};  // null: no name is given
  std::atomic<bool> all_settled_{true};                 // most requests need not take the lock
  mutable std::mutex mutex_;
  coherence::NameLedger ledger_;
  std::map<uint64_t, Ending> endings_;
  uint64_t expiries_ = 0, epochs_ = 0;
};

}  // namespace vremote::node
