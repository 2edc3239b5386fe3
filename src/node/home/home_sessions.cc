// The nodes of a home: who keeps others waiting too long, and what is done when a session is over.
#include <spdlog/spdlog.h>

#include <algorithm>

#include "node/home/home_service.h"

namespace vremote::node {

using namespace coherence;

namespace {

// Recalls looked at in one tick: the oldest.
constexpr size_t kBlockersMax = 4096;

}  // namespace

void HomeService::leave(NodeId node, const Call& call) {
  {
    std::lock_guard lock(left_mutex_);
    left_.insert(node);
  }
  if (brought_back_) brought_back_(node, true);
  gone(node, {}, false);
  deliver_(node, file_of(call.operation), Reply{.call = call.call, .error = 0, .outcome = {}});
}

void HomeService::watch(Watch watch) {
  patience_ = Patience(watch.options);
  watch_ = std::move(watch);
}

void HomeService::tick(Instant now) {
  sync_threads_.help();
  let_go_departed();
  note_arrivals(now);
  {
    std::lock_guard lock(locks_mutex_);
    followed_.clear();
  }
  if (!watch_) return;
  std::vector<Patience::Blocker> blockers;
  {
    std::lock_guard lock(mutex_);
    std::map<FileId, uint64_t> at_work;
    at_disk_.clear();
    for (const Home::PendingRecall& recall : home_.pending_recalls(kBlockersMax)) {
      if (const auto first = queues_.first(recall.file)) {
        at_work.emplace(recall.file, *first);
        if (auto it = at_work_.find(recall.file); it != at_work_.end() && it->second == *first)
          at_disk_.insert(recall.file);
      }
      blockers.push_back({recall.id, recall.node, recall.file, recall.behind,
                          at_disk_.contains(recall.file) || undone_.has_stopped(recall.node)});
    }
    at_work_.swap(at_work);
  }
  {
    std::lock_guard lock(locks_mutex_);
    for (const LockTable::Blocker& lock_blocker : locks_.blockers())
      blockers.push_back({0, lock_blocker.node, lock_blocker.file});
  }
  std::vector<Patience::Verdict> verdicts;
  {
    std::lock_guard lock(patience_mutex_);
    watched_at_ = now;
    verdicts = patience_.judge(now, blockers, watch_->heard);
  }
  for (const Patience::Verdict& verdict : verdicts)
    (verdict.fence ? watch_->fence : verdict.silence ? watch_->silence : watch_->report)(verdict);
}

void HomeService::is_too_late(NodeId node) {
  {
    std::lock_guard lock(left_mutex_);
    left_.insert(node);  // what it still sends is of before
  }
  {
    std::scoped_lock lock(drain_mutex_, grace_mutex_);
    grace_.node_gone(node);
  }
  give_up(node, "it did not bring back in time what it had");
}

void HomeService::give_up(NodeId node, const std::string& reason) {
  {
    std::lock_guard lock(patience_mutex_);
    patience_.give_up(node, watched_at_.load(), reason);
  }
  give_up_(node, reason);
}

// What others wait for to get from it; it may have that open without having said so.
std::vector<FileId> HomeService::wanted_of(NodeId node) const {
  std::vector<FileId> files;
  {
    std::lock_guard lock(mutex_);
    for (const Home::PendingRecall& recall : home_.pending_recalls(kBlockersMax))
      if (recall.node == node) files.push_back(recall.file);
  }
  std::ranges::sort(files);
  files.erase(std::unique(files.begin(), files.end()), files.end());
  return files;
}

void HomeService::node_gone(NodeId node, const std::string& name, bool is_back) {
  {
    std::lock_guard lock(left_mutex_);
    left_.erase(node);  // nothing of it arrives any more
  }
  std::vector<FileId> wanted;
  if (!name.empty()) wanted = wanted_of(node);
  if (wanted.empty()) {
    gone(node, name, is_back);
    return;
  }
  // Before those who wait go on: it may be the last name that they take.
  disk_threads_.submit([this, node, name, is_back, wanted = std::move(wanted)] {
    for (FileId file : wanted)
      if (store_of(file)->pin(file)) leave_behind(file, name, is_back, true);
    gone(node, name, is_back);
  });
}

void HomeService::gone(NodeId node, const std::string& name, bool is_back) {
  {
    std::scoped_lock lock(drain_mutex_, grace_mutex_);
    grace_.node_gone(node);
  }
  {
    std::lock_guard lock(operations_mutex_);
    for (auto& [id, running] : operations_)
      if (running->node == node && !running->only_takes) running->abandoned = true;
  }
  std::vector<FileId> touched;
  std::vector<std::pair<NodeId, Call>> again;
  {
    std::lock_guard lock(locks_mutex_);
    std::erase_if(behind_fence_, [&](const auto& entry) { return entry.first == node; });
    again.swap(behind_fence_);
    behind_fence_of_.clear();
    std::erase_if(lock_waiters_, [&](const auto& entry) { return entry.first.node == node; });
    lock_waiters_of_.erase(node);
    std::vector<LockTable::Ticket> woken;
    locks_.node_gone(node, woken);
    for (LockTable::Ticket ticket : woken) reply_lock({}, ticket, 0, {}, touched);
  }
  {
    std::lock_guard lock(mutex_);
    HomeActions actions;
    std::erase_if(sent_recalls_, [&](const auto& entry) { return entry.second.node == node; });
    home_.node_gone(node, actions);
    std::vector<FileId> unpinned;
    if (!name.empty())
      std::erase_if(actions, [&](const HomeAction& action) {
        const auto* unpin = std::get_if<UnpinFile>(&action);
        if (unpin != nullptr) unpinned.push_back(unpin->file);
        return unpin != nullptr;
      });
    enqueue(std::move(actions), touched);
    for (FileId file : unpinned) {
      touched.push_back(file);
      queues_.push(file, [this, file, name, is_back](bool) {
        leave_behind(file, name, is_back, store_of(file)->is_nameless(file));
        return true;
      });
    }
  }
  pump(touched);
  for (const auto& [who, call] : again) lock(who, call);
}

}  // namespace vremote::node
