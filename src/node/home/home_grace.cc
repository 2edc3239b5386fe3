// After a restart (R1 to R6 in docs/protocol.md): what waits, what nodes bring back, and which
// calls were carried out before.
#include <sys/stat.h>

#include <cerrno>
#include <utility>

#include "node/home/home_service.h"

namespace vremote::node {

using namespace coherence;

void HomeService::begin_grace() { grace_.close(); }

void HomeService::end_grace() {
  for (;;) {
    std::lock_guard draining(drain_mutex_);
    std::unique_lock lock(grace_mutex_);
    auto kept = grace_.next();
    if (!kept) {
      lock.unlock();
      let_go_held();
      return;
    }
    lock.unlock();
    receive_now(kept->first, std::move(kept->second));
  }
}

// Who has them open has said so by now: behind what came of that.
void HomeService::let_go_held() {
  const std::vector<FileId> files = std::exchange(pinned_for_grace_, {});
  {
    std::lock_guard lock(mutex_);
    for (FileId file : files)
      queues_.push(file, [this, file](bool) {
        store_of(file)->unpin(file);
        return true;
      });
  }
  pump(files);
}

void HomeService::remember_calls(std::unique_ptr<CallLog> log,
                                 std::function<uint64_t(NodeId)> incarnation) {
  call_log_ = std::move(log);
  incarnation_of_ = std::move(incarnation);
}

// Its files are open there, or it has nothing more to bring back.
void HomeService::reclaim(NodeId node, const Call& call) {
  const auto& c = std::get<ReclaimCall>(call.operation);
  if (c.done) {
    deliver_(node, c.file, Reply{.call = call.call, .error = 0, .outcome = {}});
    if (brought_back_) brought_back_(node, false);
    return;
  }
  std::vector<FileId> touched{c.file};
  if (!c.pages.empty()) {
    const auto attributes = store_of(c.file)->stat(c.file);
    const bool may = may_bring_back(node) && attributes && S_ISREG(attributes->mode);
    std::scoped_lock lock(grace_mutex_, mutex_);
    HomeActions actions;
    const int error = !may || !grace_.may_reclaim()                     ? ESTALE
                      : home_.reclaimed(node, c.file, c.pages, actions) ? 0
                                                                        : EBUSY;
    enqueue(std::move(actions), touched);
    queues_.push(c.file, [this, node, file = c.file, id = call.call, error](bool) {
      deliver_(node, file, Reply{.call = id, .error = error, .outcome = {}});
      return true;
    });
  } else {
    std::lock_guard lock(mutex_);
    HomeActions actions;
    const bool noted = home_.opened(node, c.file, actions);
    enqueue(std::move(actions), touched);
    // Behind the pin.
    queues_.push(c.file, [this, node, file = c.file, id = call.call, noted](bool) {
      if (!noted) {
        deliver_(node, file, Reply{.call = id, .error = ENFILE, .outcome = {}});
        return true;
      }
      const bool there = store_of(file)->pinned(file);
      if (!there) {
        // What this lets go of was never pinned.
        std::lock_guard again(mutex_);
        HomeActions none;
        home_.receive(node, Release{.file = file, .seen = 0, .leases = false}, none);
      }
      deliver_(node, file, Reply{.call = id, .error = there ? 0 : ESTALE, .outcome = {}});
      return true;
    });
  }
  pump(touched);
}

}  // namespace vremote::node
