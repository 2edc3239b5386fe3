// A machine of a world with faults: a node with its own clock, its side of the session with the
// origin, its processes. It may be cut off, stopped, lose its power; its daemon alone may be
// killed.
//
// What decides is the daemon's: Bond, Agent, is_made_again(). What is modelled is what src/net
// gives to those: on each lane messages arrive in order and once, as late as you like, until the
// session ends at either side; then an unknown rest of them never arrives.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "coherence/bond.h"
#include "sim/home_limits.h"
#include "sim/node.h"
#include "sim/process.h"
#include "sim/wire.h"

namespace vremote::sim {

class Origin;

// What the parts of a world with faults have in common.
struct FaultSetting {
  Scheduler& scheduler;
  History& history;
  // For what these worlds have learnt since: a world in which none of it happens is the one that
  // its seed always was.
  Prng dice;
  Prng power_dice;
  Prng soft_dice;
  Breaks breaks;
  coherence::AgentOptions agent;
  KernelOptions kernel;
  coherence::HomeLimits limits = {};
  std::vector<FilePlan> files;
  int64_t term_ns = 3'000'000'000;  // of leases; real ones are longer, and so are real purges
  uint32_t lanes = 1;
  bool power = false;  // the origin may lose its own
  bool over = false;   // the world has been seen to its end: nobody pings any more

  uint32_t lane_of(FileId file) const { return static_cast<uint32_t>(file.inode % lanes); }
  // Looked at after whatever may have changed a lease.
  std::function<void(FileId file)> changed;
  // The origin is about to answer a truncation of this machine.
  std::function<void(uint32_t machine)> truncation_done = {};  // its node will be told
  std::function<void()> truncation_comes = {};                 // to the origin
  std::function<void()> sync_done = {};                        // at the origin
  // At the origin, of a machine that had one in the same life; it will be told.
  std::function<void(uint32_t machine)> session_begins_again = {};
  uint64_t messages = 0, reclaims = 0;
};

class Machine {
 public:
  // From a start of its daemon to its end. Names the machine in histories and traces: n3 is machine
  // 3 in its first life, n13 in its second.
  struct Life {
    int label = 0;
    uint64_t incarnation = 0;
    std::unique_ptr<Node> node;
    coherence::Bond bond;
    uint32_t epoch = 1;
    uint32_t session = 0;  // 0: none
    std::vector<bool> attached;
    // When its last Hello was sent, lane by lane: over another connection than those before, of
    // which nothing is read any more.
    std::vector<Instant> greeted;
    std::vector<Instant> renewed;                 // by the machine's clock, lane by lane
    Instant leases_until;                         // the same
    std::vector<coherence::ToHome> before_first;  // until the first session stands
    bool soft = false;                            // its mount
    uint64_t stops = 0;
    uint64_t connected_at = 0;  // by the history
    std::vector<std::unique_ptr<Process>> processes;
  };

  Machine(FaultSetting& setting, Origin& origin, uint32_t number, Clock clock);

  // ---- what happens to it ----
  void begin_life(const Habits& habits, uint32_t processes);
  void stop();
  void go_on();
  void lose_power();
  void kill_daemon();
  bool lives() const { return life_ != nullptr && !life_->node->gate().dead(); }
  bool stopped() const { return lives() && life_->node->gate().stopped(); }
  enum class Way : uint8_t { Up, Down, Both };
  void cut_off(Way way);
  void reach_again(Way way);
  void break_connection(uint32_t lane, int64_t lasts_ns);

  // ---- what arrives ----
  Wire& down(uint32_t lane) { return *down_[lane]; }
  void welcome(uint64_t incarnation, uint32_t lane, uint32_t epoch, uint32_t session,
               uint64_t home_incarnation, bool may_reclaim, uint64_t disk_life, Instant sent);
  void answered(uint64_t incarnation, uint32_t lane, uint32_t session, Instant sent);
  void session_unknown(uint64_t incarnation, uint32_t session);
  void message(uint64_t incarnation, uint32_t session, FileId file, coherence::ToAgent message);

  uint32_t number() const { return number_; }
  const Life* life() const { return life_; }
  Life* life() { return life_; }
  const std::vector<std::unique_ptr<Life>>& lives_so_far() const { return lives_; }
  std::string dump() const;

 private:
  void tick(Life& life);
  void greet(Life& life, uint32_t lane);
  void connected(Life& life, uint64_t home_incarnation, bool may_reclaim, uint64_t disk_life);
  void renew(Life& life);
  void over(Life& life, const char* why);
  void send(Life& life, coherence::ToHome message);
  void guardian_after(Life& life, int64_t world_ns);
  Co<> hits_meanwhile(Life& life);
  template <typename Event>
  void hears(uint64_t incarnation, Event event);

  FaultSetting& setting_;
  Origin& origin_;
  uint32_t number_;
  Clock clock_;
  std::vector<std::unique_ptr<Wire>> up_, down_;
  // The dead are kept: what still runs of them is not heard of.
  std::vector<std::unique_ptr<Life>> lives_;
  Life* life_ = nullptr;
};

}  // namespace vremote::sim
