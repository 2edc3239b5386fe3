// What a home and the agents of its files say to each other.
//
// Order is part of the protocol: messages about one file between one agent and the home arrive in
// the order sent (one connection per file), and the home emits grants, recalls and replies of a
// file in the order its state changed (docs/protocol.md).
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "base/attributes.h"
#include "base/bytes.h"
#include "base/ids.h"
#include "base/page_range.h"

namespace vremote::coherence {

// What a lease covers. Entries and Attributes are single units: their range is always kUnit.
// Operations that need several take them in this order, then by file (no cycle of waiting
// operations).
enum class Resource : uint8_t { Entries = 0, Attributes = 1, Data = 2 };
inline constexpr PageRange kUnit{0, 1};

// Update lets several nodes at once bump a file's modification time: it commutes with itself and
// with nothing else. Only Attributes are leased so. Exclusive allows all the others do.
enum class LeaseMode : uint8_t { None = 0, Shared = 1, Update = 2, Exclusive = 3 };

// True when a holder of `have` may do all that `want` allows.
constexpr bool covers(LeaseMode have, LeaseMode want) {
  return want == LeaseMode::None || have == LeaseMode::Exclusive || have == want;
}
// True when two nodes may hold these at once.
constexpr bool compatible(LeaseMode a, LeaseMode b) {
  return a == LeaseMode::None || b == LeaseMode::None || (a == b && a != LeaseMode::Exclusive);
}

// A piece of a file's bytes.
struct Extent {
  uint64_t offset = 0;  // bytes
  Bytes bytes;
};

// Attributes an agent changed under its lease and the home does not know yet.
struct DirtyAttributes {
  bool has_size = false;
  bool has_mtime = false;
  uint64_t size = 0;  // only ever grows the file
  Timestamp mtime;    // also the ctime
  bool operator==(const DirtyAttributes&) const = default;
};

// ---- agent -> home
// ------------------------------------------------------------------------------------------------------------

// Asks for `mode` on all of `range`. One request of a file and resource per id; ids are the
// agent's.
struct LeaseRequest {
  FileId file;
  uint64_t request = 0;
  Resource resource = Resource::Data;
  LeaseMode mode = LeaseMode::None;
  PageRange range;
  bool want_data =
      false;  // the grant carries the bytes of `range` (clipped to the file's end at the home)
};

// Answers a Recall. The flushes of its range were sent before. `given` contains the recalled range
// and may be wider; the home takes the wider part only if `seen` is the last grant it sent this
// node for the file.
struct RecallAck {
  FileId file;
  uint64_t recall = 0;
  PageRange given;
  uint64_t seen = 0;           // Grant::sequence
  DirtyAttributes attributes;  // of older agents; today's send a Flush before, which is confirmed
  bool in_use = false;         // the file is open here: keep it alive when its last name goes
  bool watches = false;        // it is open for reading here: a kernel that must know its growth
  bool busy = false;  // not an ack yet: a truncation of this node must be served first (K8)
};

// Dirty bytes for the origin's disk.
struct Flush {
  FileId file;
  uint64_t flush = 0;
  std::vector<Extent> extents;
  DirtyAttributes attributes;
};

// Reads under a lease already held.
struct Fetch {
  FileId file;
  uint64_t fetch = 0;
  PageRange range;
};

// With `leases`: gives up every lease on the file (the kernel has forgotten it, nothing is dirty),
// unless `seen` is not the last grant the home sent this node for the file: then nothing happens.
// Without: only `in_use` ends (the last close).
struct Release {
  FileId file;
  uint64_t seen = 0;
  bool leases = true;
};

// The file is longer than before, by pages. Its sender holds the Attributes Exclusive and keeps
// them until Announced; one of a file at a time.
struct Announce {
  FileId file;
  uint64_t announcement = 0;
  uint64_t size = 0;
};

// Answers a ShowSize: this node's kernel takes the file for so long, or nobody has it open for
// reading here any more.
struct SizeShown {
  FileId file;
  uint64_t show = 0;
};

// ---- circles of waiting owners over several homes (wait_circles.h)

// One wait for a byte range, as its home calls it. Never used for another.
struct WaitName {
  uint64_t home = 0;  // a number that its lock table drew
  uint32_t node = 0;  // the home's for the node that waits
  uint64_t call = 0;  // that node's for the wait
  bool operator==(const WaitName&) const = default;
};
struct Trail {
  uint64_t searcher = 0,
           search = 0;          // numbers that the searching node drew, the second for this search
  uint64_t since = 0;           // when the wait of the search began, by its home; 0: its home tells
  uint32_t budget = 0;          // messages that may still come of it
  std::vector<WaitName> waits;  // each in the way of the one before it
};
inline constexpr size_t kTrailMax = 64;  // waits
inline constexpr uint32_t kTrailBudget = 1024;

// agent -> home: `call`, a wait of this node for a lock of `file`, is next on the trail.
struct FollowWait {
  FileId file;
  uint64_t call = 0;
  Trail trail;
};
// home -> agent: `owner`, one of that node, is in the way of the last wait of the trail.
struct FollowOwner {
  FileId file;
  uint64_t owner = 0;
  Trail trail;
};

// ---- home -> agent
// ------------------------------------------------------------------------------------------------------------

// Gives `mode` on `range`, at least what was asked. request == 0: nobody asked, the home offers it.
struct Grant {
  FileId file;
  uint64_t request = 0;
  uint64_t sequence = 0;  // counts the grants to this node for this file, from 1
  Resource resource = Resource::Data;
  LeaseMode mode = LeaseMode::None;
  PageRange range;
  int32_t error = 0;        // errno: nothing is granted (the file is gone, the disk failed)
  uint64_t size_floor = 0;  // the file is at least this long while a data lease on the page is held
  Attributes attributes;    // with Resource::Attributes
  bool has_xattrs =
      true;  // with Resource::Attributes: false when the file has no extended attribute at all
  bool watched = false;   // with Resource::Attributes: another node has it open for reading
  bool unsynced = false;  // something of the file is not on the origin's disk (unsynced_files.h)
  uint64_t data_offset =
      0;  // with want_data: the bytes at data_offset, cut at the home's end of file
  Bytes data;
};

// Asks the node to give up `range` down to `to` (None or Shared).
struct Recall {
  FileId file;
  uint64_t recall = 0;
  Resource resource = Resource::Data;
  LeaseMode to = LeaseMode::None;
  PageRange range;
};

// The file is at least this long, until SizeShown: make the kernel know (K16).
struct ShowSize {
  FileId file;
  uint64_t show = 0;
  uint64_t size = 0;
};

// Every kernel that may have the file mapped knows of what was announced. `watched`: as in Grant.
struct Announced {
  FileId file;
  uint64_t announcement = 0;
  bool watched = false;
};

struct FlushAck {
  FileId file;
  uint64_t flush = 0;
  int32_t error = 0;    // errno of the origin's disk
  uint64_t blocks = 0;  // what the file has on it now; not with an error
};

struct FetchReply {
  FileId file;
  uint64_t fetch = 0;
  int32_t error = 0;
  uint64_t data_offset = 0;
  Bytes data;  // cut at the home's end of file
};

// ---- operations that run at the home
// ----------------------------------------------------------------------------------------

struct Caller {
  uint32_t uid = 0;
  uint32_t gid = 0;
  std::vector<uint32_t> groups;  // supplementary; at most kGroupsMax
};
inline constexpr size_t kGroupsMax = 1024;
inline constexpr size_t kNameMax = 255;     // bytes of one name
inline constexpr size_t kLinkMax = 4096;    // bytes of a symbolic link
inline constexpr size_t kXattrMax = 65536;  // bytes of an extended attribute

struct LookupCall {
  FileId dir;
  std::string name;
};
// All type bits, which no kind of file has: a regular file without a name (O_TMPFILE). A home that
// does not know of these says EINVAL.
inline constexpr uint32_t kNamelessFile = 0170000;
struct CreateCall {  // mknod, mkdir, open(O_CREAT): by the type bits of mode
  FileId dir;
  std::string name;  // of a nameless file: any
  uint32_t mode = 0;
  uint32_t rdev = 0;
  // EEXIST when the name exists; otherwise the existing file is returned. Of a nameless file: it
  // never gets one.
  bool exclusive = false;
  bool is_nameless() const { return (mode & kNamelessFile) == kNamelessFile; }
};
struct SymlinkCall {
  FileId dir;
  std::string name;
  std::string target;
};
struct LinkCall {
  FileId file;
  FileId dir;
  std::string name;
};
struct RemoveCall {
  FileId dir;
  std::string name;
  bool directory = false;
};
struct RenameCall {
  FileId from_dir;
  std::string from;
  FileId to_dir;
  std::string to;
  uint32_t flags = 0;
};
struct SetAttributesCall {
  FileId file;
  bool has_mode = false, has_uid = false, has_gid = false, has_size = false, has_atime = false,
       has_mtime = false;
  bool atime_now = false, mtime_now = false;
  bool clear_suid = false;  // FATTR_KILL_SUIDGID
  // The caller may do it as the owner only: EPERM when it is not. Its kernel has judged by an owner
  // that another node may have changed.
  bool must_own = false;
  uint32_t mode = 0, uid = 0, gid = 0;
  uint64_t size = 0;
  Timestamp atime, mtime;
};
struct ReadLinkCall {
  FileId file;
};
struct ReadDirectoryCall {
  FileId dir;
  uint64_t cookie = 0;
  uint32_t bytes_max = 0;
  bool offer_attributes = false;  // of every file listed, where nobody has to be recalled for it
};
struct StatFsCall {
  FileId file;
};
struct SyncCall {
  FileId file;
  bool data_only = false;
};
struct GetXattrCall {
  FileId file;
  std::string name;
};
struct ListXattrCall {
  FileId file;
};
struct SetXattrCall {
  FileId file;
  std::string name;
  Bytes value;
  uint32_t flags = 0;
};
struct RemoveXattrCall {
  FileId file;
  std::string name;
};
struct AllocateCall {
  FileId file;
  uint64_t offset = 0;
  uint64_t length = 0;
  uint32_t mode = 0;
};
struct SeekCall {
  FileId file;
  uint64_t offset = 0;
  uint32_t whence = 0;
};

// copy_file_range(2) between two files of one export: an Offset with the bytes copied, fewer than
// asked where `from` ends.
struct CopyCall {
  FileId from;
  FileId file;
  uint64_t from_offset = 0;
  uint64_t offset = 0;
  uint64_t length = 0;  // 1 to kCopyMax
};
inline constexpr uint64_t kCopyMax =
    64 << 20;  // no node waits longer for others' leases than this takes

// Advisory locks (lock_table.h). They are kept at the home alone.
enum class LockKind : uint8_t { Range = 0, Flock = 1 };  // fcntl(2), POSIX or OFD; flock(2)
enum class LockType : uint8_t { Read = 0, Write = 1, Unlock = 2 };
enum class LockAction : uint8_t {
  Try = 0,      // EAGAIN when another's lock is in the way
  Wait = 1,     // the reply comes when it is held; EDEADLK; EINTR after a Cancel
  Test = 2,     // replies a LockState: what is in the way
  Cancel = 3,   // of the Wait with call id `waiting_call`
  Release = 4,  // all that `owner` holds and waits for on the file
  Reclaim = 5,  // as Try, of a lock that an earlier incarnation of the home had given
  Refuse = 6,   // as Cancel, of one that closes a circle over several homes: it ends with EDEADLK
};
struct LockCall {
  FileId file;
  LockAction action = LockAction::Try;
  LockKind kind = LockKind::Range;
  LockType type = LockType::Read;
  uint64_t owner = 0;           // the asking kernel's name for the process or open file
  uint64_t start = 0, end = 0;  // bytes, inclusive; end at most INT64_MAX
  uint32_t pid = 0;
  uint64_t waiting_call = 0;
  bool holds_elsewhere = false;  // `owner` holds byte ranges at another home
};

// The node ends: all it holds here is free, locks included. Sent after its last flush was acked.
// `file`: any of the home's.
struct LeaveCall {
  FileId file;
};

// The file is open here: told to a home that has restarted, and of a file that has lost its last
// name (ESTALE: it is gone). To a home that has restarted, `done` says that this node has brought
// back all it had, and shows nothing any more that it had leases for, but for `pages` that it has
// named before: its kernel holds them back behind a truncation (K8). It keeps the Data lease of
// these, Exclusive (ESTALE: the grace is over; EBUSY: they are another's).
struct ReclaimCall {
  FileId file;
  bool done = false;
  std::vector<PageRange> pages = {};
};
inline constexpr size_t kReclaimedRangesMax = 4096;  // of one call

using Operation =
    std::variant<LookupCall, CreateCall, SymlinkCall, LinkCall, RemoveCall, RenameCall,
                 SetAttributesCall, ReadLinkCall, ReadDirectoryCall, StatFsCall, SyncCall,
                 GetXattrCall, ListXattrCall, SetXattrCall, RemoveXattrCall, AllocateCall, SeekCall,
                 LockCall, LeaveCall, CopyCall, ReclaimCall>;

struct Call {
  uint64_t call = 0;
  Caller caller;
  Operation operation;
  // Of one that the home notes (call_memory.h): of those of this incarnation below it none is made
  // again. Never more than `call`; 0: not known (of older agents).
  uint64_t heard_below = 0;
};

struct Node {
  FileId file;
  Attributes attributes;
  uint64_t size_before = 0;  // of a SetAttributesCall with a size
};                           // a file as an operation found or made it
struct DirectoryEntry {
  std::string name;
  uint64_t cookie = 0;  // continue after this entry
  FileId file;
  uint32_t type = 0;  // DT_*
};
struct DirectoryPage {
  std::vector<DirectoryEntry> entries;
  bool end = false;
};
struct FileSystemStats {
  uint64_t blocks = 0, blocks_free = 0, blocks_available = 0, files = 0, files_free = 0;
  uint32_t block_size = 0, name_max = 0, fragment_size = 0;
};
struct Text {
  Bytes bytes;
};  // a link's target, an xattr or a list of their names
struct Offset {
  uint64_t value = 0;
};
struct LockState {
  bool free = true;
  LockType type = LockType::Unlock;
  uint64_t start = 0, end = 0;
  uint32_t pid = 0;
};

using Outcome =
    std::variant<std::monostate, Node, DirectoryPage, FileSystemStats, Text, Offset, LockState>;

struct Reply {
  uint64_t call = 0;
  int32_t error = 0;
  Outcome outcome;
};

using ToHome = std::variant<LeaseRequest, RecallAck, Flush, Fetch, Release, Call, Announce,
                            SizeShown, FollowWait>;
using ToAgent =
    std::variant<Grant, Recall, FlushAck, FetchReply, Reply, ShowSize, Announced, FollowOwner>;

// The file whose connection and order a message belongs to.
FileId file_of(const Operation& operation);
FileId file_of(const ToHome& message);

}  // namespace vremote::coherence
