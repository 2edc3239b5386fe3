#include "sim/name_node.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>

#include "base/overload.h"

namespace vremote::sim {

using namespace coherence;

namespace {
constexpr uint32_t kExchange = 2;  // RENAME_EXCHANGE
}

NameNode::NameNode(Scheduler& scheduler, NameHistory& history, NodeId id,
                   const NameNodeOptions& options, Hooks hooks)
    : scheduler_(scheduler),
      id_(id),
      options_(options),
      hooks_(std::move(hooks)),
      agent_(options.agent),
      ledger_(options.ledger),
      kernel_(scheduler, history, *this, static_cast<int>(id.value), options.expires_absent) {}

void NameNode::take(AgentActions& actions) {
  for (AgentAction& action : actions) {
    if (const auto* reply = std::get_if<ReplyEntries>(&action)) {
      auto it = waiting_.find(reply->token);
      Then then = std::move(it->second);
      waiting_.erase(it);
      // Not under the shard's lock, and so after what else there is to do.
      scheduler_.after(0, std::move(then));
    } else if (auto* send = std::get_if<SendToHome>(&action)) {
      hooks_.send(id_, std::move(send->message));
    } else if (const auto* lost = std::get_if<EntriesLost>(&action)) {
      names_.lost(lost->dir);
    } else if (const auto* end = std::get_if<EndNames>(&action)) {
      end_names(*end);
    }
  }
  actions.clear();
  hooks_.changed(id_);
  schedule_tick();
}

void NameNode::schedule_tick() {
  tick_.set(agent_.next_deadline(), [this] {
    AgentActions actions;
    agent_.tick(scheduler_.now(), actions);
    take(actions);
  });
}

void NameNode::deliver(ToAgent message) {
  if (auto* reply = std::get_if<Reply>(&message)) {
    auto it = calls_.find(reply->call);
    ThenReply then = std::move(it->second);
    calls_.erase(it);
    const uint64_t call = reply->call;
    then(std::move(*reply), call);
    return;
  }
  AgentActions actions;
  if (auto* grant = std::get_if<Grant>(&message)) {
    scheduler_.trace(static_cast<int>(id_.value), -1, "agent   gets the entries of d{}",
                     grant->file.inode);
    agent_.receive(scheduler_.now(), std::move(*grant), actions);
  } else if (const auto* recall = std::get_if<Recall>(&message)) {
    scheduler_.trace(static_cast<int>(id_.value), -1, "agent   gets recall {} of d{}",
                     recall->recall, recall->file.inode);
    agent_.receive(scheduler_.now(), *recall, actions);
  }
  take(actions);
}

// ---- what AgentService does

void NameNode::with_entries(FileId dir, Then then) {
  const Token token = next_token_++;
  waiting_.emplace(token, std::move(then));
  AgentActions actions;
  agent_.entries(scheduler_.now(), token, dir, actions);
  take(actions);
}

void NameNode::call(Operation operation, ThenReply then) {
  const uint64_t id = next_call_++;
  calls_.emplace(id, std::move(then));
  hooks_.send(id_, Call{.call = id, .caller = {}, .operation = std::move(operation)});
}

void NameNode::on_lookup(uint32_t tid, NameKey key, ArrivalOf<LookedUp> to) {
  ledger_.request_from(tid);
  const NameLedger::Asked by{tid, scheduler_.now()};
  const bool has_lease = agent_.has_entries(key.first);
  if (has_lease) {
    if (const NameCache::Answer known = names_.find(key.first, key.second); known.known) {
      answer_lookup(by, key, known.file, std::move(to));
      return;
    }
    lookup_at_home(by, key, std::move(to));
    return;
  }
  with_entries(key.first, [this, by, key, to] { lookup_at_home(by, key, to); });
}

void NameNode::lookup_at_home(const NameLedger::Asked& by, NameKey key, ArrivalOf<LookedUp> to) {
  const uint64_t asked = names_.changes();
  LookupCall operation{key.first, key.second};
  call(std::move(operation), [this, by, key, to, asked](Reply&& reply, uint64_t) {
    const auto* node = std::get_if<coherence::Node>(&reply.outcome);
    const NameValue file = reply.error == 0 ? NameValue{node->file} : NameValue{};
    if (agent_.has_entries(key.first)) names_.remember(key.first, key.second, file, asked);
    answer_lookup(by, key, file, to);
  });
}

void NameNode::answer_lookup(const NameLedger::Asked& by, NameKey key, NameValue file,
                             ArrivalOf<LookedUp> to) {
  const auto answer = [this, by, key, file, to] { to->set(LookedUp{file, give(by, key, file)}); };
  if (file && options_.slow_attributes) {
    scheduler_.after(Delay::Link, answer);
  } else {
    answer();
  }
}

bool NameNode::give(const NameLedger::Asked& by, const NameKey& key, NameValue file) {
  if (!agent_.may_give_names(key.first)) return false;
  const NameCache::Answer known = names_.find(key.first, key.second);
  if (!known.known || known.file != file) return false;
  if (!ledger_.give(key.first.inode, key.second, file.has_value(), by, scheduler_.now()))
    return false;
  agent_.names_given(key.first);
  ++names_given_;
  return true;
}

void NameNode::change(uint32_t tid, std::vector<NameKey> changes, Operation operation,
                      ThenReply then) {
  for (const auto& [dir, name] : changes) names_.begin_change(dir);
  bool followed = true;
  const auto* rename = std::get_if<RenameCall>(&operation);
  if (rename != nullptr) {
    followed = move(tid, changes[0], changes[1]);
    if (rename->flags == kExchange) followed = move(tid, changes[1], changes[0]) && followed;
  }
  const bool makes = std::holds_alternative<CreateCall>(operation);
  const size_t moves = rename == nullptr ? 0 : rename->flags == kExchange ? 2 : 1;
  call(std::move(operation), [this, changes = std::move(changes), followed, makes, moves,
                              then = std::move(then)](Reply&& reply, uint64_t id) mutable {
    for (const auto& [dir, name] : changes) {
      names_.end_change(dir, name);
      if (makes && reply.error == 0) ledger_.renewed(dir.inode, name);
    }
    for (size_t i = 0; i < moves; ++i) {
      const auto& [dir, name] = changes[i];
      if (!ledger_.moved(dir.inode, name, reply.error == 0, scheduler_.now())) advance_epoch();
    }
    if (!followed && ledger_.end_all()) advance_epoch();
    then(std::move(reply), id);
  });
}

bool NameNode::move(uint32_t tid, const NameKey& from, const NameKey& to) {
  const bool leased = agent_.may_give_names(to.first);
  if (leased) agent_.names_given(to.first);
  return ledger_.move(from.first.inode, from.second, to.first.inode, to.second, leased, tid);
}

// ---- what FuseServer does

void NameNode::on_create(uint32_t tid, NameKey key, bool exclusive, ArrivalOf<Changed> to) {
  ledger_.request_from(tid);
  const auto attempt = [this, tid, key](bool alone, ThenReply then) {
    change(tid, {key}, CreateCall{key.first, key.second, 0100644, 0, alone}, std::move(then));
  };
  attempt(true, [attempt, exclusive, to](Reply&& reply, uint64_t call) mutable {
    const auto answer = [to](const Reply& last, uint64_t id) {
      const auto* made = std::get_if<coherence::Node>(&last.outcome);
      to->set({last.error, last.error == 0 ? NameValue{made->file} : NameValue{}, id});
    };
    if (reply.error == EEXIST && !exclusive) {
      attempt(false, [answer](Reply&& second, uint64_t id) { answer(second, id); });
      return;
    }
    answer(reply, call);
  });
}

void NameNode::on_remove(uint32_t tid, NameKey key, ArrivalOf<Changed> to) {
  ledger_.request_from(tid);
  change(tid, {key}, RemoveCall{key.first, key.second, false}, [to](Reply&& reply, uint64_t id) {
    to->set({reply.error, {}, id});
  });
}

void NameNode::on_rename(uint32_t tid, NameKey from, NameKey to_name, bool exchange,
                         ArrivalOf<Changed> to) {
  ledger_.request_from(tid);
  RenameCall operation{from.first, from.second, to_name.first, to_name.second,
                       exchange ? kExchange : 0};
  change(tid, {from, to_name}, std::move(operation), [to](Reply&& reply, uint64_t id) {
    to->set({reply.error, {}, id});
  });
}

void NameNode::on_list(uint32_t tid, FileId dir, ArrivalOf<Listed> to) {
  ledger_.request_from(tid);
  with_entries(dir, [this, dir, to] {
    const uint64_t asked = names_.changes();
    call(ReadDirectoryCall{dir, 0, 4096, false}, [this, dir, to, asked](Reply&& reply, uint64_t) {
      Listed listed;
      if (const auto* page = std::get_if<DirectoryPage>(&reply.outcome)) {
        for (const DirectoryEntry& entry : page->entries) {
          if (agent_.has_entries(dir)) names_.remember(dir, entry.name, entry.file, asked);
          listed.names[entry.name] = entry.file;
        }
      }
      to->set(std::move(listed));
    });
  });
}

// ---- what KernelNames does

void NameNode::advance_epoch() {
  kernel_.advance_epoch();
  ledger_.epoch_advanced();
}

void NameNode::end_names(const EndNames& end) {
  Then ended = [this, end] {
    AgentActions actions;
    agent_.names_ended(scheduler_.now(), end.ending, end.dir, actions);
    take(actions);
  };
  const bool at_once = end.at_once || names_.changing(end.dir);
  NameLedger::Ending ending = ledger_.end(end.dir.inode, at_once, scheduler_.now());
  switch (ending.how) {
    case NameLedger::How::Nothing:
      scheduler_.after(0, std::move(ended));
      return;
    case NameLedger::How::Epoch:
      advance_epoch();
      scheduler_.after(0, std::move(ended));
      return;
    case NameLedger::How::Expiry:
      break;
  }
  auto then = std::make_shared<Then>(std::move(ended));
  if (auto at = ledger_.deadline(scheduler_.now()))
    scheduler_.after(*at - scheduler_.now(),
                     [this, id = ending.id, then] { finish(id, false, *then); });
  scheduler_.spawn(expire(ending.id, end.dir, std::move(ending.names), then));
}

Co<> NameNode::expire(uint64_t id, FileId dir, std::vector<NameLedger::Name> names,
                      std::shared_ptr<Then> then) {
  bool sure = true;
  for (const NameLedger::Name& name : names) {
    co_await scheduler_.sleep(Delay::PurgeStep);
    const bool known = co_await kernel_.expire({dir, name.name});
    sure = sure && (known || name.exists);
  }
  co_await scheduler_.sleep(Delay::PurgeReport);
  finish(id, sure, *then);
}

void NameNode::finish(uint64_t id, bool expired, Then& then) {
  const NameLedger::Finish what = ledger_.finish(id, expired);
  if (what == NameLedger::Finish::WasOver) return;
  if (what == NameLedger::Finish::Epoch) advance_epoch();
  then();
}

void NameNode::check() const {
  agent_.check();
  ledger_.check();
}

std::string NameNode::dump() const {
  return kernel_.dump() + fmt::format("  n{}: {} wait for entries, {} calls under way\n", id_.value,
                                      waiting_.size(), calls_.size());
}

}  // namespace vremote::sim
