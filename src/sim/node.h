// A machine of the simulated cluster: the real Agent, the model kernel, and the driver between
// them.
//
// The driver's duties are those of the daemon: purges run beside everything else, as many at once
// as are asked for; a write-back is answered at once; an answer to a fill is written before a later
// message of the home is looked at; time reaches the agent by tick().
#pragma once

#include <functional>
#include <map>
#include <memory>

#include "coherence/agent.h"
#include "sim/alarm.h"
#include "sim/mistakes.h"
#include "sim/model_kernel.h"

namespace vremote::sim {

class Node final : public Daemon {
 public:
  struct Hooks {
    std::function<void(NodeId node, coherence::ToHome message)> send;
    std::function<void(NodeId node, FileId file)>
        changed;  // after each call of the agent: checkers look
  };

  Node(Scheduler& scheduler, History& history, const Breaks& breaks, NodeId id,
       const coherence::AgentOptions& agent, const KernelOptions& kernel, Hooks hooks);

  void deliver(FileId file, coherence::ToAgent message);
  void flush_all();

  ModelKernel& kernel() { return kernel_; }
  const ModelKernel& kernel() const { return kernel_; }
  const coherence::Agent& agent() const { return agent_; }
  std::string dump() const;

  void on_read(Token token, FileId file, uint64_t offset, uint32_t size, bool fill) override;
  void on_write(Token token, FileId file, uint64_t offset, Bytes bytes, bool append,
                uint64_t handle) override;
  void on_write_back(FileId file, uint64_t offset, Bytes bytes) override;
  void on_open(Token token, FileId file, bool reads, bool may_map) override;
  void on_release(FileId file, bool reads, bool may_map) override;
  void on_get_attributes(Token token, FileId file, bool own) override;
  void on_fsync(Token token, FileId file) override;
  void on_set_size(Token token, FileId file, uint64_t size) override;
  void on_interrupt(Token token, FileId file) override;
  void on_forget(FileId file) override;

 private:
  struct Truncation {
    Token token = 0;
    FileId file;
    uint64_t size = 0;
  };

  void take(FileId file, coherence::AgentActions& actions);
  void perform(FileId file, coherence::AgentAction& action);
  Co<> run_push(uint64_t id, FileId file, uint64_t size);
  Co<> look_at_size(coherence::LookAtSize wanted);
  void push_ended(uint64_t id, FileId file, bool there);
  Co<> run_settle(coherence::SettleSize settle);
  Co<> end_settle(coherence::SettleSize settle, std::shared_ptr<uint32_t> asking);
  Co<> run_purge(coherence::PurgeId id, FileId file, PageRange range);
  void schedule_tick();
  int number() const { return static_cast<int>(id_.value); }

  Scheduler& scheduler_;
  Breaks breaks_;
  NodeId id_;
  Hooks hooks_;
  coherence::Agent agent_;
  ModelKernel kernel_;
  std::map<Token, Truncation> truncations_;  // asked of the agent
  std::map<uint64_t, Truncation> calls_;     // sent to the home
  uint64_t next_call_ = 1;
  uint64_t purges_running_ = 0;
  Condition purge_slot_;
  Alarm tick_{scheduler_};
  int64_t settle_ns_ = 0;
  bool interrupting_ = false;
  bool after_push_ = false;  // while the agent hears that a push is done: the attributes it tells
                             // now may be older than others
};

}  // namespace vremote::sim
