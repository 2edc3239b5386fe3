// One world of locks: a home with the real LockTable, processes on a few nodes that lock, unlock,
// are interrupted and end, all drawn from one seed.
//
// What must hold: no two processes hold locks that exclude each other, from the reply that gave a
// lock until its owner gave it up (or its node died); when nothing happens any more, nobody waits
// (no wake-up is lost, and no circle of waiting owners is left: programs let go of all when they
// are told EDEADLK); in the end the table is empty.
//
// In some worlds the home's daemon is killed and started again, and sessions end
// (lock_restarts.cc). What decides then is the daemon's: locks_to_reclaim(), Members, GraceGate,
// is_claim(). A node whose session the home has ended, or that comes back after the grace, holds
// nothing any more: its leases were over before. Who comes back in time keeps what it had.
#pragma once

#include <array>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "coherence/grace_gate.h"
#include "coherence/lock_table.h"
#include "coherence/members.h"
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
  void at_home(NodeId session, uint64_t id, const coherence::LockCall& call);

  // ---- sessions, and restarts of the home (lock_restarts.cc) ----
  struct Node {
    uint64_t session = 0;
    bool connected = true, dead = false;
    uint64_t home_life = 0;     // of the session that it last heard of
    uint64_t epoch = 1;         // of its sessions; another when one that it has heard of is over
    bool welcomed = true;       // it has heard of the last one
    uint64_t fences = 0;        // how often its leases were over
    coherence::LockTable held;  // as AgentService notes it
    std::map<uint64_t, coherence::LockCall> calls;  // not answered, claims too
    bool bringing_back = false;
    uint64_t sent = 0, arrived = 0, cut = ~uint64_t{0};  // replies of the home in this session
  };
  void draw_restarts();
  void restart_home(int64_t within_ns, int64_t lasts_at_most_ns);
  void submit(uint32_t node, uint64_t id, const coherence::LockCall& call);
  void send(uint32_t node, uint64_t id, const coherence::LockCall& call);
  void arrives(uint64_t session, coherence::ToHome message);
  void tell(uint64_t session, Scheduler::Function what);
  void answered(uint32_t node, uint64_t id, int error);
  void kill_home();
  void start_home();
  void connect_later(uint32_t node, int64_t at_most_ns);
  void begin_session(uint32_t node);
  void connected(uint32_t node, uint64_t session, bool may_reclaim);
  void bring_back(uint32_t node);
  bool has_session(uint32_t node) const;
  void end_session(uint32_t node);
  void holds_nothing(uint32_t node);
  void end_grace_if_over();
  coherence::Grace::Member member(uint32_t node) const;
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
  Prng more_;  // for restarts: without them a world is what its seed always drew
  bool restarts_ = false, restarts_soon_ = false, home_lives_ = true;
  uint64_t home_life_ = 0, next_session_ = 0;
  std::vector<Node> nodes_;
  std::map<uint64_t, uint32_t> node_of_;  // sessions that the home has
  coherence::Members members_;
  coherence::GraceGate gate_;
  std::map<uint64_t, ArrivalOf<int>> calls_;
  std::map<uint64_t, uint64_t> answered_at_;  // Node::fences, of lock calls that go on
  uint64_t next_call_ = 1;
  WorldCounts counts_;
};

}  // namespace vremote::sim
