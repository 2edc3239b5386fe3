// Directories that other nodes have moved into another directory, and that this node's kernel still
// has where they were.
//
// A kernel has one entry for a directory. When a lookup finds the directory under a new name, it
// moves its entry there, for which it takes the mount's rename lock; a rename between two
// directories holds that lock while it looks its names up, so there the entry cannot be moved
// (__d_unalias), and the rename begins anew, once, walking its paths with a question for each name
// (LOOKUP_REVAL). That is when it can be helped: a thread of ours looks the new name up in the
// mount, like a program. It waits for the directory's lock, gets it when the rename lets go of it,
// and has the entry moved while the answer to the first name of the second walk is held back. What
// remains: a rename that walks no path, because its names lie in the working directory, is not held
// back by anything, and may come before our thread again.
//
// Thread-safe. Where inodes cannot be opened by handle nothing is helped.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "fuse/own_view.h"
#include "net/event_loop.h"
#include "node/base/helper_threads.h"

namespace vremote::node {

class MovedDirectories {
 public:
  using Task = std::move_only_function<void()>;
  // The longest that an answer is held back.
  static constexpr int64_t kPatienceNs = 100'000'000;

  MovedDirectories(const fuse::OwnView& view, HelperThreads& threads, net::EventLoop& loop)
      : view_(view), threads_(threads), loop_(loop) {}
  ~MovedDirectories();
  MovedDirectories(const MovedDirectories&) = delete;
  MovedDirectories& operator=(const MovedDirectories&) = delete;

  // The thread `tid` is being told that the name `name` of `parent` is the directory `node`.
  void told(uint32_t tid, uint64_t parent, const std::string& name, uint64_t node);
  // The kernel has forgotten it.
  void forget(uint64_t node);
  // Whether hold_back() may have a reason.
  bool any() const { return count_.load(std::memory_order_relaxed) > 0; }
  // Holds back what answers a lookup of this thread in `directory`; false: there is no reason to,
  // and `answer` is as it was.
  bool hold_back(uint32_t tid, uint64_t directory, Task& answer);

 private:
  struct Moving {
    uint64_t parent = 0;  // whose lock we wait for: a lookup in it may be the one that has that
    std::vector<Task> held_back;
    net::Timer timer;
  };

  void move(uint32_t tid, uint64_t id, uint64_t parent, const std::string& name, uint64_t node);
  void let_go(uint32_t tid, uint64_t id);

  const fuse::OwnView& view_;
  HelperThreads& threads_;
  net::EventLoop& loop_;
  mutable std::mutex mutex_;
  std::unordered_map<uint64_t, uint64_t> parents_;  // by directory, as far as we know
  std::set<uint32_t> ours_;                         // threads in move()
  uint64_t next_ = 1;
  std::atomic<size_t> count_{0};                            // of moving_
  std::map<uint32_t, std::pair<uint64_t, Moving>> moving_;  // by thread
};

}  // namespace vremote::node
