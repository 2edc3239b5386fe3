// Purges inodes of a kernel whose daemon does not answer (rule K5 of docs/kernel_cache.md).
//
// A purge blocks on each page with an unanswered fill, and nobody may answer any now. Such a page
// is locked and empty: nothing stale can be read there. So purges go round the fills that are
// known; a fill that comes while its inode is being purged may hold that purge up, and another goes
// on behind it. The number of threads has no bound; what a fill holds up ends with it.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <vector>

#include "node/base/helper_threads.h"

namespace vremote::node {

class GuardianPurge {
 public:
  // Drops the pages [offset, offset + length) of the inode, length 0: to the end. May block.
  using Drop = std::function<void(uint64_t node, uint64_t offset, uint64_t length)>;

  explicit GuardianPurge(Drop drop);

  // A fill that nobody answers for now. Before it is seen by anybody else.
  void fill(uint64_t node, uint64_t offset, uint64_t length);
  void forget_fills();

  // Begins with these inodes; each is done when its pages outside of unanswered fills are gone.
  void start(std::vector<uint64_t> nodes);
  bool done() const { return *left_ == 0; }
  // To be called every few milliseconds while not done(): a purge that is held up by a fill that
  // nobody knew must not hold up the others.
  void help();

 private:
  struct Part {
    uint64_t offset = 0, length = 0;
  };
  struct Job {
    std::mutex mutex;
    std::vector<uint64_t> nodes;
    size_t next = 0;
  };
  std::vector<Part> parts(uint64_t node, uint64_t from) const;  // with the lock
  void purge(uint64_t node, uint64_t from);
  void work(const std::shared_ptr<Job>& job);

  const Drop drop_;
  mutable std::mutex mutex_;
  std::map<uint64_t, std::map<uint64_t, uint64_t>> fills_;  // of each inode: offset to end
  std::set<uint64_t> under_way_;
  std::vector<std::shared_ptr<Job>> jobs_;
  std::shared_ptr<std::atomic<size_t>> left_ = std::make_shared<std::atomic<size_t>>(0);
  std::atomic<uint64_t> progress_{0};
  uint64_t seen_progress_ = 0;
  size_t workers_ = 0;
  HelperThreads threads_;
};

}  // namespace vremote::node
