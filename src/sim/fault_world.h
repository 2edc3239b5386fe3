// A world of pages in which everything breaks: nodes are cut off, both ways or one, stopped, lose
// their power, their daemons are killed; the origin's daemon is stopped, or
// killed and started again; all clocks go differently.
//
// What must hold, beside what holds in every world of pages (world.h): a node whose leases are good
// has a session at its home, which knows of them (T2, by true time); what programs saw can be
// explained with D1 to D4 (history.h); and when the last fault is over everybody gets on.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "sim/any_world.h"
#include "sim/machine.h"
#include "sim/origin.h"

namespace vremote::sim {

class FaultWorld final : public AnyWorld {
 public:
  // `power`: the origin loses its power, in the worst moments, and in half of the worlds that is
  // all.
  FaultWorld(uint64_t seed, const Breaks& breaks, bool power = false);
  ~FaultWorld() override;

  Scheduler& scheduler() override { return *scheduler_; }
  Outcome run() override;
  const std::string& plan() const override { return plan_; }

 private:
  void draw();
  Habits draw_habits();
  Clock draw_clock();
  void draw_faults();
  void draw_power_losses();
  void lose_power_behind_syncs();
  void end_as_sessions_begin_again();
  void draw_breach();
  void draw_broken_connections();
  void draw_mapped_truncations();
  bool draw_soft_mounts();
  void end_sessions_at_truncations(bool often, bool at_origin);
  void start();
  Co<> background(uint32_t machine);
  void start_again(uint32_t machine);
  void check_file(uint32_t file);
  // Runs until `done` says so; false on failure, or when that takes too long.
  template <typename Done>
  bool run_until(const char* what, Done done);
  bool processes_done() const;
  bool at_rest() const;
  std::string dump() const;

  std::unique_ptr<Scheduler> scheduler_;
  Breaks breaks_;
  bool power_;
  Prng more_;  // as FaultSetting::dice, for what was thought of later
  std::string plan_;
  History history_;
  FaultSetting setting_;
  std::vector<Habits> habits_;  // by machine
  uint32_t machine_count_ = 2, processes_ = 1;
  int64_t faults_end_ns_ = 0;
  uint32_t starting_ = 0;  // machines that will begin a life
  uint64_t faults_ = 0;
  uint64_t steps_max_ = 0;
  std::unique_ptr<Origin> origin_;
  std::vector<std::unique_ptr<Machine>> machines_;
};

}  // namespace vremote::sim
