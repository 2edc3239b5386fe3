// Serves the trapped opens of a process tree, from its seccomp listener.
//
// Every worker receives, serves and answers by itself: one wake-up there, one back. Before it
// serves it sees to it that another one receives. The number of workers has no bound of ours: an
// open may wait for another node, whose answer may wait for another open. Each stands for a thread
// of the tree that waits, so the tree's own limits bound them. An open whose caller has been killed
// meanwhile is interrupted (EINTR, which FUSE hands on to the daemon).
#pragma once

#include <linux/seccomp.h>

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <unordered_map>

#include "base/fd.h"
#include "intercept/remote_open.h"

namespace vremote::intercept {

class OpenServer {
 public:
  // `names` outlives the server. Takes SIGUSR1 of this process for itself.
  OpenServer(Fd listener, NamespaceCache& names, bool require_mount);

  // Serves for ever; its process ends with _exit() when its tree has ended (workers may be inside
  // the kernel then, for as long as a node is away).
  [[noreturn]] void serve();

 private:
  struct Worker;
  void add_worker();  // with mutex_ held
  void work();
  Result<seccomp_notif> receive();
  void serve_one(const seccomp_notif& call, Worker& worker);
  Result<Fd> open_for(const seccomp_notif& call, RemoteOpen& open, Worker& worker);
  bool still_waiting(uint64_t id) const;
  void answer(uint64_t id, int64_t value, int error);
  Status answer_descriptor(uint64_t id, const Fd& fd, bool cloexec);
  void interrupt_abandoned();  // with mutex_ held

  Fd listener_;
  NamespaceCache& names_;
  const bool require_mount_;
  size_t notification_size_ = 0;  // the kernel's
  std::mutex mutex_;              // guards what follows
  std::condition_variable busy_;
  bool serve_sleeps_ = false;                    // without a time limit: wants to hear of work
  std::unordered_map<uint64_t, pid_t> opening_;  // notification -> worker inside an open
  size_t receiving_ = 0;                         // workers that wait for a call
};

}  // namespace vremote::intercept
