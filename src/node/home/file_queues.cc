#include "node/home/file_queues.h"

namespace vremote::node {

void FileQueues::push(FileId file, Item item) { add(file, {std::move(item), {}}); }

void FileQueues::push(const Account& account, Item item) {
  add(account.file, {std::move(item), account});
}

void FileQueues::add(FileId file, Entry entry) {
  std::lock_guard lock(mutex_);
  auto& queue = queues_[file];
  if (!queue) queue = std::make_unique<Queue>(Queue{.first = ++items_});
  queue->items.push_back(std::move(entry));
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
    Entry entry = std::move(queue.items.front());
    queue.items.pop_front();
    queue.at_work = entry.account;
    lock.unlock();
    if (!entry.item(may_block)) {
      lock.lock();
      queue.at_work.reset();
      queue.items.push_front(std::move(entry));
      lock.unlock();
      helpers_.submit([this, file] { drain(file, true); });
      return;
    }
    entry.item = nullptr;
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

std::vector<FileQueues::Account> FileQueues::accounts(size_t most) const {
  std::vector<Account> out;
  const auto add = [&](const std::optional<Account>& account) {
    if (account && out.size() < most) out.push_back(*account);
  };
  std::lock_guard lock(mutex_);
  for (const auto& [file, queue] : queues_) {
    add(queue->at_work);
    for (const Entry& entry : queue->items) add(entry.account);
  }
  return out;
}

}  // namespace vremote::node
