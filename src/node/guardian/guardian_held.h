// The kernel's requests while no daemon answers (rules G1 and G2 of guardian.h): what is answered,
// what is held, and who waits no more.
#pragma once

#include <sys/types.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <optional>
#include <span>
#include <vector>

#include "fuse/channel.h"
#include "fuse/request.h"
#include "node/guardian/guardian_corpse.h"
#include "node/guardian/guardian_ledger.h"
#include "node/guardian/guardian_recovery.h"
#include "node/guardian/guardian_table.h"

namespace vremote::node {

// One thread at a time.
class GuardianHeld {
 public:
  using Fill = std::function<void(uint64_t node, uint64_t offset, uint64_t length)>;
  // soft_ms: how long a request is held; 0: until somebody answers it.
  GuardianHeld(const fuse::Channel& channel, const GuardianTable& table, GuardianRecovery& recovery,
               int64_t soft_ms, Fill fill)
      : channel_(channel),
        table_(table),
        recovery_(recovery),
        soft_ms_(soft_ms),
        fill_(std::move(fill)) {}

  // `give_back`: the daemon may wake up and take it all.
  void take(std::span<const std::byte> request, bool give_back);
  // Ends what killed processes wait for, and what has waited for long enough. To be called every
  // now and then.
  void look();
  // Everything, in order; then nothing is held.
  void give_back(const std::function<bool(std::span<const std::byte>)>& send);
  void drop() { held_.clear(), interrupts_.clear(), bytes_ = 0; }
  // From now on look() frees the dead daemon's process, which hangs (guardian_corpse.h); 0: it has
  // gone. Any thread.
  void free_corpse(pid_t daemon) { corpse_pid_ = daemon; }
  size_t refused_for_corpse() const { return refused_for_corpse_; }
  // While `on`, look() ends truncations: while one is not answered the kernel holds dirty mapped
  // pages of its file back (rule K8), and no purge of them ends. Any thread.
  void end_truncations(bool on = true) { end_truncations_ = on; }
  // The daemon is dead: what it did not get back of what was answered, and all that will be, goes
  // into the ledger, which outlives this.
  void write_into(GuardianLedger* ledger);
  // Of the requests that are held: those that the dead daemon cannot have seen, without the resend
  // bit.
  std::vector<uint64_t> unseen() const;
  // The inodes that were written back to.
  std::vector<uint64_t> written_back() const;
  size_t count() const { return held_.size(); }

 private:
  // One that holds the locks of directories in the kernel until it is answered.
  struct NamesCall {
    std::array<uint64_t, 2> directories{};
    bool of_others = false;    // a directory that it removes or moves is locked, too
    bool once = false;         // doing it twice is not as good as once
    bool looks_again = false;  // the kernel asks once more when it is told ESTALE
    bool holds(uint64_t directory) const {
      return directories[0] == directory || directories[1] == directory;
    }
  };
  struct Held {
    uint64_t unique = 0;  // as it must be answered
    uint64_t plain = 0;   // without the resend bit
    uint32_t pid = 0;
    bool answered = false;
    bool unseen = false;  // by the dead daemon
    bool lock = false;
    bool truncates = false;
    std::optional<GuardianTable::Fill> fill = {};
    std::optional<NamesCall> names = {};
    Instant since;                 // GuardianTable::clock()
    std::vector<std::byte> bytes;  // empty: the kernel will deliver it again
  };
  bool answer(const fuse::Request& request);
  static std::optional<NamesCall> names_call(const fuse::Request& request);
  void look_at_interrupts();
  void look_at_time();
  void look_at_corpse();
  void free_directories(Instant now);
  void look_at_truncations();
  void hold(const fuse::Request& request, std::span<const std::byte> bytes, bool answered,
            bool give_back);

  const fuse::Channel& channel_;
  const GuardianTable& table_;
  GuardianRecovery& recovery_;
  const int64_t soft_ms_;
  const Fill fill_;
  GuardianLedger* ledger_ = nullptr;
  std::atomic<bool> end_truncations_{false};
  std::atomic<pid_t> corpse_pid_{0};
  std::optional<GuardianCorpse> corpse_;
  std::atomic<size_t> refused_for_corpse_{0};
  std::list<Held> held_;
  std::vector<uint64_t> interrupts_;  // of requests held, plain
  size_t bytes_ = 0;
};

}  // namespace vremote::node
