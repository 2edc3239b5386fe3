// Bytes that a node had promised to write and may not write any more: others may have changed the
// file since. Kept one file per origin's file, for a person to look at (`vremote recover`).
//
// Layout, little-endian: "VRRECOV2", u32 length and u32 CRC of the header, the header, then
// records: u32 type, u32 length, u64 offset, u32 CRC of all of these and the payload, payload. The
// first record is rewritten in place after each addition and says how much there is in all: a file
// that was cut short, even between two records, or for which the disk had no room, is seen to be
// damaged. What can be read of it is read. "VRRECOV1" had neither that record nor the time and the
// export's name in the header.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/attributes.h"
#include "base/fd.h"
#include "base/ids.h"
#include "base/result.h"
#include "coherence/messages.h"

namespace vremote::node {

struct RecoveryHeader {
  uint64_t saved_at = 0;  // seconds since 1970
  std::string home;       // the node whose file it is
  FileId file;
  uint64_t shown_inode = 0;  // st_ino under the mount; 0: unknown
  std::string path;          // where the kernel knew it under the mount; may be empty, may be old
  // When its newest bytes were written, as far as was known when the file was begun. Here, too:
  // what stands behind them is the first thing that a damaged file lacks. {}: not known.
  Timestamp written;
  std::string export_name;  // may be empty
  bool operator==(const RecoveryHeader&) const = default;
};

// For people.
std::string name_of(const RecoveryHeader& header);

struct RecoveryPiece {
  uint64_t offset = 0;
  std::span<const std::byte> bytes;  // until the callback returns
};

struct RecoverySummary {
  uint64_t pieces = 0, bytes = 0, end = 0;  // end: of the last byte
  coherence::DirtyAttributes attributes;
  // Not all that was kept is there, or nobody can tell.
  bool damaged = false;
  // How much was to be kept, if the file tells.
  struct Kept {
    uint64_t pieces = 0, bytes = 0;
    bool operator==(const Kept&) const = default;
  };
  std::optional<Kept> kept;
};

inline constexpr size_t kRecoveryPieceMax = 2 << 20;
inline constexpr std::string_view kRecoverySuffix = ".recover";

// Begins a file; EEXIST when there is one.
Result<Fd> begin_recovery_file(const std::string& path, const RecoveryHeader& header);
// Bytes, and why the others are lost. All before the first that did not fit is kept, and the file
// says how much there was to be.
struct Appended {
  uint64_t kept = 0, lost = 0;
  Status status;
  bool told = true;  // false: the file could not say so; note_lost() again
  explicit operator bool() const { return status.has_value(); }
};
// One writer at a time. Nothing is on the disk before the caller sees to that.
Appended append_recovery(const Fd& fd, const std::vector<coherence::Extent>& extents,
                         const coherence::DirtyAttributes& attributes);
// From now on the file lacks something, these bytes among it, as far as it can be told.
void note_lost(const Fd& fd, uint64_t bytes = 0);
// False: nothing can be added to it any more.
bool takes_more(const Fd& fd);
uint64_t bytes_of(const std::vector<coherence::Extent>& extents);

// Opens one to read it. Anybody may have put anything there: nothing but a regular file, and
// without waiting for it.
Result<Fd> open_recovery_file(const std::string& path);
// Reads a file from its beginning; `piece` is called in the order of writing. Leaves out what is
// damaged.
Result<RecoveryHeader> read_recovery(const Fd& fd,
                                     const std::function<Status(const RecoveryPiece&)>& piece,
                                     RecoverySummary& summary);

}  // namespace vremote::node
