// One queue of work per file at the home, so that disk work, grants, recalls and replies of a file
// happen in the order in which the home decided them (rule I4), while files do not wait for one
// another.
//
// An item that need not wait runs on whichever thread pumps; one that would wait for the disk is
// taken over by a helper thread, and with it all behind it. The helpers must have stopped before
// the queues go: one may still be closing a queue whose last item is done.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <vector>

#include "base/ids.h"
#include "base/page_range.h"
#include "base/time.h"
#include "node/base/helper_threads.h"

namespace vremote::node {

class FileQueues {
 public:
  // Returns false, only when !may_block and having done nothing, to be called again where it may.
  using Item = std::move_only_function<bool(bool may_block)>;
  // What an item does for whom, of those that may wait for the disk.
  struct Account {
    FileId file;
    NodeId node;
    const char* what;  // a literal
    PageRange pages;
    Instant since;
  };

  explicit FileQueues(HelperThreads& helpers) : helpers_(helpers) {}

  // Keeps the caller's order; runs nothing. Call it under the lock that decides the order, then
  // pump() without.
  void push(FileId file, Item item);
  void push(const Account& account, Item item);
  // Runs the file's items as long as none has to wait. Call it without locks. Reentrant: an item
  // may push and pump.
  void pump(FileId file);
  // The item at work, or the first that waits to be: one that stays the same for long waits for the
  // disk. Empty when there is none.
  std::optional<uint64_t> first(FileId file) const;
  // Of those that are not done, at most so many.
  std::vector<Account> accounts(size_t most) const;

 private:
  struct Entry {
    Item item;
    std::optional<Account> account;
  };
  struct Queue {
    std::deque<Entry> items;
    std::optional<Account> at_work;
    uint64_t first = 0;  // drawn from items_
    bool running = false;
  };
  void add(FileId file, Entry entry);
  void drain(FileId file, bool may_block);

  HelperThreads& helpers_;
  mutable std::mutex mutex_;
  uint64_t items_ = 0;
  std::unordered_map<FileId, std::unique_ptr<Queue>, FileIdHash> queues_;
};

}  // namespace vremote::node
