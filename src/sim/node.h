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
#include "coherence/call_memory.h"
#include "sim/alarm.h"
#include "sim/gate.h"
#include "sim/mistakes.h"
#include "sim/model_kernel.h"

namespace vremote::sim {

class Node final : public Daemon {
 public:
  struct Hooks {
    std::function<void(NodeId node, coherence::ToHome message)> send;
    std::function<void(NodeId node, FileId file)>
        changed;  // after each call of the agent: checkers look
    // What may not go to the home any more. Unset: no session ends in this world, and nothing
    // fails.
    std::function<void(const coherence::Rescue&)> rescue = {};
    // fsync(2) has the home sync the file, too; elsewhere all that it has is on its disk.
    bool syncs = false;
  };

  Node(Scheduler& scheduler, History& history, const Breaks& breaks, NodeId id,
       const coherence::AgentOptions& agent, const KernelOptions& kernel, Hooks hooks,
       Clock clock = {.offset_ns = 0});

  void deliver(FileId file, coherence::ToAgent message);
  void flush_all();

  // ---- worlds with faults (machine.h) ----
  Instant now() const { return clock_.at(scheduler_.now()); }
  Gate& gate() { return gate_; }
  // As AgentService does it: the agent first, then the calls whose replies have not come.
  void reset(coherence::Agent::Dirty dirty, bool disk_has_lost);
  // After a reset that keeps what is dirty: whether all of it is back (as
  // AgentService::brings_back()).
  bool brings_back();
  void renew(Instant until);
  // Of a soft mount, now and then: what waits fails when its patience is over (as
  // AgentService::fail_late_calls()). Nothing may still wait the next time.
  void look_at_patience();
  // The daemon is stopped or dead, and the guardian answers the kernel in its place.
  void guardian_takes_over();
  void stop();
  void go_on();
  // Power loss: nothing of this machine is heard of any more.
  void power_lost();
  bool leases_good() const { return !gate_.dead() && agent_.leases_good(now()); }
  // A call whose reply means nothing.
  void tell_home(coherence::Operation operation) {
    send_call(std::nullopt, 0, std::move(operation));
  }
  // A call on names; returns 0 or an errno.
  // `who`: whose fsync it is.
  Co<int32_t> call(coherence::Operation operation, coherence::Opener who = {});

  ModelKernel& kernel() { return kernel_; }
  const ModelKernel& kernel() const { return kernel_; }
  const coherence::Agent& agent() const { return agent_; }
  std::string dump() const;

  bool takes_write_backs() const override;
  bool is_shown_growth() const override;
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

  // A call at the home: a truncation, or one that a process waits for.
  struct PendingCall {
    coherence::Call call;
    std::optional<Truncation> truncation;
    Token waits = 0;
    bool told = false;  // its caller has an error
    Token fsync = 0;
    uint64_t sync_begun = 0;
    coherence::Opener who;
  };
  struct NameWait {
    Node& node;
    Token token;
    bool await_ready() const noexcept { return false; }
    void await_suspend(std::coroutine_handle<> handle) { node.name_waits_[token].handle = handle; }
    int32_t await_resume() { return node.name_waits_.extract(token).mapped().error; }
  };
  struct NameResult {
    std::coroutine_handle<> handle;
    int32_t error = 0;
  };

  // Returns its number.
  uint64_t send_call(std::optional<Truncation> truncation, Token waits,
                     coherence::Operation operation);
  void end_truncation(FileId file);
  void end_truncations();
  void brings_back(const coherence::AgentActions& actions);
  Co<> clear_tail(Truncation truncation, uint64_t before);
  void replied(const coherence::Reply& reply, coherence::AgentActions& actions);
  void take_back();
  void take(FileId file, coherence::AgentActions& actions);
  void perform(FileId file, coherence::AgentAction& action);
  Co<> run_push(coherence::PushSize wanted);
  Co<> look_at_size(coherence::LookAtSize wanted);
  void push_ended(uint64_t id, FileId file, bool there);
  Co<> run_settle(coherence::SettleSize settle);
  Co<> end_settle(coherence::SettleSize settle, std::shared_ptr<uint32_t> asking);
  Co<> run_purge(coherence::PurgeId id, FileId file, PageRange range);
  void schedule_tick();
  int number() const { return static_cast<int>(id_.value); }

  Scheduler& scheduler_;
  History& history_;
  Breaks breaks_;
  NodeId id_;
  Hooks hooks_;
  Clock clock_;
  Gate gate_;
  bool guardian_ = false;
  uint64_t stops_ = 0;
  bool catches_up_ = false;  // since a reset, until all that waited then has been answered
  coherence::Agent agent_;
  ModelKernel kernel_;
  std::map<Token, Truncation> truncations_;  // asked of the agent
  std::set<Token> ended_;                    // truncations that the guardian has answered
  std::map<uint64_t, PendingCall> calls_;    // sent to the home
  coherence::UnheardCalls unheard_;          // of these
  std::map<uint64_t, std::pair<uint64_t, FileId>> claims_;  // by call
  std::map<Token, FileId> fsyncs_;                          // not answered
  std::map<Token, NameResult> name_waits_;
  // A truncation was done whose caller had an error: the kernel is not told how long the file is.
  bool size_untold_ = false;
  std::optional<Token> failed_before_;  // what was asked by then, and not later, has failed
  Token next_name_ = 1;
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
