// What the home decides, put into the queues of its files: whatever is about one file is carried
// out in the order in which it was decided.
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cerrno>

#include "base/overload.h"
#include "net/event_loop.h"
#include "node/home/home_service.h"

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
PageRange pages_of(const Flush& flush) {
  PageRange pages{kPageEnd, 0};
  for (const Extent& extent : flush.extents) {
    const PageRange its = PageRange::of_bytes(extent.offset, extent.bytes.size());
    pages = {std::min(pages.first, its.first), std::max(pages.end, its.end)};
  }
  return pages.empty() ? PageRange{} : pages;
}
uint64_t work_of(const Fetch& fetch) {
  return kPieceOfWork + std::min(fetch.range.byte_length(), store::kReadMax);
}

}  // namespace

void HomeService::enqueue(HomeActions&& actions, std::vector<FileId>& touched) {
  for (HomeAction& action : actions)
    std::visit(Overload{[&](auto& a) { put(std::move(a), touched); },
                        [&](vremote::coherence::CloseSession& a) { give_up(a.node, a.reason); }},
               action);
}

void HomeService::push(const FileQueues::Account& account, std::vector<FileId>& touched,
                       FileQueues::Item item) {
  touched.push_back(account.file);
  queues_.push(account, std::move(item));
}

// For one that waits for nothing.
template <class Do>
void HomeService::push_now(FileId file, std::vector<FileId>& touched, Do work) {
  touched.push_back(file);
  queues_.push(file, [work = std::move(work)](bool) mutable {
    work();
    return true;
  });
}

void HomeService::put(SendGrant&& a, std::vector<FileId>& touched) {
  metrics_.add(Counter::Grants);
  const FileQueues::Account account{a.grant.file, a.node, "lease", a.data, net::EventLoop::now()};
  push(account, touched,
       [this, a = std::move(a)](bool may_block) mutable { return run(a, may_block); });
}

void HomeService::put(SendRecall&& a, std::vector<FileId>& touched) {
  metrics_.add(Counter::RecallsSent);
  sent_recalls_.insert_or_assign(a.recall.recall, SentRecall{a.node, net::EventLoop::now()});
  push_now(a.recall.file, touched, [this, a] { deliver_(a.node, a.recall.file, a.recall); });
}

void HomeService::put(ApplyFlush&& a, std::vector<FileId>& touched) {
  const uint64_t work = work_of(a.flush);
  undone_.begin(a.node, work);
  const FileQueues::Account account{a.flush.file, a.node, "write", pages_of(a.flush),
                                    net::EventLoop::now()};
  push(account, touched, [this, work, a = std::move(a)](bool may_block) mutable {
    if (!run(a, may_block)) return false;
    undone_.end(a.node, work);
    return true;
  });
}

void HomeService::put(ApplyAttributes&& a, std::vector<FileId>& touched) {
  push_now(a.file, touched, [this, a] {
    if (auto done = store_of(a.file)->apply(a.file, a.attributes);
        !done && done.error().code != ESTALE)
      spdlog::error("{}: size or times not stored: {}", described(a.file), done.error().what);
    changed(a.file, false);
  });
}

void HomeService::put(ServeFetch&& a, std::vector<FileId>& touched) {
  undone_.begin(a.node, work_of(a.fetch));
  const FileQueues::Account account{a.fetch.file, a.node, "read", a.fetch.range,
                                    net::EventLoop::now()};
  push(account, touched, [this, a](bool may_block) mutable {
    if (!run(a, may_block)) return false;
    undone_.end(a.node, work_of(a.fetch));
    return true;
  });
}

void HomeService::put(OperationReady&& a, std::vector<FileId>& touched) {
  push_now(a.file, touched, [this, id = a.operation, error = a.error] {
    if (error != 0) {
      refuse(id, error);
    } else {
      advance(id);
    }
  });
}

void HomeService::put(SendShowSize&& a, std::vector<FileId>& touched) {
  sent_recalls_.insert_or_assign(a.show.show, SentRecall{a.node, net::EventLoop::now()});
  push_now(a.show.file, touched, [this, a] { deliver_(a.node, a.show.file, a.show); });
}

void HomeService::put(SendAnnounced&& a, std::vector<FileId>& touched) {
  push_now(a.announced.file, touched,
           [this, a] { deliver_(a.node, a.announced.file, a.announced); });
}

void HomeService::put(SizesShown&& a, std::vector<FileId>& touched) {
  push_now(a.file, touched, [this, id = a.operation] { all_know(id); });
}

void HomeService::put(PinFile&& a, std::vector<FileId>& touched) {
  push_now(a.file, touched, [this, a] {
    if (auto done = store_of(a.file)->pin(a.file); !done)
      spdlog::debug("pin: {}", done.error().what);
  });
}

void HomeService::put(UnpinFile&& a, std::vector<FileId>& touched) {
  push_now(a.file, touched, [this, a] { store_of(a.file)->unpin(a.file); });
}

void HomeService::put(FileIdle&& a, std::vector<FileId>& touched) {
  push_now(a.file, touched, [this, a] {
    store_of(a.file)->forget(a.file);
    std::lock_guard lock(unsynced_mutex_);
    refusals_.forget(a.file);
  });
}

}  // namespace vremote::node
