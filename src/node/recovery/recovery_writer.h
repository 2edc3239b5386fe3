// Keeps the bytes that agents may not send any more (coherence::Rescue), one file each, and says
// so.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>

#include "base/result.h"
#include "coherence/agent.h"
#include "node/base/helper_threads.h"
#include "node/recovery/rescued_file.h"

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
  // Never blocks. In order. The log tells what became of it.
  void keep(const std::string& home, coherence::Rescue rescue);
  // A session of this home has ended: what is rescued from now on is another loss.
  void next(const std::string& home);
  // Until all that was given is on disk, or the time is over.
  bool wait(int64_t patience_ms);

  // Bytes, since the start.
  uint64_t kept() const { return kept_; }
  uint64_t lost() const { return lost_; }
  // Those that wait there, from before, too.
  uint64_t files() const;

 private:
  struct Job {
    std::string home;
    coherence::Rescue rescue;
    bool next = false;
  };
  using Key = std::pair<std::string, FileId>;
  void work();
  void write(const Job& job);
  RescuedFile& file_of(const Job& job);
  void settle(RescuedFile& file);
  void settle_all();

  const std::string directory_;
  HelperThreads& threads_;
  const Look look_;
  std::mutex mutex_;
  std::condition_variable idle_;
  std::deque<Job> jobs_;
  bool working_ = false;
  // The working thread's.
  std::map<Key, RescuedFile> files_;
  std::set<Key> unsettled_;
  std::atomic<uint64_t> kept_{0}, lost_{0};
};

}  // namespace vremote::node
