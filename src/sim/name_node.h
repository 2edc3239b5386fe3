// A machine of a world of names: the real Agent, NameCache and NameLedger, the model dentry cache,
// and the driver between them: what AgentService and KernelNames do in the daemon.
#pragma once

#include <functional>
#include <map>

#include "coherence/agent.h"
#include "coherence/name_cache.h"
#include "coherence/name_ledger.h"
#include "sim/alarm.h"
#include "sim/name_kernel.h"

namespace vremote::sim {

struct NameNodeOptions {
  coherence::AgentOptions agent;
  coherence::NameLedgerOptions ledger;
  bool expires_absent = true;
  bool slow_attributes = false;  // between a lookup and its answer, the file's attributes are got
};

class NameNode final : public NameDaemon {
 public:
  struct Hooks {
    std::function<void(NodeId node, coherence::ToHome message)> send;
    std::function<void(NodeId node)> changed;  // checkers look
  };

  NameNode(Scheduler& scheduler, NameHistory& history, NodeId id, const NameNodeOptions& options,
           Hooks hooks);

  void deliver(coherence::ToAgent message);
  NameKernel& kernel() { return kernel_; }
  const NameKernel& kernel() const { return kernel_; }
  const coherence::Agent& agent() const { return agent_; }
  void check() const;
  uint64_t names_given() const { return names_given_; }
  std::string dump() const;

  void on_lookup(uint32_t tid, NameKey key, ArrivalOf<LookedUp> to) override;
  void on_create(uint32_t tid, NameKey key, bool exclusive, ArrivalOf<Changed> to) override;
  void on_remove(uint32_t tid, NameKey key, ArrivalOf<Changed> to) override;
  void on_rename(uint32_t tid, NameKey from, NameKey to_name, bool exchange,
                 ArrivalOf<Changed> to) override;
  void on_list(uint32_t tid, FileId dir, ArrivalOf<Listed> to) override;

 private:
  using Then = std::move_only_function<void()>;
  using ThenReply = std::move_only_function<void(coherence::Reply&&, uint64_t call)>;

  void take(coherence::AgentActions& actions);
  void with_entries(FileId dir, Then then);
  void lookup_at_home(const coherence::NameLedger::Asked& by, NameKey key, ArrivalOf<LookedUp> to);
  void answer_lookup(const coherence::NameLedger::Asked& by, NameKey key, NameValue file,
                     ArrivalOf<LookedUp> to);
  bool give(const coherence::NameLedger::Asked& by, const NameKey& key, NameValue file);
  void call(coherence::Operation operation, ThenReply then);
  void change(uint32_t tid, std::vector<NameKey> changes, coherence::Operation operation,
              ThenReply then);
  bool move(uint32_t tid, const NameKey& from, const NameKey& to);
  void end_names(const coherence::EndNames& end);
  Co<> expire(uint64_t id, FileId dir, std::vector<coherence::NameLedger::Name> names,
              std::shared_ptr<Then> then);
  void finish(uint64_t id, bool expired, Then& then);
  void advance_epoch();
  void schedule_tick();

  Scheduler& scheduler_;
  NodeId id_;
  NameNodeOptions options_;
  Hooks hooks_;
  coherence::Agent agent_;
  coherence::NameCache names_;
  coherence::NameLedger ledger_;
  NameKernel kernel_;
  std::map<coherence::Token, Then> waiting_;  // for an Entries lease
  std::map<uint64_t, ThenReply> calls_;
  coherence::Token next_token_ = 1;
  uint64_t next_call_ = 1;
  uint64_t names_given_ = 0;
  Alarm tick_{scheduler_};
};

}  // namespace vremote::sim
