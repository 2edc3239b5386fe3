#include "node/home/home_service.h"

#include <spdlog/spdlog.h>

#include "base/overload.h"
#include "base/random_number.h"
#include "net/event_loop.h"

namespace vremote::node {

using namespace coherence;

HomeService::HomeService(std::vector<std::unique_ptr<store::Store>> stores,
                         HelperThreads& disk_threads, Metrics& metrics, Deliver deliver,
                         GiveUp give_up, UndoneWork::Throttle throttle, Mistakes mistakes,
                         const HomeLimits& limits)
    : stores_(std::move(stores)),
      metrics_(metrics),
      deliver_(std::move(deliver)),
      give_up_(std::move(give_up)),
      undone_(std::move(throttle)),
      disk_threads_(disk_threads),
      queues_(disk_threads),
      mistakes_(mistakes),
      home_(mistakes, limits),
      locks_(mistakes),
      lock_table_number_(random_number()),
      grace_(2 * kRequestsMax, mistakes) {}

HomeService::~HomeService() = default;

store::Store* HomeService::store_of(FileId file) const {
  return file.export_index < stores_.size() ? stores_[file.export_index].get() : nullptr;
}

void HomeService::receive(NodeId node, ToHome&& message) {
  for (uint32_t newest = newest_.load();
       newest < node.value && !newest_.compare_exchange_weak(newest, node.value);) {
  }
  if (!passes_grace(message)) {
    std::unique_lock lock(grace_mutex_);
    switch (grace_.admit(node, message)) {
      case GraceGate::Verdict::Serve:
        break;
      case GraceGate::Verdict::Kept:
        return;
      case GraceGate::Verdict::TooMany:
        lock.unlock();
        give_up(node, "more requests than a node may have waiting");
        return;
    }
  }
  receive_now(node, std::move(message));
}

void HomeService::receive_now(NodeId node, ToHome&& message) {
  if (store_of(file_of(message)) == nullptr) {
    give_up(node, "a message about an export that does not exist");
    return;
  }
  {
    std::lock_guard lock(left_mutex_);
    if (left_.contains(node)) return;
  }
  if (auto* call = std::get_if<Call>(&message)) {
    if (std::holds_alternative<LeaveCall>(call->operation)) {
      leave(node, *call);
      return;
    }
    if (std::holds_alternative<LockCall>(call->operation)) {
      lock(node, *call);
      return;
    }
    if (std::holds_alternative<ReclaimCall>(call->operation)) {
      reclaim(node, *call);
      return;
    }
    start(node, std::move(*call));
    return;
  }
  if (const auto* asked = std::get_if<FollowWait>(&message)) {
    follow(node, *asked);
    return;
  }
  if (const auto* flush = std::get_if<Flush>(&message); flush != nullptr && watch_) {
    std::lock_guard lock(patience_mutex_);
    patience_.progress(node, flush->file, watched_at_.load());
  }
  const FileId file = file_of(message);
  std::vector<FileId> touched;
  {
    std::lock_guard lock(mutex_);
    HomeActions actions;
    if (const auto* ack = std::get_if<RecallAck>(&message); ack != nullptr && !ack->busy)
      if (auto it = sent_recalls_.find(ack->recall);
          it != sent_recalls_.end() && it->second.node == node)
        sent_recalls_.erase(it);
    if (const auto* shown = std::get_if<SizeShown>(&message))
      if (auto it = sent_recalls_.find(shown->show);
          it != sent_recalls_.end() && it->second.node == node)
        sent_recalls_.erase(it);
    std::visit(Overload{[](Call&) {}, [](FollowWait&) {},
                        [&](auto& m) { home_.receive(node, std::move(m), actions); }},
               message);
    enqueue(std::move(actions), touched);
    // Bytes of a file that nobody has a lease of, nor open: the store need not go on knowing it.
    if (!touched.empty() && !home_.knows(file)) {
      put(FileIdle{file}, touched);
    }
  }
  pump(touched);
}

HomeCounts HomeService::counts() const {
  std::lock_guard lock(mutex_);
  return home_.counts();
}

void HomeService::pump(const std::vector<FileId>& touched) {
  for (FileId file : touched) queues_.pump(file);
}

}  // namespace vremote::node
