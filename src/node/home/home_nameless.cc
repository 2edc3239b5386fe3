// Files without a name, which are there as long as somebody has them open.
#include "net/event_loop.h"
#include "node/home/home_service.h"

namespace vremote::node {

using namespace coherence;

// A file without a name lives as long as somebody has it open: whoever made it has, from now on.
// Until the home knows that, the store keeps it.
void HomeService::note_nameless(const Running& running, FileId file) {
  std::vector<FileId> touched{file};
  {
    std::lock_guard lock(mutex_);
    HomeActions actions;
    bool abandoned = false;
    {
      // Once that is said, node_gone() comes for what is noted here.
      std::lock_guard operations(operations_mutex_);
      abandoned = running.abandoned;
    }
    if (!abandoned) home_.opened(running.node, file, actions);
    enqueue(std::move(actions), touched);
    queues_.push(file, [this, file](bool) {
      store_of(file)->unpin(file);
      return true;
    });
  }
  pump(touched);
}

// It is pinned for a node that is gone. `nameless`: or will perhaps be so.
void HomeService::leave_behind(FileId file, const std::string& name, bool is_back, bool nameless) {
  bool kept = nameless;
  if (kept) {
    std::lock_guard lock(left_behind_mutex_);
    kept = left_behind_.add(file, name, is_back, net::EventLoop::now());
  }
  if (!kept) store_of(file)->unpin(file);
}

void HomeService::came_back(const std::string& name) {
  std::lock_guard lock(left_behind_mutex_);
  left_behind_.came_back(name, net::EventLoop::now());
}

void HomeService::let_go_departed() {
  for (const auto& store : stores_)
    if (store->has_old_departed())
      disk_threads_.submit([&store = *store] { store.let_go_departed(); });
  std::vector<FileId> old;
  {
    std::lock_guard lock(left_behind_mutex_);
    old = left_behind_.take_old(net::EventLoop::now());
  }
  if (old.empty()) return;
  disk_threads_.submit([this, old = std::move(old)] {
    for (FileId file : old) store_of(file)->unpin(file);
  });
}

}  // namespace vremote::node
