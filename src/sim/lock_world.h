// One world of locks: a home with the real LockTable, processes on a few nodes that lock, unlock,
// are interrupted and end, all drawn from one seed.
//
// What must hold: no two processes hold locks that exclude each other, from the reply that gave a
// lock until its owner gave it up (or its node died); when nothing happens any more, nobody waits
// (no wake-up is lost, and no circle of waiting owners is left: programs let go of all when they
// are told EDEADLK); in the end the table is empty.
#pragma once

#include <array>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "coherence/lock_table.h"
#include "sim/any_world.h"
#include "sim/link.h"
#include "sim/name_kernel.h"

namespace vremote::sim {

class LockWorld final : public AnyWorld {
 public:
  LockWorld(uint64_t seed, const Breaks& breaks);
  ~LockWorld() override;

  Scheduler& scheduler() override { return *scheduler_; }
  Outcome run() override;
  const std::string& plan() const override { return plan_; }

 private:
  static constexpr uint64_t kBytes = 8;
  enum class Holds : uint8_t { Nothing, Read, Write };
  using Held = std::array<std::array<Holds, kBytes>, 2>;  // by kind and byte
  struct Process {
    uint32_t node = 0;
    uint64_t owner = 0;
    std::vector<Held> held;  // by file
    uint64_t waits = 0;      // the call it waits for
    size_t waits_file = 0;
    std::string doing;
    bool stopped = false;  // its node has died
    bool done = false;
  };

  void draw();
  Co<> live(size_t process);
  Co<> lock(size_t process);
  Co<> unlock(size_t process, size_t file, coherence::LockKind kind, coherence::LockRange range);
  Co<> end(size_t process);
  Co<> interrupt(size_t process, uint64_t call);
  Co<> kill_node(uint32_t node);
  Co<int> call(size_t process, coherence::LockCall call, uint64_t id);
  void at_home(NodeId node, uint64_t id, const coherence::LockCall& call);
  void reply(coherence::LockTable::Ticket ticket, int error);
  void holds(size_t process, size_t file, coherence::LockKind kind, coherence::LockRange range,
             Holds what);
  bool settle();
  std::string waiting() const;

  std::unique_ptr<Scheduler> scheduler_;
  Breaks breaks_;
  std::string plan_;
  uint32_t node_count_ = 2, processes_per_node_ = 1, operations_ = 10, files_ = 1;
  bool flocks_ = false, ranges_ = true, signals_ = false, deaths_ = false;
  coherence::LockTable table_;
  std::vector<Process> processes_;
  std::vector<std::unique_ptr<Link>> to_home_, from_home_;
  std::vector<bool> gone_;  // nodes the home has been told of
  std::map<uint64_t, ArrivalOf<int>> calls_;
  uint64_t next_call_ = 1;
  WorldCounts counts_;
};

}  // namespace vremote::sim
