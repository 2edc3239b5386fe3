// Who waits for whom at this origin: for `vremote status --blocked`.
#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "node/home/home_service.h"

namespace vremote::node {

using namespace coherence;

namespace {

// Of those a lock waits for: with thousands in line each would name thousands.
constexpr size_t kNamedAhead = 100;
// Moments that are kept: of the last minutes exactly, then of fewer and fewer.
constexpr size_t kMomentsMax = 2048;

}  // namespace

void HomeService::note_arrivals(Instant now) {
  std::lock_guard lock(mutex_);
  if (!arrivals_.empty() && arrivals_.back().second == home_.arrivals()) return;
  arrivals_.emplace_back(now, home_.arrivals());
  if (arrivals_.size() < kMomentsMax) return;
  size_t i = 0;
  std::erase_if(arrivals_, [&](const auto&) { return i++ < kMomentsMax / 2 && i % 2 == 0; });
}

std::vector<HomeService::Waits> HomeService::waits(size_t most) {
  std::vector<Home::BlockedRequest> requests;
  std::map<uint64_t, SentRecall> recalls;
  std::deque<std::pair<Instant, uint64_t>> arrivals;
  std::set<FileId> at_disk;
  {
    std::lock_guard lock(mutex_);
    requests = home_.blocked_requests(most);
    arrivals = arrivals_;
    at_disk = at_disk_;
    for (const Home::BlockedRequest& request : requests)
      for (const auto& [id, node] : request.recalls)
        if (auto it = sent_recalls_.find(id); it != sent_recalls_.end()) recalls.insert(*it);
  }
  std::vector<Waits> out;
  const auto earlier = [](std::optional<Instant>& since, Instant at) {
    if (!since || at < *since) since = at;
  };
  {
    std::lock_guard lock(operations_mutex_);
    const auto node_of = [&](const std::optional<OperationId>& operation, NodeId node) {
      if (!operation) return node;
      auto it = operations_.find(*operation);
      return it == operations_.end() ? NodeId{0} : it->second->node;
    };
    for (const Home::BlockedRequest& request : requests) {
      Waits& wait = out.emplace_back();
      wait.file = request.file;
      wait.what = request.operation ? "operation" : "lease";
      if (request.resource == Resource::Data) wait.pages = request.range;
      wait.who = {node_of(request.operation, request.node), 0};
      // The first moment at which it had come; one that came after the last does not wait yet.
      if (!request.operation) {
        const auto moment = std::ranges::lower_bound(arrivals, request.arrival, {},
                                                     &std::pair<Instant, uint64_t>::second);
        if (moment != arrivals.end()) wait.since = moment->first;
      }
      if (request.operation)
        if (auto it = operations_.find(*request.operation); it != operations_.end())
          wait.since = it->second->since;
      for (const auto& [id, node] : request.recalls) {
        wait.waits_for.push_back({node, 0});
        if (auto it = recalls.find(id); it != recalls.end()) earlier(wait.since, it->second.since);
      }
      wait.in_line = request.recalls.empty();
      for (const auto& ahead : request.behind)
        wait.waits_for.push_back({node_of(ahead.operation, ahead.node), 0});
      if (!wait.in_line && at_disk.contains(request.file)) {
        wait.waits_for = {{NodeId{0}, 0}};
        wait.at_disk = true;
      }
    }
    std::set<OperationId> in_line;
    for (const Home::BlockedRequest& request : requests)
      if (request.operation) in_line.insert(*request.operation);
    for (const auto& [id, running] : operations_) {
      if (out.size() >= most) break;
      if (in_line.contains(id)) continue;
      Waits& wait = out.emplace_back();
      wait.file = file_of(running->call.operation);
      wait.what = "operation";
      wait.who = {running->node, 0};
      wait.waits_for = {{NodeId{0}, 0}};
      wait.at_disk = true;
      wait.since = running->since;
    }
  }
  for (const FileQueues::Account& account : queues_.accounts(most - std::min(most, out.size()))) {
    Waits& wait = out.emplace_back();
    wait.file = account.file;
    wait.what = account.what;
    if (!account.pages.empty()) wait.pages = account.pages;
    wait.who = {account.node, 0};
    wait.waits_for = {{NodeId{0}, 0}};
    wait.at_disk = true;
    wait.since = account.since;
  }
  std::lock_guard lock(locks_mutex_);
  for (const LockTable::BlockedRequest& blocked : locks_.blocked_requests(most, kNamedAhead)) {
    const LockTable::Request& request = blocked.request;
    Waits& wait = out.emplace_back();
    wait.file = request.file;
    wait.what = request.kind == LockKind::Flock ? "flock" : "lock";
    wait.bytes = {request.range.start, request.range.end};
    wait.who = {request.owner.node, request.pid};
    for (const HeldLock& held : blocked.held_by)
      wait.waits_for.push_back({held.owner.node, held.pid});
    if (auto it = lock_waiters_.find(request.ticket); it != lock_waiters_.end())
      wait.since = it->second.since;
  }
  return out;
}

std::string HomeService::path_of(FileId file) {
  store::Store* store = store_of(file);
  return store == nullptr ? std::string() : store->path_of(file);
}

std::string HomeService::described(FileId file) {
  std::string path = path_of(file);
  // One line, whatever is in a name.
  std::ranges::replace_if(
      path, [](unsigned char c) { return c < ' ' || c == 127; }, '?');
  return fmt::format("export {}: {}inode {}",
                     file.export_index < export_names_.size() ? export_names_[file.export_index]
                                                              : std::to_string(file.export_index),
                     path.empty() ? "" : path + ", ", file.inode);
}

}  // namespace vremote::node
