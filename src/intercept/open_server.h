// Serves the trapped opens of a process tree, from its seccomp listener.
//
// One thread receives; each open is handed to a worker, and the number of workers has no bound of
// ours: an open may wait for another node, whose answer may wait for another open. Each stands for
// a thread of the tree that waits, so the tree's own limits bound them. An open whose caller has
// been killed meanwhile is interrupted (EINTR, which FUSE hands on to the daemon).
#pragma once

#include <linux/seccomp.h>

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <unordered_map>

#include "base/fd.h"
#include "intercept/remote_open.h"

namespace vremote::intercept {

class OpenServer {
 public:
  // `names` outlives the server. Takes SIGUSR1 of this process for itself.
  OpenServer(Fd listener, NamespaceCache& names, bool require_mount);

  // Returns when no process with the filter is left. Workers may still be inside the kernel then,
  // for as long as a node is away: the process must end with _exit() before the server does.
  void serve();

 private:
  struct Worker;
  void receive();
  void hand_over(const seccomp_notif& call);
  void work();
  void serve_one(const seccomp_notif& call, Worker& worker);
  Result<Fd> open_for(const seccomp_notif& call, RemoteOpen& open, Worker& worker);
  bool still_waiting(uint64_t id) const;
  void answer_error(uint64_t id, int error);
  Status answer_descriptor(uint64_t id, const Fd& fd, bool cloexec);
  void interrupt_abandoned();

  Fd listener_;
  NamespaceCache& names_;
  const bool require_mount_;
  std::mutex mutex_;  // guards what follows
  std::condition_variable arrived_;
  std::deque<seccomp_notif> queue_;
  std::unordered_map<uint64_t, pid_t> opening_;  // notification -> worker inside an open
  size_t idle_ = 0;
};

}  // namespace vremote::intercept
