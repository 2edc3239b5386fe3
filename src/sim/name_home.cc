#include "sim/name_home.h"

#include <fmt/format.h>

#include <cerrno>

#include "base/check.h"
#include "base/overload.h"

namespace vremote::sim {

using namespace coherence;

namespace {

constexpr uint32_t kExchange = 2;  // RENAME_EXCHANGE

int number(FileId dir) { return static_cast<int>(dir.inode); }

std::string text(const Operation& operation) {
  return std::visit(
      Overload{[](const LookupCall& c) { return fmt::format("look up {}", c.name); },
               [](const CreateCall& c) {
                 return fmt::format("create {}{}", c.name, c.exclusive ? " exclusively" : "");
               },
               [](const RemoveCall& c) { return fmt::format("remove {}", c.name); },
               [](const RenameCall& c) {
                 return fmt::format("{} d{}/{} d{}/{}", c.flags != 0 ? "exchange" : "rename",
                                    c.from_dir.inode, c.from, c.to_dir.inode, c.to);
               },
               [](const ReadDirectoryCall&) { return std::string("list"); },
               [](const auto&) { return std::string("?"); }},
      operation);
}

}  // namespace

NameHome::NameHome(Scheduler& scheduler, NameHistory& history, const Breaks& breaks, Send send,
                   const HomeLimits& limits)
    : scheduler_(scheduler),
      history_(history),
      send_(std::move(send)),
      home_(breaks.protocol, limits) {}

void NameHome::create(FileId dir, const std::vector<std::string>& names) {
  Directory& directory = directories_[dir];
  for (const std::string& name : names) {
    NameValue value;
    if (scheduler_.random().chance(50)) value = directory.names[name] = fresh_file();
    history_.changed({dir, name}, value, scheduler_.now().ns, {});
  }
}

void NameHome::receive(NodeId node, ToHome message) {
  HomeActions actions;
  if (auto* call = std::get_if<Call>(&message)) {
    const OperationId id = next_operation_++;
    scheduler_.trace(-1, number(file_of(call->operation)), "home    from n{}: operation {}: {}",
                     node.value, id, text(call->operation));
    std::vector<OperationNeed> needs = first_needs(node, call->operation);
    VR_CHECK(!needs.empty());
    const OperationNeed first = needs.front();
    running_[id] = Running{node, std::move(*call), std::move(needs), 1};
    home_.acquire(id, first, actions);
  } else if (const auto* request = std::get_if<LeaseRequest>(&message)) {
    scheduler_.trace(-1, number(request->file), "home    from n{}: wants the entries", node.value);
    home_.receive(node, *request, actions);
  } else if (const auto* ack = std::get_if<RecallAck>(&message)) {
    scheduler_.trace(-1, number(ack->file), "home    from n{}: ack {}", node.value, ack->recall);
    home_.receive(node, *ack, actions);
  } else {
    scheduler_.fail("a message that has nothing to do with names");
  }
  take(actions);
}

void NameHome::take(HomeActions& actions) {
  for (HomeAction& action : actions) {
    FileId dir;
    if (const auto* grant = std::get_if<SendGrant>(&action)) {
      dir = grant->grant.file;
    } else if (const auto* recall = std::get_if<SendRecall>(&action)) {
      dir = recall->recall.file;
    } else if (const auto* ready = std::get_if<OperationReady>(&action)) {
      dir = ready->file;
    } else if (const auto* close = std::get_if<CloseSession>(&action)) {
      scheduler_.fail(fmt::format("the protocol is kept: the home closes the session of n{}: {}",
                                  close->node.value, close->reason));
      continue;
    } else {
      continue;  // pins, and that nobody knows a directory any more
    }
    directories_[dir].queue.push_back(std::move(action));
    pump(dir);
  }
  actions.clear();
}

void NameHome::pump(FileId dir) {
  Directory& d = directories_[dir];
  if (d.busy || d.queue.empty()) return;
  d.busy = true;
  scheduler_.after(Delay::HomeQueue, [this, dir] {
    Directory& late = directories_[dir];
    HomeAction action = std::move(late.queue.front());
    late.queue.pop_front();
    perform(dir, action);
    late.busy = false;
    pump(dir);
  });
}

void NameHome::perform(FileId dir, HomeAction& action) {
  if (auto* grant = std::get_if<SendGrant>(&action)) {
    send_(grant->node, dir, std::move(grant->grant));
  } else if (const auto* recall = std::get_if<SendRecall>(&action)) {
    scheduler_.trace(-1, number(dir), "home    recall {} to n{}", recall->recall.recall,
                     recall->node.value);
    send_(recall->node, dir, recall->recall);
  } else if (const auto* operation = std::get_if<OperationReady>(&action)) {
    ready(*operation);
  }
}

void NameHome::ready(const OperationReady& ready) {
  auto it = running_.find(ready.operation);
  if (it == running_.end()) {
    scheduler_.fail("OperationReady for an operation that is over");
    return;
  }
  HomeActions actions;
  Running& running = it->second;
  if (ready.error == 0 && running.asked < running.needs.size()) {
    home_.acquire(ready.operation, running.needs[running.asked++], actions);
    take(actions);
    return;
  }
  Reply reply{.call = running.call.call, .error = ready.error, .outcome = {}};
  if (ready.error == 0) reply = execute(running);
  scheduler_.trace(-1, number(file_of(running.call.operation)), "home    operation {} done: {}",
                   ready.operation, reply.error);
  const Running ended = std::move(running);
  running_.erase(it);
  // The reply before anything that the end of the operation sets free, as in the daemon.
  send_(ended.node, file_of(ended.call.operation), std::move(reply));
  for (const OperationNeed& need : ended.needs) home_.finish(ready.operation, need.file, actions);
  take(actions);
}

void NameHome::set(const Running& running, FileId dir, const std::string& name, NameValue value) {
  if (value) {
    directories_[dir].names[name] = *value;
  } else {
    directories_[dir].names.erase(name);
  }
  history_.changed({dir, name}, value, scheduler_.now().ns,
                   NameHistory::CallKey{running.node.value, running.call.call});
}

Reply NameHome::execute(const Running& running) {
  Reply reply{.call = running.call.call, .error = 0, .outcome = {}};
  const auto find = [this](FileId dir, const std::string& name) -> NameValue {
    const auto& names = directories_[dir].names;
    auto it = names.find(name);
    return it == names.end() ? NameValue{} : NameValue{it->second};
  };
  const auto found = [&reply](FileId file) { reply.outcome = coherence::Node{file, {}}; };
  std::visit(Overload{
                 [&](const LookupCall& c) {
                   const NameValue file = find(c.dir, c.name);
                   file ? found(*file) : void(reply.error = ENOENT);
                 },
                 [&](const CreateCall& c) {
                   if (const NameValue file = find(c.dir, c.name)) {
                     c.exclusive ? void(reply.error = EEXIST) : found(*file);
                     return;
                   }
                   const FileId file = fresh_file();
                   set(running, c.dir, c.name, file);
                   found(file);
                 },
                 [&](const RemoveCall& c) {
                   if (!find(c.dir, c.name)) {
                     reply.error = ENOENT;
                     return;
                   }
                   set(running, c.dir, c.name, {});
                 },
                 [&](const RenameCall& c) {
                   const NameValue from = find(c.from_dir, c.from), to = find(c.to_dir, c.to);
                   const bool exchange = c.flags == kExchange;
                   if (!from || (exchange && !to)) {
                     reply.error = ENOENT;
                     return;
                   }
                   set(running, c.from_dir, c.from, exchange ? to : NameValue{});
                   set(running, c.to_dir, c.to, from);
                 },
                 [&](const ReadDirectoryCall& c) {
                   DirectoryPage page;
                   for (const auto& [name, file] : directories_[c.dir].names)
                     page.entries.push_back({name, 0, file, 0});
                   page.end = true;
                   reply.outcome = std::move(page);
                 },
                 [&](const auto&) { scheduler_.fail("an operation that is not about names"); },
             },
             running.call.operation);
  return reply;
}

bool NameHome::idle() const {
  for (const auto& [dir, directory] : directories_)
    if (directory.busy || !directory.queue.empty()) return false;
  return running_.empty() && home_.counts().waiting == 0;
}

std::string NameHome::dump() const {
  std::string out;
  for (const auto& r : home_.pending_recalls(100))
    out += fmt::format("  home waits for the ack of n{}: d{}\n", r.node.value, r.file.inode);
  for (const auto& [id, running] : running_)
    out += fmt::format("  home runs operation {} of n{}: {}\n", id, running.node.value,
                       text(running.call.operation));
  return out;
}

}  // namespace vremote::sim
