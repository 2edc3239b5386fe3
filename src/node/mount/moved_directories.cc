#include "node/mount/moved_directories.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <utility>

namespace vremote::node {

MovedDirectories::~MovedDirectories() {
  std::lock_guard lock(mutex_);
  for (auto& [tid, moving] : moving_) moving.second.timer.cancel();
}

void MovedDirectories::told(uint32_t tid, uint64_t parent, const std::string& name, uint64_t node) {
  uint64_t id = 0;
  {
    std::lock_guard lock(mutex_);
    auto [known, fresh] = parents_.try_emplace(node, parent);
    if (fresh || known->second == parent) return;
    if (tid == 0 || moving_.contains(tid) || ours_.contains(tid)) return;
    id = next_++;
    Moving moving;
    moving.parent = parent;
    moving.timer = loop_.call_after(kPatienceNs, [this, tid, id] { let_go(tid, id); });
    moving_.emplace(tid, std::pair{id, std::move(moving)});
    count_ = moving_.size();
  }
  threads_.submit([this, tid, id, parent, name, node] { move(tid, id, parent, name, node); });
}

void MovedDirectories::move(uint32_t tid, uint64_t id, uint64_t parent, const std::string& name,
                            uint64_t node) {
  if (const auto directory = view_.open(parent)) {
    const auto self = static_cast<uint32_t>(::gettid());
    {
      std::lock_guard lock(mutex_);
      ours_.insert(self);
    }
    struct stat st {};
    const bool there =
        ::fstatat(directory->get(), name.c_str(), &st, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT) == 0;
    std::lock_guard lock(mutex_);
    ours_.erase(self);
    if (auto known = parents_.find(node); there && known != parents_.end()) known->second = parent;
  }
  let_go(tid, id);
}

void MovedDirectories::let_go(uint32_t tid, uint64_t id) {
  std::vector<Task> held_back;
  net::Timer timer;  // ends without the lock
  {
    std::lock_guard lock(mutex_);
    auto it = moving_.find(tid);
    if (it == moving_.end() || it->second.first != id) return;
    held_back = std::move(it->second.second.held_back);
    timer = std::move(it->second.second.timer);
    moving_.erase(it);
    count_ = moving_.size();
  }
  for (Task& answer : held_back) answer();
}

void MovedDirectories::forget(uint64_t node) {
  std::lock_guard lock(mutex_);
  parents_.erase(node);
}

bool MovedDirectories::hold_back(uint32_t tid, uint64_t directory, Task& answer) {
  std::lock_guard lock(mutex_);
  if (moving_.empty()) return false;
  auto it = moving_.find(tid);
  if (it == moving_.end() || it->second.second.parent == directory) return false;
  it->second.second.held_back.push_back(std::move(answer));
  return true;
}

}  // namespace vremote::node
