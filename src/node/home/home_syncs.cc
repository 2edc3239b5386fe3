// What of the exports is not on the disk yet (coherence/unsynced_files.h).
#include <algorithm>
#include <cerrno>
#include <utility>

#include "net/event_loop.h"
#include "node/home/home_service.h"

namespace vremote::node {

using namespace coherence;

void HomeService::changed(FileId file) {
  {
    std::lock_guard lock(unsynced_mutex_);
    unsynced_.changed(file);
    if (!unsynced_.too_many()) return;
  }
  sync_in_background();
}

// What was changed before the disk was asked is there when it has answered.
Result<Outcome> HomeService::sync(const Running& running) {
  const FileId file = file_of(running.call.operation);
  uint64_t begun = 0;
  {
    std::lock_guard lock(unsynced_mutex_);
    begun = unsynced_.sync_begins();
  }
  auto outcome = store_of(file)->execute(running.call.caller, running.call.operation);
  if (outcome) {
    std::lock_guard lock(unsynced_mutex_);
    unsynced_.synced(file, begun);
  }
  return outcome;
}

void HomeService::begin_unsynced() {
  {
    std::lock_guard lock(unsynced_mutex_);
    unsynced_.all_changed();
  }
  sync_in_background();
}

// So that they are told apart again.
void HomeService::sync_in_background() {
  {
    std::lock_guard lock(unsynced_mutex_);
    if (std::exchange(syncing_all_, true)) return;
  }
  disk_threads_.submit([this] {
    uint64_t begun = 0;
    {
      std::lock_guard lock(unsynced_mutex_);
      begun = unsynced_.sync_begins();
    }
    bool done = true;
    for (const auto& store : stores_) done = store->sync_everything().has_value() && done;
    std::lock_guard lock(unsynced_mutex_);
    if (done) unsynced_.all_synced(begun);
    syncing_all_ = false;
  });
}

bool HomeService::sync_all(int64_t patience_ms) {
  constexpr size_t kOneByOneMax = 1024;
  const Instant deadline = net::EventLoop::now() + patience_ms * 1'000'000;
  std::vector<FileId> files;
  bool too_many = false;
  {
    std::lock_guard lock(unsynced_mutex_);
    files = unsynced_.files();
    too_many = unsynced_.too_many();
  }
  if (too_many || files.size() > kOneByOneMax)
    return std::ranges::all_of(
        stores_, [](const auto& store) { return store->sync_everything().has_value(); });
  for (FileId file : files) {
    if (net::EventLoop::now() >= deadline) return false;
    const auto done = store_of(file)->execute({}, SyncCall{file, false});
    if (!done && done.error().code != ESTALE) return false;
  }
  return true;
}

}  // namespace vremote::node
