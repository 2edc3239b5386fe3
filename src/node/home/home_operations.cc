// Operations at the home, from the call to the reply: the leases they take, the disk, and what they
// let go of. Those of nobody only take: what was changed outside, what is dirty at other nodes.
#include <sys/stat.h>

#include <cerrno>
#include <chrono>
#include <thread>

#include "coherence/call_size.h"
#include "net/event_loop.h"
#include "node/home/home_service.h"

namespace vremote::node {

using namespace coherence;

namespace {

// Of one node's calls that are not answered: as many as programs could have under way at once.
constexpr uint64_t kCallBytesMax = uint64_t{128} << 20;

}  // namespace

void HomeService::start(NodeId node, Call&& call) {
  const uint64_t bytes = bytes_of(call);
  int error = 0;
  {
    std::lock_guard lock(operations_mutex_);
    Unanswered& of_node = operations_of_[node];
    if (of_node.calls >= kRequestsMax || of_node.bytes >= kCallBytesMax) {
      error = ENOBUFS;
    } else {
      ++of_node.calls;
      of_node.bytes += bytes;
    }
  }
  if (error != 0) {
    deliver_(node, file_of(call.operation),
             Reply{.call = call.call, .error = error, .outcome = {}});
    return;
  }
  auto running = std::make_unique<Running>();
  running->node = node;
  running->needs = first_needs(node, call.operation);
  running->call = std::move(call);
  running->bytes = bytes;
  running->since = net::EventLoop::now();
  OperationId id = 0;
  {
    std::lock_guard lock(operations_mutex_);
    id = running->id = next_operation_++;
    operations_.emplace(id, std::move(running));
  }
  advance(id);
}

void HomeService::advance(OperationId id) {
  Running* running = nullptr;
  {
    std::lock_guard lock(operations_mutex_);
    running = operations_.at(id).get();
  }
  if (running->held == running->needs.size() && !running->second_part) {
    running->second_part = true;
    std::vector<FileId> named;
    for (const NameIn& name : names_of(running->call.operation)) {
      store::Store* store = store_of(name.dir);
      if (store == nullptr) continue;
      auto found = store->execute({}, LookupCall{name.dir, name.name});
      if (!found) continue;
      if (auto* node = std::get_if<Node>(&*found)) named.push_back(node->file);
    }
    for (OperationNeed& need : second_needs(running->node, running->call.operation, named))
      running->needs.push_back(std::move(need));
  }
  std::vector<FileId> touched;
  if (running->held < running->needs.size()) {
    const OperationNeed& need = running->needs[running->held++];
    if (store_of(need.file) == nullptr) {  // a directory of another export in a rename or link
      --running->held;
      running->needs.resize(running->held);
      advance(id);
      return;
    }
    std::lock_guard lock(mutex_);
    HomeActions actions;
    home_.acquire(id, need, actions);
    enqueue(std::move(actions), touched);
  } else {
    const FileId file = file_of(running->call.operation);
    queues_.push(file, [this, running](bool may_block) {
      if (!may_block && !running->only_takes && !is_quick(running->call.operation)) return false;
      execute(*running);
      return true;
    });
    touched.push_back(file);
  }
  pump(touched);
}

void HomeService::refuse(OperationId id, int error) {
  Running* running = nullptr;
  {
    std::lock_guard lock(operations_mutex_);
    running = operations_.at(id).get();
  }
  end(*running, fail(error));
}

OperationId HomeService::start_taking(Why why, FileId file, std::vector<OperationNeed> needs) {
  auto running = std::make_unique<Running>();
  running->only_takes = why;
  running->second_part = true;
  running->since = net::EventLoop::now();
  running->call.operation = SyncCall{file, false};
  running->needs = std::move(needs);
  OperationId id = 0;
  {
    std::lock_guard lock(operations_mutex_);
    id = running->id = next_operation_++;
    operations_.emplace(id, std::move(running));
  }
  advance(id);
  return id;
}

bool HomeService::changed_outside(FileId file, const OutsideChange& change) {
  // S2. Whoever made it may have synced it since: nobody tells us that.
  changed(file, change.entries || change.attributes);
  {
    std::lock_guard lock(mutex_);
    if (!home_.knows(file)) return true;
  }
  {
    std::lock_guard lock(operations_mutex_);
    if (!changing_outside_.insert(file).second) return false;
  }
  metrics_.add(Counter::OutsideChanges);
  start_taking(Why::ChangedOutside, file, outside_needs(file, change));
  return true;
}

std::vector<FileId> HomeService::files_of(std::string_view handle) const {
  std::vector<FileId> files;
  for (const auto& store : stores_)
    if (auto file = store->find(handle)) files.push_back(*file);
  return files;
}

std::vector<FileId> HomeService::known_files() const {
  std::lock_guard lock(mutex_);
  return home_.known_files();
}

bool HomeService::gather(int64_t patience_ms) {
  std::vector<FileId> files;
  {
    std::lock_guard lock(mutex_);
    files = home_.files_dirty_elsewhere();
  }
  std::vector<OperationId> started;
  started.reserve(files.size());
  for (FileId file : files)
    started.push_back(
        start_taking(Why::Gather, file,
                     {{file, Resource::Attributes, LeaseMode::Shared, kUnit, {}},
                      {file, Resource::Data, LeaseMode::Shared, PageRange::all(), {}}}));
  for (int64_t waited = 0;; waited += 5) {
    bool done = true;
    {
      std::lock_guard lock(operations_mutex_);
      for (OperationId id : started) done = done && !operations_.contains(id);
    }
    if (done || waited >= patience_ms) return done;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

void HomeService::execute(Running& running) {
  const FileId file = file_of(running.call.operation);
  if (running.only_takes) {
    Result<Outcome> nothing{Outcome{}};
    if (running.only_takes == Why::ChangedOutside && announce(running, file, std::nullopt, nothing))
      return;
    end(running, std::move(nothing));
    return;
  }
  // Whoever asked for it may have asked again since, in another session, and gone on.
  if (running.abandoned) {
    end(running, fail(ECONNRESET));
    return;
  }
  std::optional<uint64_t> before;
  if (may_grow(running.call.operation) == file) {
    bool watched = false;
    {
      std::lock_guard lock(mutex_);
      watched = home_.watched(file, running.node);
    }
    if (watched)
      if (const auto attributes = store_of(file)->stat(file)) before = attributes->size;
  }
  if (const auto* create = std::get_if<CreateCall>(&running.call.operation);
      create != nullptr && create->is_nameless()) {
    // Who makes it has it open.
    bool may_open = false;
    {
      std::lock_guard lock(mutex_);
      may_open = home_.may_open(running.node);
    }
    if (!may_open) {
      end(running, fail(ENFILE));
      return;
    }
  }
  Result<Outcome> outcome = carry_out(running);
  if (before && outcome && announce(running, file, before, outcome)) return;
  end(running, std::move(outcome));
}

Result<Outcome> HomeService::carry_out(const Running& running) {
  if (std::holds_alternative<SyncCall>(running.call.operation)) return sync(running);
  auto outcome = once(running);
  if (outcome)
    for (FileId file : changed_files(running.call.operation)) changed(file, true);
  return outcome;
}

Result<Outcome> HomeService::once(const Running& running) {
  store::Store& store = *store_of(file_of(running.call.operation));
  if (!call_log_ || running.node.value == 0 || !is_noted(running.call.operation))
    return store.execute(running.call.caller, running.call.operation);
  const CallLog::Key key{incarnation_of_(running.node), running.call.call};
  if (auto before = done_before(running, key)) return std::move(*before);
  call_log_->begin(key, running.call.heard_below);
  auto outcome = store.execute(running.call.caller, running.call.operation);
  const auto* offset = outcome ? std::get_if<Offset>(&*outcome) : nullptr;
  call_log_->end(key, outcome ? 0 : outcome.error().code, offset != nullptr ? offset->value : 0);
  return outcome;
}

std::optional<Result<Outcome>> HomeService::done_before(const Running& running,
                                                        const CallLog::Key& key) {
  const auto done = call_log_->earlier(key);
  const auto answer = answer_again(done, mistakes_);
  if (!answer) return std::nullopt;
  if (*answer != 0) return Result<Outcome>(fail(*answer));
  if (std::holds_alternative<CopyCall>(running.call.operation)) return Outcome{Offset{done->value}};
  // Nobody could change the name since.
  const auto made = [&](FileId dir, const std::string& name) {
    return store_of(dir)->execute({}, LookupCall{dir, name});
  };
  if (const auto* c = std::get_if<CreateCall>(&running.call.operation)) {
    if (c->is_nameless())
      return Result<Outcome>(fail(EIO));  // it went with the daemon that made it
    return made(c->dir, c->name);
  }
  if (const auto* c = std::get_if<SymlinkCall>(&running.call.operation))
    return made(c->dir, c->name);
  if (const auto* c = std::get_if<LinkCall>(&running.call.operation)) return made(c->dir, c->name);
  if (const auto* c = std::get_if<SetAttributesCall>(&running.call.operation)) {
    auto attributes = store_of(c->file)->stat(c->file);
    if (!attributes) return Result<Outcome>(std::unexpected(attributes.error()));
    return Outcome{Node{c->file, *attributes}};
  }
  return Outcome{};
}

// Whether the operation, which still holds all it has taken, must wait until other nodes' kernels
// know how long it has made the file. `before`: nothing when nobody has looked.
bool HomeService::announce(Running& running, FileId file, std::optional<uint64_t> before,
                           Result<Outcome>& outcome) {
  const auto attributes = store_of(file)->stat(file);
  if (!attributes || !S_ISREG(attributes->mode)) return false;
  if (attributes->size <= before.value_or(0)) return false;
  const std::optional<NodeId> caller =
      running.only_takes ? std::nullopt : std::optional(running.node);
  std::vector<FileId> touched;
  {
    std::lock_guard lock(mutex_);
    HomeActions actions;
    if (!home_.watched(file, caller)) return false;
    running.held_back = std::move(outcome);
    // From here on it may be ended by another thread.
    if (!home_.announce(running.id, file, attributes->size, caller, actions)) {
      outcome = std::move(*std::exchange(running.held_back, std::nullopt));
      return false;
    }
    enqueue(std::move(actions), touched);
  }
  pump(touched);
  return true;
}

void HomeService::all_know(OperationId id) {
  Running* running = nullptr;
  {
    std::lock_guard lock(operations_mutex_);
    running = operations_.at(id).get();
  }
  Result<Outcome> outcome = std::move(*running->held_back);
  end(*running, std::move(outcome));
}

void HomeService::end(Running& running, Result<Outcome> outcome) {
  const FileId file = file_of(running.call.operation);
  Reply reply{.call = running.call.call, .error = 0, .outcome = {}};
  const Node* made = nullptr;
  if (outcome) {
    reply.outcome = std::move(*outcome);
    made = std::get_if<Node>(&reply.outcome);
  } else {
    reply.error = outcome.error().code;
  }
  std::optional<Node> node;
  if (made != nullptr) node = *made;
  std::vector<FileId> listed;
  if (const auto* list = std::get_if<ReadDirectoryCall>(&running.call.operation);
      list != nullptr && list->offer_attributes)
    if (const auto* page = std::get_if<DirectoryPage>(&reply.outcome))
      for (const DirectoryEntry& entry : page->entries)
        if (entry.file.generation != 0)
          listed.push_back(entry.file);  // 0: a mount point, not of this export
  if (const auto* create = std::get_if<CreateCall>(&running.call.operation);
      node && create != nullptr && create->is_nameless())
    note_nameless(running, node->file);
  // The reply before anything that the end of the operation sets free: whoever gets it may still
  // rely on it (names, for instance).
  if (!running.only_takes) deliver_(running.node, file, std::move(reply));
  std::vector<FileId> touched;
  {
    std::lock_guard lock(mutex_);
    HomeActions actions;
    for (const OperationNeed& need : running.needs) home_.finish(running.id, need.file, actions);
    if (node) {
      // Who makes a file will write to it; who looks one up mostly reads.
      const bool creates = std::holds_alternative<CreateCall>(running.call.operation);
      home_.offer(running.node, node->file, Resource::Attributes,
                  creates ? LeaseMode::Exclusive : LeaseMode::Shared, actions);
      if (creates && S_ISREG(node->attributes.mode))
        home_.offer(running.node, node->file, Resource::Data, LeaseMode::Exclusive, actions);
    }
    for (FileId listed_file : listed)
      home_.offer(running.node, listed_file, Resource::Attributes, LeaseMode::Shared, actions);
    enqueue(std::move(actions), touched);
  }
  {
    std::lock_guard lock(operations_mutex_);
    if (running.only_takes == Why::ChangedOutside) changing_outside_.erase(file);
    if (!running.only_takes) {
      if (auto it = operations_of_.find(running.node); --it->second.calls == 0) {
        operations_of_.erase(it);
      } else {
        it->second.bytes -= running.bytes;
      }
    }
    operations_.erase(running.id);
  }
  pump(touched);
}

}  // namespace vremote::node
