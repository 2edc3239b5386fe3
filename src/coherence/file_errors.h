// Which fsync hears of what a file has lost.
//
// As with Linux's errseq_t each open file hears of an error once: those that were open when it was
// first told, or, if nobody was told before, whoever asks first. And, which Linux does not promise,
// every fsync that was under way when the error came hears of it, also beside another one of the
// same open file: it may wait for the very bytes that are lost.
//
// Pure, not thread-safe.
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <vector>

namespace vremote::coherence {

// The open file that asks. Handles' numbers only grow: one that is opened from now on has `next` or
// more. Without a number: all that have none are one.
struct Opener {
  uint64_t handle = 0, next = 0;
};

class FileErrors {
 public:
  struct Kept {
    int32_t error = 0;
    uint64_t at = 0;
    std::optional<uint64_t> told_before;
    std::vector<uint64_t> heard;
    bool operator==(const Kept&) const = default;
  };

  // `at`: fsyncs with a smaller number are under way, or over.
  void add(int32_t error, uint64_t at) {
    error_ = error;
    at_ = at;
    told_before_.reset();
    heard_.clear();
  }
  // What the fsync of that number has to say; 0: nothing.
  int32_t tell(const Opener& who, uint64_t number) {
    if (error_ == 0) return 0;
    const bool is_news =
        !told_before_ || (who.handle < *told_before_ && !heard_.contains(who.handle));
    if (!is_news && number >= at_) return 0;
    if (!told_before_) told_before_ = who.next;
    if (who.handle < *told_before_) heard_.insert(who.handle);
    return error_;
  }
  // `others`: handles of the file are open still.
  void closed(uint64_t handle, bool others) {
    heard_.erase(handle);
    if (!others && told_before_) error_ = 0;
  }

  // Nobody has anything to hear.
  bool empty() const { return error_ == 0; }
  // With so many handles: somebody may have. (Those opened since the error was told count, too.)
  bool owes(uint32_t handles) const {
    return error_ != 0 && (!told_before_ || heard_.size() < handles);
  }

  Kept kept() const { return {error_, at_, told_before_, {heard_.begin(), heard_.end()}}; }
  void take_over(const Kept& kept) {
    error_ = kept.error;
    at_ = kept.at;
    told_before_ = kept.told_before;
    heard_ = {kept.heard.begin(), kept.heard.end()};
  }

 private:
  int32_t error_ = 0;  // the last one
  uint64_t at_ = 0;
  std::optional<uint64_t> told_before_;  // handles that were open when it was first told
  std::set<uint64_t> heard_;             // of those; bounded by what the kernel has open
};

}  // namespace vremote::coherence
