// One node of a playground: a child process of its own, and its end.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>

#include "base/result.h"
#include "cli/playground_plan.h"

namespace vremote::cli {

class NodeProcess {
 public:
  // Forks and executes this very program as `vremote node --config …`. The child has a process
  // group of its own (the terminal's ^C is for the playground, which ends its nodes one by one) and
  // gets SIGTERM when the playground dies, however it dies. What it prints goes to the node's log.
  static Result<NodeProcess> spawn(const PlannedNode& node);

  NodeProcess(NodeProcess&& other) noexcept;
  NodeProcess& operator=(NodeProcess&&) = delete;
  // A node still running is killed: nothing is left behind, whatever went wrong.
  ~NodeProcess();

  const PlannedNode& plan() const { return plan_; }
  pid_t pid() const { return pid_; }

  // Reaps the child when it has ended; true once it has.
  bool ended();
  // "exited with status 1", "was killed by signal 9 (Killed)"; for the ended.
  std::string how_ended() const;
  bool ended_well() const { return status_ == 0; }

  void terminate();  // SIGTERM
  // For a node that does not end: aborts its FUSE connection alone, kills its pid alone, waits for
  // its end (bounded).
  void kill_hard();

  // What the node wrote to its log since it was started: the last `lines` of it, each with a
  // newline.
  std::string log_tail(size_t lines) const;

 private:
  NodeProcess(PlannedNode plan, pid_t pid, off_t log_start)
      : plan_(std::move(plan)), pid_(pid), log_start_(log_start) {}

  PlannedNode plan_;
  pid_t pid_ = -1;
  off_t log_start_ = 0;
  std::optional<int> status_;  // of waitpid, once ended
};

}  // namespace vremote::cli
