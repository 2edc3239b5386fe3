// The driver around the real Home for names: directories in memory, one queue for each (rule I4),
// and the operations that look at names and change them, with the leases that operation_needs.h
// says.
#pragma once

#include <deque>
#include <functional>
#include <map>

#include "coherence/home.h"
#include "coherence/operation_needs.h"
#include "sim/home_limits.h"
#include "sim/mistakes.h"
#include "sim/name_history.h"
#include "sim/scheduler.h"

namespace vremote::sim {

class NameHome {
 public:
  using Send = std::function<void(NodeId node, FileId file, coherence::ToAgent message)>;

  NameHome(Scheduler& scheduler, NameHistory& history, const Breaks& breaks, Send send,
           const coherence::HomeLimits& limits);

  void create(FileId dir, const std::vector<std::string>& names);
  void receive(NodeId node, coherence::ToHome message);

  const coherence::Home& home() const { return home_; }
  bool idle() const;
  std::string dump() const;

 private:
  struct Running {
    NodeId node;
    coherence::Call call;
    std::vector<coherence::OperationNeed> needs;
    size_t asked = 0;
  };
  struct Directory {
    std::map<std::string, FileId> names;
    std::deque<coherence::HomeAction> queue;
    bool busy = false;
  };

  void take(coherence::HomeActions& actions);
  void pump(FileId dir);
  void perform(FileId dir, coherence::HomeAction& action);
  void ready(const coherence::OperationReady& ready);
  coherence::Reply execute(const Running& running);
  void set(const Running& running, FileId dir, const std::string& name, NameValue value);
  FileId fresh_file() { return {0, 1, next_file_++}; }

  Scheduler& scheduler_;
  NameHistory& history_;
  Send send_;
  coherence::Home home_;
  std::map<FileId, Directory> directories_;
  std::map<coherence::OperationId, Running> running_;
  coherence::OperationId next_operation_ = 1;
  uint64_t next_file_ = 100;
};

}  // namespace vremote::sim
