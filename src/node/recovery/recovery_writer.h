// Keeps the bytes that agents may not send any more (coherence::Rescue), one file each, and says
// so.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <string>

#include "base/fd.h"
#include "base/result.h"
#include "coherence/agent.h"
#include "node/base/helper_threads.h"

namespace vremote::node {

// Thread-safe.
class RecoveryWriter {
 public:
  // What the kernel knows of a file, on a thread that may block.
  struct Seen {
    std::string path;
    std::string export_name;
  };
  using Look = std::function<Seen(const std::string& home, FileId file)>;

  RecoveryWriter(std::string directory, HelperThreads& threads, Look look)
      : directory_(std::move(directory)), threads_(threads), look_(std::move(look)) {}

  // Makes the directory.
  Status prepare();
  // Never blocks. In order.
  void keep(const std::string& home, coherence::Rescue rescue);
  // A session of this home has ended: what is rescued from now on is another loss.
  void next(const std::string& home);
  // Until all that was given is on disk, or the time is over.
  bool wait(int64_t patience_ms);

  // Those that wait there, from before, too.
  uint64_t files() const;

 private:
  struct Job {
    std::string home;
    coherence::Rescue rescue;
    bool next = false;
  };
  struct Open {
    std::string path;
    Fd fd;
  };
  void work();
  void write(Job& job);
  Result<Open*> open_for(const std::string& home, const coherence::Rescue& rescue);
  void finish(const std::string& home);

  const std::string directory_;
  HelperThreads& threads_;
  const Look look_;
  std::mutex mutex_;
  std::condition_variable idle_;
  std::deque<Job> jobs_;
  bool working_ = false;
  // The working thread's.
  std::map<std::pair<std::string, FileId>, Open> open_;
};

}  // namespace vremote::node
