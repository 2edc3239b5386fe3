// The daemon's end of its guardian (guardian.h).
#pragma once

#include <sys/types.h>

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>

#include "base/fd.h"
#include "base/ids.h"
#include "base/result.h"
#include "fuse/channel.h"
#include "node/guardian/guardian.h"
#include "node/guardian/guardian_table.h"
#include "node/guardian/kept_files.h"

namespace vremote::node {

class GuardianLink {
 public:
  // Forks the guardian: before this process has a second thread.
  static Result<std::unique_ptr<GuardianLink>> start(const GuardianOptions& options);
  // That of the daemon before, which this process has become.
  static Result<std::unique_ptr<GuardianLink>> take_over(Fd link, Fd table, pid_t pid);
  int descriptor() const { return link_.get(); }
  pid_t pid() const { return pid_; }
  ~GuardianLink();
  GuardianLink(const GuardianLink&) = delete;
  GuardianLink& operator=(const GuardianLink&) = delete;

  GuardianTable& table() { return table_; }

  // From now on it watches. `own`: a channel that nobody else reads; what is taken back came by it.
  Status arm(const fuse::Channel& own, std::span<const int> others, uint32_t connection,
             const std::string& mount);
  // Takes back what the guardian holds and answers the kernel again. Any thread; returns when it is
  // done, by whomever.
  void take_back(const std::function<void(std::span<const std::byte>)>& request);
  // A file of an export lost its name while it is open: the guardian keeps it for the daemon after
  // a crash of this one, until it is let go. Neither waits for the guardian. Any thread.
  void keep(FileId file, int descriptor);
  void let_go(FileId file);
  // It has heard of all of them.
  bool knows_files();
  // Whether there may be something to take back. Waits for who is taking it.
  bool has_requests();
  // Whether there is still a guardian; tells the log once when there is none any more.
  bool guarded();
  // A clean end: the connection is gone. Waits for the guardian's end, bounded.
  void quit();

 private:
  GuardianLink(GuardianTable table, Fd link, pid_t pid)
      : table_(std::move(table)), link_(std::move(link)), pid_(pid) {}
  void lost();  // with the lock
  void end_link();
  bool tell_files();  // with said_mutex_; false: it does not listen just now
  void tell_files_later();

  GuardianTable table_;
  std::mutex said_mutex_;  // what is said in several pieces is said alone; taken last
  std::condition_variable files_to_tell_;
  KeptFiles files_;
  bool too_many_told_ = false;
  std::thread teller_;  // from the first time on that it does not listen
  std::mutex mutex_;
  Fd link_;
  pid_t pid_;
  std::atomic<bool> lost_{false};
};

}  // namespace vremote::node
