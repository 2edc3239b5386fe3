// What a disk says again and again about one file, for the log: a full one refuses a writer's bytes
// a thousand times in a second.
//
// Each error of a file is told once, until the file has had a success (then how often it was not
// told), or no such error for a minute. Of more files than are remembered nothing is told.
// Thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <utility>

#include "base/ids.h"
#include "base/time.h"

namespace vremote::node {

class RepeatedErrors {
 public:
  static constexpr size_t kMost = 1024;
  static constexpr int64_t kQuietNs = 60'000'000'000;

  enum class Tell : uint8_t { Nothing, It, ItAndThatOthersAreNot };
  Tell failed(Instant now, FileId file, int error) {
    std::lock_guard lock(mutex_);
    auto it = known_.find({file, error});
    if (it == known_.end()) {
      if (known_.size() >= kMost)
        std::erase_if(known_, [&](const auto& e) { return now - e.second.last >= kQuietNs; });
      if (known_.size() >= kMost) return Tell::Nothing;
      known_[{file, error}] = {now, 0};
      return known_.size() == kMost ? Tell::ItAndThatOthersAreNot : Tell::It;
    }
    const bool quiet = now - it->second.last >= kQuietNs;
    it->second.last = now;
    if (!quiet) ++it->second.untold;
    return quiet ? Tell::It : Tell::Nothing;
  }

  // To be added to what is told.
  static const char* of_others(Tell tell) {
    return tell == Tell::ItAndThatOthersAreNot ? "; of further files nothing is said" : "";
  }

  // Returns how many were not told.
  uint64_t succeeded(FileId file) {
    uint64_t untold = 0;
    std::lock_guard lock(mutex_);
    for (auto it = known_.lower_bound({file, 0}); it != known_.end() && it->first.first == file;
         it = known_.erase(it))
      untold += it->second.untold;
    return untold;
  }

 private:
  struct Known {
    Instant last;
    uint64_t untold = 0;
  };
  std::mutex mutex_;
  std::map<std::pair<FileId, int>, Known> known_;  // by error
};

}  // namespace vremote::node
