// The driver around the real Home, with a disk in memory: exactly the contract of rule I4.
//
// One queue per file; grants, recalls, flushes, fetches and ready operations pass through it one
// after the other, each at its own time. The operations are truncations, which take what
// operation_needs.h says and then change the disk, creations and removals of names in one directory
// (worlds with faults), and those of nobody after a change from outside, which change nothing: the
// model's disk has no other users, so what such an operation must not do is disturb.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <set>

#include "coherence/call_memory.h"
#include "coherence/home.h"
#include "coherence/operation_needs.h"
#include "coherence/unsynced_files.h"
#include "sim/home_limits.h"
#include "sim/mistakes.h"
#include "sim/platter.h"
#include "sim/scheduler.h"

namespace vremote::sim {

class HomeDriver {
 public:
  using Send = std::function<void(NodeId node, FileId file, coherence::ToAgent message)>;

  // Calls that must not be done twice, by the asking node's incarnation and its number. What was
  // noted of them outlives the daemon, and is forgotten as soon as it may be.
  struct CallLog {
    std::map<std::pair<uint64_t, uint64_t>, coherence::CallDone> done;  // all: dice fall on them
    std::vector<coherence::CallNote> notes;  // those that are not forgotten; how they ended: `done`
  };
  struct Calls {
    CallLog* log = nullptr;
    std::function<uint64_t(NodeId)> incarnation;
    std::function<std::set<uint64_t>()> askers;
  };
  HomeDriver(Scheduler& scheduler, const Breaks& breaks, Send send,
             const coherence::HomeLimits& limits = {})
      : HomeDriver(scheduler, breaks, std::move(send), Calls{}, limits) {}
  HomeDriver(Scheduler& scheduler, const Breaks& breaks, Send send, Calls calls,
             const coherence::HomeLimits& limits = {});

  void create(FileId file, std::vector<std::byte> content);
  void receive(NodeId node, coherence::ToHome message);
  void offer(NodeId node, FileId file, coherence::Resource resource, coherence::LeaseMode mode);

  // Somebody may have changed the file on the disk without asking.
  void changed_outside(FileId file, const coherence::OutsideChange& change);

  // ---- worlds with faults (origin.h) ----
  // What outlives the daemon: the disk, and the notes it made before it did something.
  struct Durable {
    struct Disk {
      std::vector<std::byte> bytes;
      Timestamp mtime;
      Platter platter;
    };
    std::map<FileId, Disk> files;
    std::set<std::string> names;  // of the one directory
    // What they were before the changes that were not synced yet, the oldest first.
    std::vector<std::set<std::string>> earlier_names;
    void lose_power(Prng& random);
  };
  void node_gone(NodeId node);
  void opened(NodeId node, FileId file);
  bool reclaimed(NodeId node, FileId file, const std::vector<PageRange>& pages);
  // The daemon is killed: nothing more is done or said.
  Durable killed();
  void restored(Durable durable);

  coherence::Home& home() { return home_; }
  const std::vector<std::byte>& disk(FileId file) { return files_[file].disk; }
  const std::vector<std::byte>& synced_disk(FileId file) { return files_[file].platter.for_sure(); }
  // As sync(2): what a daemon begins with that does not know what was written before it.
  void sync_everything();
  std::string dump() const;
  bool idle() const;

 private:
  struct Truncation {
    NodeId node;
    uint64_t call = 0;
    uint64_t heard_below = 0;
    FileId file;
    uint64_t size = 0;
    uint64_t size_before = 0;
    std::optional<std::string> name = {};  // made or removed, instead
    bool removes = false;
    bool abandoned = false;  // its node's session is over
    bool of_nobody = false;  // after a change from outside: only takes its needs
    std::vector<coherence::OperationNeed>
        needs;  // what the daemon takes (coherence/operation_needs.h)
    size_t asked = 0;
  };
  struct File {
    std::vector<std::byte> disk;
    Timestamp mtime;
    Platter platter;
    std::deque<coherence::HomeAction> queue;
    bool busy = false;
    bool pinned = false;
  };

  void take(coherence::HomeActions& actions);
  void pump(FileId file);
  void perform(FileId id, coherence::HomeAction& action);
  void fill_data(File& file, PageRange range, uint64_t& offset, Bytes& data) const;
  void operation_ready(const coherence::OperationReady& ready);
  void end(coherence::OperationId id, const Truncation& t, int32_t error = 0);
  std::optional<int32_t> done_before(const Truncation& t);
  void note_done(const Truncation& t, int32_t error);
  int32_t change_names(const Truncation& t);
  void write_attributes(FileId id, File& file, const coherence::DirtyAttributes& attributes);
  void changed(FileId id, File& file, uint64_t first_byte, uint64_t end_byte);
  void sync(NodeId node, const coherence::Call& call);
  void sync_now(FileId id);
  Attributes stat(FileId id, const File& file) const;

  Scheduler& scheduler_;
  Breaks breaks_;
  Send send_;
  coherence::Home home_;
  std::map<FileId, File> files_;
  std::map<coherence::OperationId, Truncation> truncations_;
  std::set<std::string> names_;
  std::vector<std::set<std::string>> earlier_names_;
  coherence::UnsyncedFiles unsynced_;
  Calls calls_;
  bool dead_ = false;
  coherence::OperationId next_operation_ = 1;
};

// For traces.
std::string describe(const coherence::ToHome& message);
std::string describe(const coherence::ToAgent& message);

}  // namespace vremote::sim
