// What of the exports is not on the disk yet (coherence/unsynced_files.h).
#include <cerrno>
#include <utility>

#include "net/event_loop.h"
#include "node/home/home_service.h"

namespace vremote::node {

using namespace coherence;

namespace {

// The kernel writes by itself what has been dirty for half a minute.
constexpr int64_t kSyncDelayNs = 35'000'000'000;
constexpr int64_t kOneByOneNs = 1'000'000'000;

}  // namespace

void HomeService::changed(FileId file, bool by_call) {
  std::lock_guard lock(unsynced_mutex_);
  unsynced_.changed(file, by_call);
}

// What was changed before the disk was asked is there when it has answered. Nodes take the file for
// synced then, so fdatasync(2) does for files of which it leaves nothing behind only.
Result<Outcome> HomeService::sync(const Running& running) {
  const FileId file = file_of(running.call.operation);
  SyncCall call = std::get<SyncCall>(running.call.operation);
  uint64_t begun = 0;
  {
    std::lock_guard lock(unsynced_mutex_);
    refusals_.seen(NodeId{newest_.load()});
    begun = unsynced_.sync_begins();
    call.data_only = call.data_only && !unsynced_.needs_fsync(file);
  }
  auto outcome = store_of(file)->execute(running.call.caller, Operation(call));
  const bool by_disk = !outcome && (outcome.error().code == EIO || outcome.error().code == ENOSPC ||
                                    outcome.error().code == EDQUOT);
  if (!outcome && !by_disk) return outcome;
  if (by_disk) refused_sync_();
  std::lock_guard lock(unsynced_mutex_);
  if (outcome) unsynced_.synced(file, begun);
  const int told = refusals_.tell(file, running.node, outcome ? 0 : outcome.error().code);
  if (outcome && told != 0) return fail(told, "the disk has refused something of it");
  return outcome;
}

void HomeService::begin_unsynced() {
  {
    std::lock_guard lock(unsynced_mutex_);
    unsynced_.all_changed();
    syncing_all_ = true;
  }
  sync_in_background();
}

void HomeService::sync_when_due(Instant now) {
  {
    std::lock_guard lock(unsynced_mutex_);
    if (!unsynced_.too_many()) all_changed_since_.reset();
    if (!unsynced_.too_many() || syncing_all_) return;
    if (!all_changed_since_) all_changed_since_ = now;
    if (now - *all_changed_since_ < kSyncDelayNs) return;
    all_changed_since_.reset();
    syncing_all_ = true;
  }
  sync_in_background();
}

// So that files are told apart again.
void HomeService::sync_in_background() {
  sync_threads_.submit([this] {
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

bool HomeService::is_syncing() const {
  std::lock_guard lock(unsynced_mutex_);
  return syncing_all_;
}

Status HomeService::sync_all() {
  std::vector<FileId> files;
  bool too_many = false;
  {
    std::lock_guard lock(unsynced_mutex_);
    files = unsynced_.files();
    too_many = unsynced_.too_many();
  }
  const Instant deadline = net::EventLoop::now() + kOneByOneNs;
  for (FileId file : files) {
    if (net::EventLoop::now() >= deadline) {
      too_many = true;
      break;
    }
    const auto done = store_of(file)->execute({}, SyncCall{file, false});
    if (!done && done.error().code != ESTALE) return std::unexpected(done.error());
  }
  if (too_many)
    for (const auto& store : stores_) VR_TRY_VOID(store->sync_everything());
  return {};
}

}  // namespace vremote::node
