// What is kept of one file's loss: begun with its first bytes, on the disk and closed when settled,
// opened again for more. Whoever has it open for writing holds a flock(2) on it, so that nobody
// applies or discards it half written.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/result.h"
#include "coherence/messages.h"
#include "node/recovery/recovery_file.h"

namespace vremote::node {

// Not thread-safe.
class RescuedFile {
 public:
  // `mark`: part of its name, to tell who kept it; may be empty.
  RescuedFile(std::string directory, std::string mark, RecoveryHeader header)
      : directory_(std::move(directory)), mark_(std::move(mark)), header_(std::move(header)) {}

  // Nothing is promised before settle().
  void add(const std::vector<coherence::Extent>& extents,
           const coherence::DirtyAttributes& attributes);
  // What came since the last time.
  struct Sum {
    uint64_t kept = 0, lost = 0;  // bytes; kept: on the disk, and so is the file's name
    std::string why;              // something is lost: not only bytes may be
    bool is_first = false;        // the first bytes that are kept in this file
  };
  Sum settle();
  void remove();

  bool is_open() const { return fd_.valid(); }
  uint64_t bytes() const { return bytes_; }  // in all, that are kept, or will be once it is settled
  // Of the newest file; empty: there is none.
  const std::string& path() const { return path_; }
  const RecoveryHeader& header() const { return header_; }

 private:
  Status open();
  Status begin();
  Status make_sure();

  const std::string directory_, mark_;
  RecoveryHeader header_;
  std::string path_;
  Fd fd_;
  Sum sum_;
  bool is_named_ = false;  // on the disk
  bool has_some_ = false;  // and so are some bytes
  // What is lost and no file says: the next addition notes it.
  bool lacks_ = false;
  uint64_t untold_ = 0;  // bytes of that
  uint64_t bytes_ = 0;
};

}  // namespace vremote::node
