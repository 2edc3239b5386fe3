// One world of names: a home with one or two directories, a few nodes with dentry caches and
// processes, all drawn from one seed.
//
// After each event: Entries leases never conflict, the home knows of each (I1, I5), the state
// machines' own check(). When nothing happens any more: nobody waits. At the end: every look at a
// name is explained by the changes in the home's order (name_history.h).
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "sim/any_world.h"
#include "sim/link.h"
#include "sim/name_home.h"
#include "sim/name_node.h"

namespace vremote::sim {

class NameWorld final : public AnyWorld {
 public:
  NameWorld(uint64_t seed, const Breaks& breaks);
  ~NameWorld() override;

  Scheduler& scheduler() override { return *scheduler_; }
  Outcome run() override;
  const std::string& plan() const override { return plan_; }

 private:
  struct Process {
    uint32_t node = 0, tid = 0;
    std::string doing;
    bool done = false;
  };
  struct Weights {
    uint32_t stat = 0, create = 0, remove = 0, rename = 0, list = 0;
  };

  void draw();
  void start();
  Co<> live(size_t process);
  Co<> audit(size_t process);
  bool settle();
  void check_leases();
  NameKey some_name();
  std::string waiting() const;

  std::unique_ptr<Scheduler> scheduler_;
  Breaks breaks_;
  std::string plan_;
  NameHistory history_;
  NameNodeOptions options_;
  uint32_t node_count_ = 2, processes_per_node_ = 1, operations_ = 10;
  std::vector<FileId> directories_;
  std::vector<std::string> names_;
  std::vector<Weights> weights_;  // by node
  uint64_t messages_ = 0, operations_done_ = 0;
  coherence::HomeLimits limits_;
  std::unique_ptr<NameHome> home_;
  std::vector<std::unique_ptr<NameNode>> nodes_;
  std::vector<std::unique_ptr<Link>> to_home_, from_home_;
  std::vector<Process> processes_;
};

}  // namespace vremote::sim
