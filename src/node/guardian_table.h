// What a guardian must know of its daemon, in memory that both see and that outlives either.
//
// The daemon writes, cheaply and without asking anybody: which inodes its kernel knows, which
// page-cache fills it has not answered, until when the leases of each home may be used, and that it
// is alive. The guardian reads it when the daemon does not say the last any more. A daemon can stop
// between any two stores: an inode's slot counts only while its number is set, which is written
// last and cleared first.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/fd.h"
#include "base/ids.h"
#include "base/result.h"
#include "base/time.h"

namespace vremote::node {

class GuardianTable {
 public:
  static constexpr size_t kHomesMax = 256;
  static constexpr size_t kInodesMax = size_t{1} << 22;  // memory is used for those that are there
  static constexpr size_t kFillsMax = 8192;
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
  // A fill that holds locked folios until it is answered. Any thread.
  void fill_begins(uint64_t unique, uint64_t node, uint64_t offset, uint32_t length);
  void fill_ended(uint64_t unique);

  // Who answers the kernel.
  bool guardian_in_charge() const;
  void set_guardian_in_charge(bool on);

  // ---- the guardian's ----
  struct Inode {
    uint64_t node = 0;
    uint32_t home = 0;
    FileId file;
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
  bool incomplete() const;  // some inode had no room

 private:
  struct Memory;
  GuardianTable(Memory* memory, Fd fd) : memory_(memory), fd_(std::move(fd)) {}

  Memory* memory_;
  Fd fd_;
  std::vector<uint32_t> free_;  // the daemon's alone
};

}  // namespace vremote::node
