// What a home leaves to the next daemon of this node beside its files (home_state.h): all other
// nodes bring back what they had, as after a crash; what this machine's processes have is told
// here.
#include <spdlog/spdlog.h>

#include <utility>

#include "net/event_loop.h"
#include "node/home/home_service.h"

namespace vremote::node {

using namespace coherence;

bool HomeService::can_be_handed_over() {
  std::lock_guard lock(operations_mutex_);
  for (const auto& [id, running] : operations_)
    if (running->node.value == 0 && !running->only_takes && running->held_back) return false;
  return true;
}

std::vector<LockCall> HomeService::own_locks() const {
  std::lock_guard lock(locks_mutex_);
  std::vector<LockCall> out;
  for (const LockTable::Held& h : locks_.all())
    if (h.lock.owner.node.value == 0) out.push_back(h.reclaim());
  return out;
}

std::vector<store::Store::Held> HomeService::held() const {
  std::vector<store::Store::Held> out;
  for (const auto& store : stores_)
    for (const store::Store::Held& held : store->held()) out.push_back(held);
  return out;
}

void HomeService::hold(FileId file, Fd descriptor, bool pinned) {
  store::Store* store = store_of(file);
  if (store == nullptr) return;
  if (auto held = store->hold(file, std::move(descriptor), pinned); !held) {
    spdlog::error("{} cannot be held open: {}", described(file), held.error().what);
  } else if (pinned) {
    pinned_for_grace_.push_back(file);
  }
}

void HomeService::no_grace(const std::string& name) {
  std::lock_guard lock(left_behind_mutex_);
  for (FileId file : std::exchange(pinned_for_grace_, {}))
    (void)left_behind_.add(file, name, false, net::EventLoop::now());
}

}  // namespace vremote::node
