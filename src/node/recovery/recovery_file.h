// Bytes that a node had promised to write and may not write any more: others may have changed the
// file since. Kept one file per origin's file, for a person to look at (`vremote recover`).
//
// Layout, little-endian: "VRRECOV1", u32 length and u32 CRC of the header, the header, then
// records: u32 type, u32 length, u64 offset, u32 CRC of all of these and the payload, payload. A
// file that was cut short is good up to its last whole record.
#pragma once

#include <cstdint>
#include <functional>
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
  bool operator==(const RecoveryHeader&) const = default;
};

struct RecoveryPiece {
  uint64_t offset = 0;
  std::span<const std::byte> bytes;  // until the callback returns
};

struct RecoverySummary {
  uint64_t pieces = 0, bytes = 0, end = 0;  // end: of the last byte
  coherence::DirtyAttributes attributes;
  bool damaged = false;  // what follows the last whole record is not readable
};

inline constexpr size_t kRecoveryPieceMax = 2 << 20;
inline constexpr std::string_view kRecoverySuffix = ".recover";

// Begins a file; EEXIST when there is one.
Result<Fd> begin_recovery_file(const std::string& path, const RecoveryHeader& header);
Status append_recovery(const Fd& fd, const std::vector<coherence::Extent>& extents,
                       const coherence::DirtyAttributes& attributes);

// Reads a file from its beginning; `piece` is called in the order of writing.
Result<RecoveryHeader> read_recovery(const Fd& fd,
                                     const std::function<Status(const RecoveryPiece&)>& piece,
                                     RecoverySummary& summary);

}  // namespace vremote::node
