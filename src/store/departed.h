// What is left of files that have lost their last name and that no node has open.
//
// A program may still refer to one: by a working directory, a directory's descriptor, one opened
// with O_PATH, or a name that it has just looked up and is about to open. On a local disk such an
// inode lives on until nobody refers to it; here nobody tells the origin of references that are not
// opens. So for a while the last attributes are kept; what has no content of its own (directories
// and the like) is kept open as a whole; and a file, which may hold much of the disk, is kept open
// for a moment, if it is small: between a lookup and the open that follows it. Thread-safe.
#pragma once

#include <sys/stat.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <vector>

#include "base/attributes.h"
#include "base/ids.h"
#include "store/open_file.h"

namespace vremote::store {

class Departed {
 public:
  using Clock = std::chrono::steady_clock;
  // The oldest go first.
  static constexpr size_t kMost = 65536, kMostOpen = 128;
  // Of regular files. The time is far more than a program that is not stopped needs from its lookup
  // to its open; the rest bounds what a disk is short of after a removal.
  static constexpr Clock::duration kFileTime = std::chrono::seconds(2);
  static constexpr uint64_t kFileBytes = 4 << 20, kFilesBytes = 64 << 20;

  explicit Departed(size_t most_files = 1024) : most_files_(most_files) {}

  void add(FileId id, const struct stat& st, std::shared_ptr<OpenFile> file);
  std::optional<Attributes> attributes(FileId id) const;
  std::shared_ptr<OpenFile> open(FileId id) const;

  // Whether let_go_old() has something to do; it closes files, which takes time.
  bool has_old(Clock::time_point now = Clock::now()) const;
  void let_go_old(Clock::time_point now = Clock::now());
  // All regular files: the disk is full. False when there was none.
  bool let_go_files();

 private:
  struct Last {
    Attributes attributes;
    std::shared_ptr<OpenFile> file;
  };
  struct File {
    FileId id;
    Clock::time_point until;
    uint64_t bytes = 0;
  };
  using Closing = std::vector<std::shared_ptr<OpenFile>>;  // destroyed after the lock is released

  void keep(FileId id, Last& last, std::shared_ptr<OpenFile> file, uint64_t bytes,
            Closing& closing);
  void let_go_file(Closing& closing);

  const size_t most_files_;
  mutable std::mutex mutex_;
  std::unordered_map<FileId, Last, FileIdHash> last_;
  std::deque<FileId> order_, open_;
  std::deque<File> files_;
  uint64_t files_bytes_ = 0;
};

}  // namespace vremote::store
