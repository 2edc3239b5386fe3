#include "node/home/file_queues.h"

namespace vremote::node {

void FileQueues::push(FileId file, Item item) {
  std::lock_guard lock(mutex_);
  auto& queue = queues_[file];
  if (!queue) queue = std::make_unique<Queue>(Queue{.first = ++items_});
  queue->items.push_back(std::move(item));
}

void FileQueues::pump(FileId file) {
  {
    std::lock_guard lock(mutex_);
    auto it = queues_.find(file);
    if (it == queues_.end() || it->second->running) return;
    it->second->running = true;
  }
  drain(file, false);
}

void FileQueues::drain(FileId file, bool may_block) {
  std::unique_lock lock(mutex_);
  Queue& queue = *queues_.at(file);  // stays while running
  while (!queue.items.empty()) {
    Item item = std::move(queue.items.front());
    queue.items.pop_front();
    lock.unlock();
    if (!item(may_block)) {
      lock.lock();
      queue.items.push_front(std::move(item));
      lock.unlock();
      helpers_.submit([this, file] { drain(file, true); });
      return;
    }
    item = nullptr;
    lock.lock();
    queue.first = ++items_;
  }
  queues_.erase(file);
}

std::optional<uint64_t> FileQueues::first(FileId file) const {
  std::lock_guard lock(mutex_);
  auto it = queues_.find(file);
  if (it == queues_.end()) return {};
  return it->second->first;
}

}  // namespace vremote::node
