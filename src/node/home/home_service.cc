#include "node/home/home_service.h"

#include <spdlog/spdlog.h>

#include <algorithm>

#include "base/overload.h"
#include "base/random_number.h"
#include "net/event_loop.h"

namespace vremote::node {

using namespace coherence;

namespace {

// What one waits for, and what keeping it costs.
constexpr uint64_t kPieceOfWork = 1024;

uint64_t work_of(const Flush& flush) {
  uint64_t bytes = kPieceOfWork + flush.extents.size() * sizeof(Extent);
  for (const Extent& extent : flush.extents) bytes += extent.bytes.size();
  return bytes;
}
uint64_t work_of(const Fetch& fetch) {
  return kPieceOfWork + std::min(fetch.range.byte_length(), store::kReadMax);
}

}  // namespace

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
      queues_.push(file, [this, file](bool) {
        store_of(file)->forget(file);
        return true;
      });
      touched.push_back(file);
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

void HomeService::enqueue(HomeActions&& actions, std::vector<FileId>& touched) {
  for (HomeAction& action : actions) {
    std::visit(Overload{
                   [&](SendGrant& a) {
                     metrics_.add(Counter::Grants);
                     touched.push_back(a.grant.file);
                     queues_.push(a.grant.file, [this, a = std::move(a)](bool may_block) mutable {
                       return run(a, may_block);
                     });
                   },
                   [&](SendRecall& a) {
                     metrics_.add(Counter::RecallsSent);
                     sent_recalls_.insert_or_assign(a.recall.recall,
                                                    SentRecall{a.node, net::EventLoop::now()});
                     touched.push_back(a.recall.file);
                     queues_.push(a.recall.file, [this, a](bool) {
                       deliver_(a.node, a.recall.file, a.recall);
                       return true;
                     });
                   },
                   [&](ApplyFlush& a) {
                     touched.push_back(a.flush.file);
                     const uint64_t work = work_of(a.flush);
                     undone_.begin(a.node, work);
                     queues_.push(a.flush.file,
                                  [this, work, a = std::move(a)](bool may_block) mutable {
                                    if (!run(a, may_block)) return false;
                                    undone_.end(a.node, work);
                                    return true;
                                  });
                   },
                   [&](ApplyAttributes& a) {
                     touched.push_back(a.file);
                     queues_.push(a.file, [this, a](bool) {
                       if (auto done = store_of(a.file)->apply(a.file, a.attributes);
                           !done && done.error().code != ESTALE)
                         spdlog::error("export {}: size or times of inode {} not stored: {}",
                                       a.file.export_index, a.file.inode, done.error().what);
                       changed(a.file, false);
                       return true;
                     });
                   },
                   [&](ServeFetch& a) {
                     touched.push_back(a.fetch.file);
                     undone_.begin(a.node, work_of(a.fetch));
                     queues_.push(a.fetch.file, [this, a](bool may_block) mutable {
                       if (!run(a, may_block)) return false;
                       undone_.end(a.node, work_of(a.fetch));
                       return true;
                     });
                   },
                   [&](OperationReady& a) {
                     touched.push_back(a.file);
                     queues_.push(a.file, [this, id = a.operation, error = a.error](bool) {
                       if (error != 0) {
                         refuse(id, error);
                       } else {
                         advance(id);
                       }
                       return true;
                     });
                   },
                   [&](SendShowSize& a) {
                     sent_recalls_.insert_or_assign(a.show.show,
                                                    SentRecall{a.node, net::EventLoop::now()});
                     touched.push_back(a.show.file);
                     queues_.push(a.show.file, [this, a](bool) {
                       deliver_(a.node, a.show.file, a.show);
                       return true;
                     });
                   },
                   [&](SendAnnounced& a) {
                     touched.push_back(a.announced.file);
                     queues_.push(a.announced.file, [this, a](bool) {
                       deliver_(a.node, a.announced.file, a.announced);
                       return true;
                     });
                   },
                   [&](SizesShown& a) {
                     touched.push_back(a.file);
                     queues_.push(a.file, [this, id = a.operation](bool) {
                       all_know(id);
                       return true;
                     });
                   },
                   [&](PinFile& a) {
                     touched.push_back(a.file);
                     queues_.push(a.file, [this, a](bool) {
                       if (auto done = store_of(a.file)->pin(a.file); !done)
                         spdlog::debug("pin: {}", done.error().what);
                       return true;
                     });
                   },
                   [&](UnpinFile& a) {
                     touched.push_back(a.file);
                     queues_.push(a.file, [this, a](bool) {
                       store_of(a.file)->unpin(a.file);
                       return true;
                     });
                   },
                   [&](FileIdle& a) {
                     touched.push_back(a.file);
                     queues_.push(a.file, [this, a](bool) {
                       store_of(a.file)->forget(a.file);
                       return true;
                     });
                   },
                   [&](vremote::coherence::CloseSession& a) { give_up(a.node, a.reason); },
               },
               action);
  }
}

}  // namespace vremote::node
