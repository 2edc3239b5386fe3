// The origin of a world with faults: its side of the sessions, and the home. Its daemon may be
// stopped.
//
// What decides is the daemon's: Home, Patience. As in src/net, a session lasts until the node comes
// as another or begins another, or until it is fenced; what arrives of one that is over is dropped.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <vector>

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

  // ---- what arrives ----
  void hello(uint32_t machine, int label, uint64_t incarnation, uint32_t epoch, uint32_t lane,
             Instant sent, uint32_t known);
  void ping(uint32_t machine, uint64_t incarnation, uint32_t session, uint32_t lane, Instant sent);
  void message(uint32_t machine, uint64_t incarnation, uint32_t session, uint32_t lane,
               coherence::ToHome message);

  std::span<const std::byte> disk(FileId file) { return driver_->disk(file); }
  HomeDriver& driver() { return *driver_; }
  // The session that this incarnation of a node has here.
  std::optional<NodeId> session_of(uint64_t incarnation) const;
  // Sessions of nodes that are no more are over now.
  void forget_the_dead(const std::function<bool(uint64_t incarnation)>& lives);
  uint64_t fences() const { return fences_; }
  bool stopped() const { return gate_.stopped(); }
  std::string dump() const { return driver_->dump(); }

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

  void tick();
  void greeted(uint32_t machine, int label, uint64_t incarnation, uint32_t epoch, uint32_t lane,
               Instant sent, uint32_t known);
  void end_session(uint32_t id, const std::string& why);
  void send(NodeId node, FileId file, coherence::ToAgent message);
  Session* find(uint32_t id);
  Session* of_machine(uint32_t machine);
  Instant now() const { return clock_.at(setting_.scheduler.now()); }

  FaultSetting& setting_;
  Clock clock_;
  Gate gate_;
  uint64_t incarnation_ = 1;
  std::unique_ptr<HomeDriver> driver_;
  coherence::Patience patience_;
  std::vector<Session> sessions_;
  uint32_t next_session_ = 1;
  uint64_t fences_ = 0;
  std::vector<std::unique_ptr<Machine>>* machines_ = nullptr;
};

}  // namespace vremote::sim
