// Requests of the kernel, decoded into plain values.
//
// Nothing here does I/O. Strings and payloads are views into the buffer the request was read into
// and live as long as it does. Every length and every NUL is checked against the buffer: a
// malformed request is an Error (EPROTO), never a crash.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <variant>
#include <vector>

#include "base/result.h"
#include "base/time.h"

namespace vremote::fuse {

struct RequestHeader {
  uint64_t unique =
      0;  // without the resend bit: with the connection, the idempotency key of the request
  bool resent =
      false;  // delivered before and not answered (kUniqueResend); replies need wire_unique()
  uint32_t opcode = 0;
  uint64_t node = 0;  // what the request is about; FUSE_ROOT_ID is the root
  uint32_t uid = 0;
  uint32_t gid = 0;
  uint32_t pid = 0;  // the calling thread; 0 when it lives in a pid namespace we cannot see, or for
                     // write-backs

  // What a reply must carry.
  uint64_t wire_unique() const;
};

// ---- names and attributes -----------------------------------------------------------------------

struct Lookup {
  std::string_view name;
};
struct Forget {
  uint64_t node = 0;
  uint64_t lookups = 0;
};  // no reply
struct BatchForget {
  std::vector<Forget> forgets;
};  // no reply
struct GetAttr {
  std::optional<uint64_t> fh;
};
struct SetAttr {
  std::optional<uint64_t> fh;  // ftruncate and friends
  std::optional<uint64_t> lock_owner;
  std::optional<uint32_t> mode, uid, gid;
  std::optional<uint64_t> size;
  std::optional<Timestamp> atime, mtime, ctime;
  bool atime_now = false;  // atime is set too, as the kernel's idea of now
  bool mtime_now = false;
  bool kill_suidgid = false;  // FATTR_KILL_SUIDGID
};
struct ReadLink {};
struct Symlink {
  std::string_view name;
  std::string_view target;
};
struct MkNod {
  std::string_view name;
  uint32_t mode = 0;
  uint32_t rdev = 0;
  uint32_t umask = 0;
};
struct MkDir {
  std::string_view name;
  uint32_t mode = 0;
  uint32_t umask = 0;
};
struct Unlink {
  std::string_view name;
};
struct RmDir {
  std::string_view name;
};
// Also RENAME2; `flags` are those of renameat2(2). The header's node is the old directory.
struct Rename {
  std::string_view name;
  uint64_t new_directory = 0;
  std::string_view new_name;
  uint32_t flags = 0;
};
// The header's node is the directory the new name goes into.
struct Link {
  uint64_t old_node = 0;
  std::string_view name;
};
struct StatFs {};
struct Access {
  uint32_t mask = 0;
};
struct Statx {
  std::optional<uint64_t> fh;
  uint32_t flags = 0;
  uint32_t mask = 0;
};

// ---- files --------------------------------------------------------------------------------------

struct Open {
  uint32_t flags = 0;
  bool kill_suidgid = false;
};  // flags: O_*; O_TRUNC is ours to do (ATOMIC_O_TRUNC)
struct Create {
  std::string_view name;
  uint32_t flags = 0;
  uint32_t mode = 0;
  uint32_t umask = 0;
  bool kill_suidgid = false;
};
// A file without a name in the directory that the header's node is (7.37, Linux 6.2).
struct TmpFile {
  uint32_t flags = 0;  // with O_EXCL it never gets a name
  uint32_t mode = 0;
  bool kill_suidgid = false;
};
struct Read {
  uint64_t fh = 0;
  uint64_t offset = 0;
  uint32_t size = 0;
  uint32_t flags = 0;  // O_* of the handle
  bool fill = false;   // fills the page cache: its folios stay locked until it is answered. Else a
                       // direct read
  uint64_t lock_owner = 0;  // direct reads only
};
struct Write {
  uint64_t fh = 0;  // a guess when write_back
  uint64_t offset = 0;
  std::span<const std::byte> payload;
  uint32_t flags = 0;       // O_* of the handle, O_APPEND for instance
  bool write_back = false;  // from the page cache: answer at once, waiting on nothing
  bool kill_suidgid = false;
  std::optional<uint64_t> lock_owner;
};
struct Flush {
  uint64_t fh = 0;
  uint64_t lock_owner = 0;
};  // one per close(2)
struct Release {
  uint64_t fh = 0;
  uint32_t flags = 0;
  uint64_t lock_owner = 0;
  bool flock_unlock = false;  // the handle may hold a flock(2)
};
struct Fsync {
  uint64_t fh = 0;
  bool data_only = false;
};
struct Fallocate {
  uint64_t fh = 0;
  uint64_t offset = 0;
  uint64_t length = 0;
  uint32_t mode = 0;
};
struct LSeek {
  uint64_t fh = 0;
  uint64_t offset = 0;
  uint32_t whence = 0;
};  // SEEK_DATA and SEEK_HOLE only
struct CopyFileRange {
  uint64_t fh_in = 0;
  uint64_t offset_in = 0;
  uint64_t node_out = 0;
  uint64_t fh_out = 0;
  uint64_t offset_out = 0;
  uint64_t length = 0;
  uint64_t flags = 0;
  bool reply_64 = false;  // answer with copy_out_64(), else write_out()
};
struct Poll {
  uint64_t fh = 0;
  uint64_t kernel_handle = 0;
  uint32_t flags = 0;
  uint32_t events = 0;
};
struct Ioctl {
  uint64_t fh = 0;
  uint32_t flags = 0;
  uint32_t command = 0;
  uint64_t argument = 0;
  std::span<const std::byte> input;
  uint32_t output_size = 0;
};

// ---- directories --------------------------------------------------------------------------------

struct OpenDir {
  uint32_t flags = 0;
};
struct ReadDir {
  uint64_t fh = 0;
  uint64_t offset = 0;
  uint32_t size = 0;
};
struct ReadDirPlus {
  uint64_t fh = 0;
  uint64_t offset = 0;
  uint32_t size = 0;
};
struct ReleaseDir {
  uint64_t fh = 0;
  uint32_t flags = 0;
};
struct FsyncDir {
  uint64_t fh = 0;
  bool data_only = false;
};

// ---- locks and extended attributes --------------------------------------------------------------

struct FileLock {
  uint64_t fh = 0;
  uint64_t owner = 0;
  uint64_t start = 0;
  uint64_t end = 0;   // inclusive; OFFSET_MAX is the end of the file
  uint32_t type = 0;  // F_RDLCK, F_WRLCK, F_UNLCK
  uint32_t pid = 0;
  bool flock = false;  // flock(2): the whole file, owned by the handle
};
struct GetLk {
  FileLock lock;
};
struct SetLk {
  FileLock lock;
};  // EAGAIN at a conflict
struct SetLkw {
  FileLock lock;
};  // waits

struct SetXattr {
  std::string_view name;
  std::span<const std::byte> value;
  uint32_t flags = 0;
};
struct GetXattr {
  std::string_view name;
  uint32_t size = 0;
};  // size 0: answer getxattr_out(length)
struct ListXattr {
  uint32_t size = 0;
};  // likewise
struct RemoveXattr {
  std::string_view name;
};

// ---- the session --------------------------------------------------------------------------------

struct Init {
  uint32_t major = 0;
  uint32_t minor = 0;
  uint32_t max_readahead = 0;
  uint64_t flags = 0;
};  // flags2 in the high half
struct Destroy {};
// Asks that the request be ended with EINTR. No reply. May arrive after that request was answered.
// `unique` as in RequestHeader.
struct Interrupt {
  uint64_t unique = 0;
};
struct Unknown {
  uint32_t opcode = 0;
};  // answer ENOSYS: the kernel does not ask again

using Body =
    std::variant<Lookup, Forget, BatchForget, GetAttr, SetAttr, ReadLink, Symlink, MkNod, MkDir,
                 Unlink, RmDir, Rename, Link, StatFs, Access, Statx, Open, Create, TmpFile, Read,
                 Write, Flush, Release, Fsync, Fallocate, LSeek, CopyFileRange, Poll, Ioctl,
                 OpenDir, ReadDir, ReadDirPlus, ReleaseDir, FsyncDir, GetLk, SetLk, SetLkw,
                 SetXattr, GetXattr, ListXattr, RemoveXattr, Init, Destroy, Interrupt, Unknown>;

struct Request {
  RequestHeader header;
  Body body;
};

// The header alone; with it a request whose body is malformed can still be answered (EIO).
Result<RequestHeader> decode_header(std::span<const std::byte> buffer);

// One whole request, exactly the bytes one receive() returned.
Result<Request> decode(std::span<const std::byte> buffer);

// True when the kernel waits for an answer: all but Forget, BatchForget and Interrupt.
bool wants_reply(uint32_t opcode);

}  // namespace vremote::fuse
