// Which FileIds a store has given out, with their handles: after a crash they mean the same files.
//
// A file of records, each of which carries its own check; it grows with every file that becomes
// known and is written anew when most of it is old. Nothing is synced: it outlives the process, and
// what a power failure takes is found out when the file is used (ESTALE).
#pragma once

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

// What a journal of the export with this root holds, up to the first record that is not whole.
KnownFiles read_journal(std::string_view bytes, FileId root);

// Thread-safe.
class Journal {
 public:
  using Known = KnownFiles;

  // `root`: of the export; what was kept for another is not used.
  explicit Journal(std::string path) : path_(std::move(path)) {}
  // What is known from before, cut at the first record that is not whole; then begins the file anew
  // with it.
  Result<Known> open(FileId root);
  // `all`: what is known now, asked when the file is to be written anew.
  void add(FileId file, const std::string& handle, const std::function<Known()>& all);

 private:
  Status begin(const Known& known);
  Status rewrite(const Known& known);

  const std::string path_;
  std::mutex mutex_;
  FileId root_;
  Fd fd_;
  size_t records_ = 0, rewrite_at_ = 0;
  bool broken_ = false;
};

}  // namespace vremote::store
