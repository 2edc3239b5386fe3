// Which FileIds a store has given out, with their handles: after a crash they mean the same files.
//
// A file of records, each of which carries its own check; it grows with every file that becomes
// known and is written anew when most of it is old. It is synced with the files (fsync): of others
// a power failure may take the last records, which is found out when such a file is used (ESTALE).
#pragma once

#include <sys/types.h>

#include <chrono>
#include <functional>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/fd.h"
#include "base/ids.h"
#include "base/result.h"

namespace vremote::store {

using KnownFiles = std::vector<std::pair<FileId, std::string>>;  // with handles

// What a journal of the export with this root holds, up to the first record that is not whole;
// `lost`: the bytes from there on, 0 for a journal of another root.
KnownFiles read_journal(std::string_view bytes, FileId root, size_t* lost = nullptr);

// Thread-safe.
class Journal {
 public:
  using Known = KnownFiles;

  // `root`: of the export; what was kept for another is not used.
  explicit Journal(std::string path) : path_(std::move(path)) {}
  // What is known from before, cut at the first record that is not whole; then begins the file anew
  // with it, or goes on with the old one where the disk has no room for another.
  Result<Known> open(FileId root);
  // What open() found behind the first record that is not whole: a power failure may leave part of
  // one, more is damage. Bytes.
  size_t lost() const { return lost_; }
  // `all`: what is known now, asked when the file is to be written anew.
  void add(FileId file, const std::string& handle, const std::function<Known()>& all);
  // What was added goes to the disk. Where that fails nobody is told: the file itself is there.
  void sync();

 private:
  Status begin(const Known& known);
  Status rewrite(const Known& known);
  bool go_on(std::string_view bytes, const Known& known);
  std::string written(const Known& known) const;

  const std::string path_;
  std::mutex mutex_;
  FileId root_;
  Fd fd_;
  size_t lost_ = 0;
  size_t records_ = 0, rewrite_at_ = 0;
  off_t whole_ = 0;          // the bytes of whole records
  bool incomplete_ = false;  // the disk refused some
  std::chrono::steady_clock::time_point try_again_at_;
  uint64_t added_ = 0, synced_ = 0;  // records
  uint64_t renamed_at_ = 0;          // the file was replaced
  bool name_synced_ = false;
};

}  // namespace vremote::store
