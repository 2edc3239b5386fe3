// One world: a home, its disk, a few nodes with kernels and processes, all drawn from one seed; and
// what must hold in it.
//
// After each event: leases of different agents never conflict and the home knows of each (I1, I5);
// a dirty page is held Exclusive; the state machines' own check(). When nothing happens any more:
// nobody waits. At the end: everything was flushed, and one copy of each file could have shown
// every process what it saw.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/prng.h"
#include "sim/any_world.h"
#include "sim/history.h"
#include "sim/home_driver.h"
#include "sim/link.h"
#include "sim/node.h"
#include "sim/process.h"

namespace vremote::sim {

class World final : public AnyWorld {
 public:
  World(uint64_t seed, const Breaks& breaks);
  ~World() override;

  Scheduler& scheduler() override { return *scheduler_; }
  Outcome run() override;
  const std::string& plan() const override { return plan_; }

 private:
  void draw();
  void start();
  Co<> background(uint32_t node);
  bool settle();  // runs until nothing happens; false on failure
  void send_to_home(NodeId node, coherence::ToHome message);
  void check_file(uint32_t file);
  void check_after(NodeId node, FileId file);
  std::string dump() const;

  std::unique_ptr<Scheduler> scheduler_;
  Breaks breaks_;
  std::string plan_;
  History history_;
  std::vector<FilePlan> files_;
  std::vector<Habits> habits_;  // by node
  coherence::AgentOptions agent_options_;
  KernelOptions kernel_options_;
  coherence::HomeLimits limits_;
  uint32_t node_count_ = 2;
  uint32_t processes_per_node_ = 1;
  bool offers_ = false;
  std::optional<Prng> outside_;  // draws changes from outside, in some worlds
  uint32_t check_every_ = 1;
  uint64_t changes_ = 0;
  uint64_t messages_ = 0;
  uint64_t steps_max_ = 0;
  std::unique_ptr<HomeDriver> home_;
  std::vector<std::unique_ptr<Node>> nodes_;
  std::vector<std::unique_ptr<Link>> to_home_, from_home_;
  std::vector<std::unique_ptr<Process>> processes_;
};

}  // namespace vremote::sim
