// What a guardian must know of its daemon, in memory that both see and that outlives either.
//
// The daemon writes, cheaply and without asking anybody: which inodes its kernel knows, which
// page-cache fills it has not answered, until when the leases of each home may be used, and that it
// is alive. The guardian reads it when the daemon does not say the last any more.
//
// What follows is for the next daemon, which goes on with the mount (salvage.h): how often each
// inode was looked up and is open, whose written bytes are not at their home, through which handles
// locks are held, which exports the mount shows, what was agreed on with the kernel. The guardian
// goes on with it in a dead daemon's place (guardian_ledger.h).
//
// A daemon can stop between any two stores. A slot counts only while its number is set, which is
// written last and cleared first. What is counted is counted before the kernel is told, and counted
// off after: a number may be too high then, which costs some memory, and never too low.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/fd.h"
#include "base/ids.h"
#include "base/result.h"
#include "base/time.h"
#include "fuse/init.h"
#include "node/guardian/guardian_locks.h"

namespace vremote::node {

class GuardianTable {
 public:
  static constexpr size_t kHomesMax = 256;
  static constexpr size_t kInodesMax = size_t{1} << 22;  // memory is used for those that are there
  static constexpr size_t kFillsMax = 8192;
  static constexpr size_t kTruncationsMax = 1024;
  static constexpr size_t kPurgesMax = 1024;
  static constexpr size_t kLocksMax = GuardianLocks::kMax;
  static constexpr size_t kExportsMax = 512;
  static constexpr uint32_t kNoSlot = ~0u;
  static constexpr int64_t kForEver = INT64_MAX;

  static Result<GuardianTable> make();
  // That of the daemon before, which this process has become. Its layout is part of the handover's
  // format (handover.h).
  static Result<GuardianTable> take_over(Fd memory);
  int descriptor() const { return fd_.get(); }
  GuardianTable(GuardianTable&& other) noexcept;
  GuardianTable& operator=(GuardianTable&&) = delete;
  ~GuardianTable();

  // CLOCK_BOOTTIME: it goes on while the machine sleeps, as other nodes do.
  static Instant clock();

  // ---- the daemon's ----
  // The home's number; kHomesMax: there are too many, and its inodes count as those of no home,
  // which are purged first of all.
  uint32_t add_home(std::string_view name);
  // What its leases allow may be used until then. kForEver: without an end (this machine's own
  // home: while the daemon lives). A home that was never renewed has given nothing yet.
  void renew(uint32_t home, int64_t until_ns);
  void alive(Instant now);
  // After take_over(): the slots in use, by node; those that are not asked for must be removed. No
  // fill is known any more.
  std::unordered_map<uint64_t, uint32_t> begin_anew();
  // kNoSlot: there is no room. The guardian then ends the connection instead of purging.
  uint32_t add_inode(uint64_t node, uint32_t home, FileId file);
  void remove_inode(uint32_t slot);
  // Of one inode; nothing for kNoSlot.
  void set_lookups(uint32_t slot, uint64_t lookups);
  void opened(uint32_t slot, bool reads, bool may_map);
  void closed(uint32_t slot, bool reads, bool may_map);
  struct Opens {
    uint32_t all = 0, reading = 0, mapping = 0;
  };
  void set_opens(uint32_t slot, Opens opens);
  // Bytes that programs have written to it are not at its home. Under whatever keeps them.
  void set_owes(uint32_t slot, bool owes);
  // A fill that holds locked folios until it is answered. Any thread.
  void fill_begins(uint64_t unique, uint64_t node, uint64_t offset, uint32_t length);
  void fill_ended(uint64_t unique);
  // A SETATTR with a size: until it is answered the kernel holds dirty mapped pages back (K8). Any
  // thread.
  void truncation_begins(uint64_t unique);
  // About to be answered. True: the guardian has done so (EIO).
  bool truncation_ended(uint64_t unique);

  // A thread of the daemon is about to wait in the kernel for pages of an inode; the number is for
  // purge_ended(). length 0: to the end. Offset kNames: for the lock of the directory. Any thread.
  static constexpr uint64_t kNames = UINT64_MAX;
  size_t purge_begins(uint64_t node, uint64_t offset, uint64_t length);
  void purge_ended(size_t purge);

  // Through which handles locks are held. Of a table that another has written: behind learn().
  GuardianLocks& locks() { return *locks_; }
  struct Export {
    std::string name;
    uint32_t home = 0;
    FileId root;
    bool read_only = false;
    bool operator==(const Export&) const = default;
  };
  // All of one home.
  void set_exports(uint32_t home, const std::vector<Export>& exports);
  // What the next daemon must have in common with this one, and the how manieth of the mount it is.
  void identify(uint64_t identity, uint32_t generation);
  // The last thing: the kernel and this daemon have agreed, so there is something to go on with.
  void set_capabilities(const fuse::Capabilities& capabilities);
  // Daemons that died soon after they had gone on with the mount, one after the other.
  void set_early_deaths(uint32_t deaths);

  // Who answers the kernel: the daemon (0), or the guardian, for the time of this number. The
  // guardian takes charge; the daemon ends that when it has taken back all that was answered or
  // held meanwhile, unless the guardian has taken charge anew.
  uint32_t charge() const;
  bool guardian_in_charge() const { return charge() != 0; }
  uint32_t take_charge();
  bool end_charge(uint32_t charge);

  // ---- the guardian's ----
  struct Inode {
    uint64_t node = 0;
    uint32_t home = 0;
    FileId file;
    uint64_t lookups = 0;
    Opens opens = {};
    bool owes = false;
  };
  struct Fill {
    uint64_t node = 0, offset = 0, length = 0;
  };
  Instant last_alive() const;
  size_t homes() const;
  std::string home_name(uint32_t home) const;
  int64_t leases_until(uint32_t home) const;
  std::vector<Inode> inodes() const;
  std::optional<Inode> find(uint64_t node) const;  // slow
  std::vector<Fill> fills() const;
  // Those that the daemon has not answered. From now on it does not: the caller must.
  std::vector<uint64_t> take_truncations();
  // In which a dead daemon's threads may hang; length 0 as above.
  std::vector<Fill> purges() const;
  bool incomplete() const;  // some inode had no room
  // By node, as begin_anew().
  std::unordered_map<uint64_t, uint32_t> slots() const;
  uint64_t lookups(uint32_t slot) const;

  // ---- the next daemon's ----
  uint64_t identity() const;
  uint32_t generation() const;
  uint32_t early_deaths() const;
  std::optional<fuse::Capabilities> capabilities() const;
  const GuardianLocks& locks() const { return *locks_; }
  // Nothing: there were more than could be noted.
  std::optional<std::vector<Export>> exports() const;

 private:
  struct Memory;
  GuardianTable(Memory* memory, Fd fd);

  Memory* memory_;
  Fd fd_;
  std::vector<uint32_t> free_;  // the daemon's alone
  uint32_t last_charge_ = 0;    // the guardian's
  std::mutex mutex_;            // of the exports; rare
  std::unique_ptr<GuardianLocks> locks_;
};

}  // namespace vremote::node
