// Whether a dead daemon's kernel shows nothing of before, so that the next one may begin.
//
// GuardianPurge drops what it can at once, and may hang on any fill for as long as nobody answers.
// This goes over all inodes again when every request that waits is in the guardian's hands: an
// inode is clear when all its pages but those of fills that were known before have been dropped.
// Those are locked and empty for as long as the fills are not answered (rule K3). A round that
// meets a fill which came later hangs; another one, which knows it, goes over the inode then.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <unordered_map>
#include <vector>

#include "node/base/helper_threads.h"

namespace vremote::node {

class GuardianSweep {
 public:
  // As GuardianPurge::Drop.
  using Drop = std::function<void(uint64_t node, uint64_t offset, uint64_t length)>;

  explicit GuardianSweep(Drop drop)
      : drop_(std::move(drop)), threads_("guardian-sweep", HelperThreads::kUnbounded) {}

  // A fill that nobody answers. Any thread.
  void fill(uint64_t node, uint64_t offset, uint64_t length);
  // Once, when all that were asked for before are told.
  void start(std::vector<uint64_t> nodes);
  bool started() const { return started_; }
  bool done() const { return started_ && left_ == 0; }
  // To be called every now and then while not done().
  void help();

 private:
  void work();
  void begin_worker();  // with the lock

  const Drop drop_;
  std::mutex mutex_;
  std::unordered_map<uint64_t, std::map<uint64_t, uint64_t>> fills_;  // of each: offset to end
  std::unordered_map<uint64_t, uint64_t> counts_;                     // of its fills
  std::vector<uint64_t> todo_;
  std::map<uint64_t, uint64_t> under_way_;  // with the count of fills that its last round knew
  std::set<uint64_t> clear_;
  size_t workers_ = 0;
  std::atomic<bool> started_{false};
  std::atomic<size_t> left_{0};
  HelperThreads threads_;
};

}  // namespace vremote::node
