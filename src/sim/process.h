// Programs: what the processes of a world do, drawn from its seed, and what they report to the
// history.
#pragma once

#include <array>
#include <cerrno>
#include <optional>
#include <string>
#include <vector>

#include "sim/node.h"

namespace vremote::sim {

enum class Act : uint8_t {
  ReadCached,
  ReadDirect,
  Write,
  Append,
  Load,
  Store,
  Truncate,
  Fsync,
  Stat,
  CloseOne,
  ReadAhead,
  Reopen,
  Splice,
  Names,  // makes a name of its own and removes it (worlds with faults)
  kCount,
};

struct FilePlan {
  bool append_only = false;
  uint64_t pages = 1;      // the file never grows beyond them
  uint64_t hot_pages = 1;  // where most accesses go
};

// What a world's processes like to do.
struct Habits {
  std::array<uint32_t, static_cast<size_t>(Act::kCount)> weights{};
  uint32_t operations = 20;  // of each process
  uint64_t read_cells_max = 12;
  uint64_t write_cells_max = 12;
  bool signals = false;
  // Worlds with faults: now and then nothing is done for so long; sessions may end, and calls fail.
  int64_t pause_ns = 0;
  bool faults = false;
  bool syncs_names = false;  // its directory, after it has made one
  int64_t soft_ns = 0;       // of the mount: calls that wait for so long fail; 0: none does
};

// The one directory of worlds with faults.
FileId directory_id();

class Process {
 public:
  Process(Scheduler& scheduler, History& history, Node& node, int node_number, int number,
          const std::vector<FilePlan>& files, const Habits& habits,
          std::function<std::span<const std::byte>(uint32_t file)> disk);

  // The whole life: operations, then everything closed.
  Co<> run();
  // Reads all of a file both ways: at the end of a world every node must show what was written.
  Co<> audit();
  bool done() const { return done_; }
  std::string waits_for() const;
  // Its machine or its mount is gone: what it was doing may have happened or not.
  void die();

 private:
  using Kind = ModelKernel::Handle::Kind;
  struct Slots {
    ModelKernel::Handle* reading = nullptr;  // O_RDONLY
    ModelKernel::Handle* writing = nullptr;  // O_WRONLY or O_RDWR
    ModelKernel::Handle* mapped = nullptr;   // MAP_SHARED, of a reading or a read-write handle
  };

  Co<> act(Act what, uint32_t file);
  // False: EIO, of a soft mount.
  Co<bool> open_for_reading(uint32_t file);
  Co<bool> open_for_writing(uint32_t file, bool read_write);
  Co<bool> map(uint32_t file, bool writable);
  Co<bool> read_cached(uint32_t file, uint64_t offset, uint64_t length, bool splice = false);
  Co<bool> read_direct(uint32_t file, uint64_t offset, uint64_t length);
  Co<bool> stat(uint32_t file);
  template <class Look>
  Co<> until_seen(Look look);
  // What has failed so was not done, and never is.
  bool fails_softly(int32_t error) const { return error == EIO && habits_.soft_ns > 0; }
  Co<> write(uint32_t file);
  Co<> append(uint32_t file);
  Co<> append_record(uint32_t file);
  Co<> truncate(uint32_t file);
  Co<> close_one(uint32_t file, uint64_t which);
  Co<> sync(uint32_t file);
  Co<> make_and_remove();
  void report_read(uint32_t file, History::Interval when, uint64_t offset, uint64_t length,
                   std::span<const std::byte> bytes);
  uint64_t some_page(uint32_t file);
  void pick_cells(uint32_t file, uint64_t cells_max, uint64_t& offset, uint64_t& length);
  bool signal() { return habits_.signals && scheduler_.random().chance(10); }

  Scheduler& scheduler_;
  History& history_;
  Node& node_;
  int node_number_, number_;
  const std::vector<FilePlan>& files_;
  Habits habits_;
  std::function<std::span<const std::byte>(uint32_t file)> disk_;
  std::vector<Slots> slots_;
  bool done_ = false, dead_ = false;
  std::string doing_;
  // A call that changes something and has not returned.
  struct UnderWay {
    enum class Kind : uint8_t { Write, Append, Truncate } kind;
    uint32_t file;
    uint64_t begin, offset, length, number;
  };
  std::optional<UnderWay> under_way_;
  uint64_t names_made_ = 0;
};

}  // namespace vremote::sim
