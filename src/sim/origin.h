// The origin of a world with faults: its side of the sessions, and the home. Its daemon may be
// stopped, or killed and started again.
//
// What decides is the daemon's: Home, Patience, Grace in Members, GraceGate, answer_again(),
// notes_that_stay(). As in src/net, a session lasts until the node comes as another or begins
// another, until it is fenced, or with the daemon; what arrives of one that is over is dropped.
// What outlives the daemon: the disk, which nodes had a session, and what was noted of calls.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "coherence/grace_gate.h"
#include "coherence/members.h"
#include "coherence/patience.h"
#include "sim/home_driver.h"
#include "sim/machine.h"

namespace vremote::sim {

class Origin {
 public:
  Origin(FaultSetting& setting, Clock clock);

  void create(FileId file, std::vector<std::byte> content);
  void meets(std::vector<std::unique_ptr<Machine>>& machines);

  // ---- what happens to it ----
  void stop();
  void go_on();
  void kill();
  // With its daemon; what was not synced may be lost.
  void lose_power();
  // Soon after it has been given so many messages more (`given_up`: acks and sizes), or when that
  // is due.
  void kill_after(uint64_t messages, bool given_up, bool with_power = false) {
    kill_in_ = messages;
    kill_by_given_up_ = given_up;
    kill_with_power_ = with_power;
  }
  void kill_if_due() {
    if (kill_in_ > 0 || dying_) die();
  }
  void start_again();
  // Its node's session must end, as if it had broken the protocol.
  void give_up(uint32_t machine);
  bool lives() const { return !daemon_->gate.dead(); }
  bool runs() const { return daemon_->gate.runs(); }

  // ---- what arrives ----
  void hello(uint32_t machine, int label, uint64_t incarnation, uint32_t epoch, uint32_t lane,
             Instant sent, uint32_t known);
  void ping(uint32_t machine, uint64_t incarnation, uint32_t session, uint32_t lane, Instant sent);
  void message(uint32_t machine, uint64_t incarnation, uint32_t session, uint32_t lane,
               coherence::ToHome message);

  std::span<const std::byte> disk(FileId file) {
    if (!lives()) return durable_.files[file].bytes;
    return daemon_->driver.disk(file);
  }
  // What no loss of power takes.
  std::span<const std::byte> synced_disk(FileId file) {
    if (!lives()) return durable_.files[file].platter.for_sure();
    return daemon_->driver.synced_disk(file);
  }
  HomeDriver& driver() { return daemon_->driver; }
  // The session that this incarnation of a node has here.
  std::optional<NodeId> session_of(uint64_t incarnation) const;
  // It had one with a daemon that is no more, and nothing is given to others before it is back.
  bool waits_for(uint64_t incarnation) const;
  // Sessions of nodes that are no more are over now.
  void forget_the_dead(const std::function<bool(uint64_t incarnation)>& alive);
  uint64_t fences() const { return fences_; }
  uint64_t restarts() const { return restarts_; }
  uint64_t power_losses() const { return disk_life_ - 1; }
  std::string dump() const { return daemon_->driver.dump(); }

 private:
  struct Session {
    uint32_t id = 0;
    uint32_t machine = 0;
    int label = 0;
    uint64_t incarnation = 0;
    uint32_t epoch = 0;
    std::vector<Instant> heard;  // by lane
    bool silenced = false;       // its connections are gone, and it gets no others
  };
  struct Daemon {
    explicit Daemon(Origin& origin);
    uint64_t incarnation;
    Gate gate;
    coherence::Members members;
    HomeDriver driver;
    coherence::Patience patience;
    coherence::GraceGate grace;
    std::vector<Session> sessions;
  };

  void die() { kill_with_power_ ? lose_power() : kill(); }
  void tick(Daemon& daemon);
  void greeted(uint32_t machine, int label, uint64_t incarnation, uint32_t epoch, uint32_t lane,
               Instant sent, uint32_t known);
  void received(uint32_t id, uint32_t lane, coherence::ToHome message);
  void receive_now(NodeId node, coherence::ToHome message);
  void end_grace_if_over();
  void end_session(uint32_t id, const std::string& why);
  void send(NodeId node, FileId file, coherence::ToAgent message);
  void lost_is_seen();
  void not_coming_back(const coherence::Grace::Member& member, bool is_here);
  Session* find(uint32_t id);
  Session* of_machine(uint32_t machine);
  Instant now() const { return clock_.at(setting_.scheduler.now()); }

  FaultSetting& setting_;
  Clock clock_;
  // The dead are kept: what still runs of them does nothing.
  std::vector<std::unique_ptr<Daemon>> daemons_;
  Daemon* daemon_ = nullptr;
  HomeDriver::Durable durable_;  // while there is no daemon
  std::vector<coherence::Grace::Member> noted_;
  HomeDriver::CallLog calls_;
  std::map<uint64_t, int> labels_;  // of incarnations
  uint32_t next_session_ = 1;
  std::set<std::pair<uint32_t, uint64_t>> truncations_, syncs_;  // by session and call; unanswered
  uint64_t kill_in_ = 0;
  bool kill_by_given_up_ = false;
  bool kill_with_power_ = false;
  uint64_t disk_life_ = 1;
  bool has_lost_ = false;  // and nobody has seen it yet
  bool dying_ = false;
  uint64_t fences_ = 0, restarts_ = 0;
  std::vector<std::unique_ptr<Machine>>* machines_ = nullptr;
};

}  // namespace vremote::sim
