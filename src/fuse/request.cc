#include "fuse/request.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstring>
#include <limits>

#include "fuse/protocol.h"

namespace vremote::fuse {
namespace {

// Takes values off the front of a request's body. The first thing that is not there makes it bad
// for good; everything taken from a bad reader is empty, so decoders need to look once, at the end.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> body) : rest_(body) {}

  bool bad() const { return bad_; }

  template <typename T>
  T take() {
    T value{};
    if (const auto bytes = take_bytes(sizeof(T)); !bad_)
      std::memcpy(&value, bytes.data(), sizeof(T));
    return value;
  }

  std::span<const std::byte> take_bytes(size_t count) {
    if (count > rest_.size()) bad_ = true;
    if (bad_) return {};
    const auto taken = rest_.first(count);
    rest_ = rest_.subspan(count);
    return taken;
  }

  // Everything left, which must be `count` bytes: a length that disagrees with the request's is not
  // to be trusted either way.
  std::span<const std::byte> take_rest(size_t count) {
    if (count != rest_.size()) bad_ = true;
    return take_bytes(count);
  }

  std::string_view take_text() {
    const void* end = rest_.empty() ? nullptr : std::memchr(rest_.data(), 0, rest_.size());
    if (end == nullptr) bad_ = true;
    if (bad_) return {};
    const auto length = static_cast<size_t>(static_cast<const std::byte*>(end) - rest_.data());
    const auto text = take_bytes(length);
    take_bytes(1);
    return {reinterpret_cast<const char*>(text.data()), text.size()};
  }

  // One component of a path. Its length is not limited here: too long is ENAMETOOLONG, not
  // malformed.
  std::string_view take_name() {
    const auto name = take_text();
    require(!name.empty() && name.find('/') == std::string_view::npos);
    return name;
  }

  std::string_view take_xattr_name() {
    const auto name = take_text();
    require(!name.empty());
    return name;
  }

  void require(bool condition) {
    if (!condition) bad_ = true;
  }

 private:
  std::span<const std::byte> rest_;
  bool bad_ = false;
};

// True when [offset, offset + length) lies in what off_t can say.
bool fits_file(uint64_t offset, uint64_t length) {
  constexpr auto kEnd = static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
  return offset <= kEnd && length <= kEnd - offset;
}

// READDIR may ask for as many bytes as max_pages of a kernel with large pages have; less is a fine
// answer.
uint32_t bounded(uint32_t size) { return size < kMaxTransfer ? size : kMaxTransfer; }

BatchForget batch_forget(Reader& in) {
  const auto head = in.take<fuse_batch_forget_in>();
  BatchForget batch;
  // One by one: a count that lies ends the loop at the end of the buffer, before it can reserve
  // memory.
  for (uint32_t i = 0; i < head.count && !in.bad(); ++i) {
    const auto one = in.take<fuse_forget_one>();
    batch.forgets.push_back({.node = one.nodeid, .lookups = one.nlookup});
  }
  return batch;
}

GetAttr get_attr(Reader& in) {
  const auto a = in.take<fuse_getattr_in>();
  GetAttr get;
  if ((a.getattr_flags & FUSE_GETATTR_FH) != 0) get.fh = a.fh;
  return get;
}

Timestamp timestamp(Reader& in, uint64_t seconds, uint32_t nanoseconds) {
  in.require(nanoseconds < 1'000'000'000);
  return {.seconds = static_cast<int64_t>(seconds), .nanoseconds = nanoseconds};
}

SetAttr set_attr(Reader& in) {
  const auto a = in.take<fuse_setattr_in>();
  SetAttr set;
  if ((a.valid & FATTR_FH) != 0) set.fh = a.fh;
  if ((a.valid & FATTR_LOCKOWNER) != 0) set.lock_owner = a.lock_owner;
  if ((a.valid & FATTR_MODE) != 0) set.mode = a.mode;
  if ((a.valid & FATTR_UID) != 0) set.uid = a.uid;
  if ((a.valid & FATTR_GID) != 0) set.gid = a.gid;
  if ((a.valid & FATTR_SIZE) != 0) {
    in.require(fits_file(a.size, 0));
    set.size = a.size;
  }
  if ((a.valid & FATTR_ATIME) != 0) set.atime = timestamp(in, a.atime, a.atimensec);
  if ((a.valid & FATTR_MTIME) != 0) set.mtime = timestamp(in, a.mtime, a.mtimensec);
  if ((a.valid & FATTR_CTIME) != 0) set.ctime = timestamp(in, a.ctime, a.ctimensec);
  set.atime_now = set.atime && (a.valid & FATTR_ATIME_NOW) != 0;
  set.mtime_now = set.mtime && (a.valid & FATTR_MTIME_NOW) != 0;
  set.kill_suidgid = (a.valid & FATTR_KILL_SUIDGID) != 0;
  return set;
}

Symlink symlink(Reader& in) {
  Symlink link;
  link.name = in.take_name();
  link.target = in.take_text();
  in.require(!link.target.empty());
  return link;
}

MkNod mk_nod(Reader& in) {
  const auto a = in.take<fuse_mknod_in>();
  return {.name = in.take_name(), .mode = a.mode, .rdev = a.rdev, .umask = a.umask};
}

MkDir mk_dir(Reader& in) {
  const auto a = in.take<fuse_mkdir_in>();
  return {.name = in.take_name(), .mode = a.mode, .umask = a.umask};
}

Rename rename(Reader& in, bool with_flags) {
  Rename rename;
  if (with_flags) {
    const auto a = in.take<fuse_rename2_in>();
    rename.new_directory = a.newdir;
    rename.flags = a.flags;
  } else {
    rename.new_directory = in.take<fuse_rename_in>().newdir;
  }
  rename.name = in.take_name();
  rename.new_name = in.take_name();
  return rename;
}

Link link(Reader& in) {
  const auto a = in.take<fuse_link_in>();
  return {.old_node = a.oldnodeid, .name = in.take_name()};
}

Statx statx(Reader& in) {
  const auto a = in.take<StatxIn>();
  Statx statx{.fh = {}, .flags = a.statx_flags, .mask = a.statx_mask};
  if ((a.getattr_flags & FUSE_GETATTR_FH) != 0) statx.fh = a.fh;
  return statx;
}

Open open(Reader& in) {
  const auto a = in.take<fuse_open_in>();
  return {.flags = a.flags, .kill_suidgid = (a.open_flags & FUSE_OPEN_KILL_SUIDGID) != 0};
}

Create create(Reader& in) {
  const auto a = in.take<fuse_create_in>();
  return {.name = in.take_name(),
          .flags = a.flags,
          .mode = a.mode,
          .umask = a.umask,
          .kill_suidgid = (a.open_flags & FUSE_OPEN_KILL_SUIDGID) != 0};
}

TmpFile tmp_file(Reader& in) {
  const auto a = in.take<fuse_create_in>();
  in.take_text();  // what the kernel calls its entry meanwhile
  return {.flags = a.flags,
          .mode = a.mode,
          .kill_suidgid = (a.open_flags & FUSE_OPEN_KILL_SUIDGID) != 0};
}

Read read(Reader& in) {
  const auto a = in.take<fuse_read_in>();
  // A larger read than the mount's max_read is not something to be answered short: short means the
  // end of the file.
  in.require(a.size <= kMaxTransfer && fits_file(a.offset, a.size));
  const bool direct = (a.read_flags & FUSE_READ_LOCKOWNER) != 0;
  return {.fh = a.fh,
          .offset = a.offset,
          .size = a.size,
          .flags = a.flags,
          .fill = !direct,
          .lock_owner = direct ? a.lock_owner : 0};
}

Write write(Reader& in) {
  const auto a = in.take<fuse_write_in>();
  in.require(fits_file(a.offset, a.size));
  Write write;
  write.fh = a.fh;
  write.offset = a.offset;
  write.payload = in.take_rest(a.size);
  write.flags = a.flags;
  write.write_back = (a.write_flags & FUSE_WRITE_CACHE) != 0;
  write.kill_suidgid = (a.write_flags & FUSE_WRITE_KILL_SUIDGID) != 0;
  if ((a.write_flags & FUSE_WRITE_LOCKOWNER) != 0) write.lock_owner = a.lock_owner;
  return write;
}

Flush flush(Reader& in) {
  const auto a = in.take<fuse_flush_in>();
  return {.fh = a.fh, .lock_owner = a.lock_owner};
}

Release release(Reader& in) {
  const auto a = in.take<fuse_release_in>();
  return {.fh = a.fh,
          .flags = a.flags,
          .lock_owner = a.lock_owner,
          .flock_unlock = (a.release_flags & FUSE_RELEASE_FLOCK_UNLOCK) != 0};
}

template <typename T>
T fsync(Reader& in) {
  const auto a = in.take<fuse_fsync_in>();
  return {.fh = a.fh, .data_only = (a.fsync_flags & FUSE_FSYNC_FDATASYNC) != 0};
}

Fallocate fallocate(Reader& in) {
  const auto a = in.take<fuse_fallocate_in>();
  in.require(fits_file(a.offset, a.length));
  return {.fh = a.fh, .offset = a.offset, .length = a.length, .mode = a.mode};
}

LSeek lseek(Reader& in) {
  const auto a = in.take<fuse_lseek_in>();
  return {.fh = a.fh, .offset = a.offset, .whence = a.whence};
}

CopyFileRange copy_file_range(Reader& in, bool reply_64) {
  const auto a = in.take<fuse_copy_file_range_in>();
  in.require(fits_file(a.off_in, a.len) && fits_file(a.off_out, a.len));
  return {.fh_in = a.fh_in,
          .offset_in = a.off_in,
          .node_out = a.nodeid_out,
          .fh_out = a.fh_out,
          .offset_out = a.off_out,
          .length = a.len,
          .flags = a.flags,
          .reply_64 = reply_64};
}

Poll poll(Reader& in) {
  const auto a = in.take<fuse_poll_in>();
  return {.fh = a.fh, .kernel_handle = a.kh, .flags = a.flags, .events = a.events};
}

Ioctl ioctl(Reader& in) {
  const auto a = in.take<fuse_ioctl_in>();
  return {.fh = a.fh,
          .flags = a.flags,
          .command = a.cmd,
          .argument = a.arg,
          .input = in.take_rest(a.in_size),
          .output_size = a.out_size};
}

OpenDir open_dir(Reader& in) { return {.flags = in.take<fuse_open_in>().flags}; }

template <typename T>
T read_dir(Reader& in) {
  const auto a = in.take<fuse_read_in>();
  return {.fh = a.fh, .offset = a.offset, .size = bounded(a.size)};
}

ReleaseDir release_dir(Reader& in) {
  const auto a = in.take<fuse_release_in>();
  return {.fh = a.fh, .flags = a.flags};
}

FileLock file_lock(Reader& in) {
  const auto a = in.take<fuse_lk_in>();
  return {.fh = a.fh,
          .owner = a.owner,
          .start = a.lk.start,
          .end = a.lk.end,
          .type = a.lk.type,
          .pid = a.lk.pid,
          .flock = (a.lk_flags & FUSE_LK_FLOCK) != 0};
}

SetXattr set_xattr(Reader& in) {
  // The short form: the long one comes only after SETXATTR_EXT, which we do not ask for.
  struct ShortIn {
    uint32_t size;
    uint32_t flags;
  };
  static_assert(sizeof(ShortIn) == FUSE_COMPAT_SETXATTR_IN_SIZE);
  const auto a = in.take<ShortIn>();
  SetXattr set;
  set.name = in.take_xattr_name();
  set.value = in.take_rest(a.size);
  set.flags = a.flags;
  return set;
}

GetXattr get_xattr(Reader& in) {
  const auto a = in.take<fuse_getxattr_in>();
  return {.name = in.take_xattr_name(), .size = a.size};
}

Init init(Reader& in) {
  struct Base {  // all there was before 7.36
    uint32_t major;
    uint32_t minor;
    uint32_t max_readahead;
    uint32_t flags;
  };
  const auto a = in.take<Base>();
  uint64_t flags = a.flags;
  if ((flags & FUSE_INIT_EXT) != 0) flags |= uint64_t{in.take<uint32_t>()} << 32;
  return {.major = a.major, .minor = a.minor, .max_readahead = a.max_readahead, .flags = flags};
}

Body body_of(uint32_t opcode, uint64_t node, Reader& in) {
  switch (opcode) {
    case FUSE_LOOKUP:
      return Lookup{in.take_name()};
    case FUSE_FORGET:
      return Forget{.node = node, .lookups = in.take<fuse_forget_in>().nlookup};
    case FUSE_BATCH_FORGET:
      return batch_forget(in);
    case FUSE_GETATTR:
      return get_attr(in);
    case FUSE_SETATTR:
      return set_attr(in);
    case FUSE_READLINK:
      return ReadLink{};
    case FUSE_SYMLINK:
      return symlink(in);
    case FUSE_MKNOD:
      return mk_nod(in);
    case FUSE_MKDIR:
      return mk_dir(in);
    case FUSE_UNLINK:
      return Unlink{in.take_name()};
    case FUSE_RMDIR:
      return RmDir{in.take_name()};
    case FUSE_RENAME:
      return rename(in, false);
    case FUSE_RENAME2:
      return rename(in, true);
    case FUSE_LINK:
      return link(in);
    case FUSE_STATFS:
      return StatFs{};
    case FUSE_ACCESS:
      return Access{in.take<fuse_access_in>().mask};
    case kOpStatx:
      return statx(in);
    case FUSE_OPEN:
      return open(in);
    case FUSE_CREATE:
      return create(in);
    case FUSE_TMPFILE:
      return tmp_file(in);
    case FUSE_READ:
      return read(in);
    case FUSE_WRITE:
      return write(in);
    case FUSE_FLUSH:
      return flush(in);
    case FUSE_RELEASE:
      return release(in);
    case FUSE_FSYNC:
      return fsync<Fsync>(in);
    case FUSE_FALLOCATE:
      return fallocate(in);
    case FUSE_LSEEK:
      return lseek(in);
    case FUSE_COPY_FILE_RANGE:
      return copy_file_range(in, false);
    case kOpCopyFileRange64:
      return copy_file_range(in, true);
    case FUSE_POLL:
      return poll(in);
    case FUSE_IOCTL:
      return ioctl(in);
    case FUSE_OPENDIR:
      return open_dir(in);
    case FUSE_READDIR:
      return read_dir<ReadDir>(in);
    case FUSE_READDIRPLUS:
      return read_dir<ReadDirPlus>(in);
    case FUSE_RELEASEDIR:
      return release_dir(in);
    case FUSE_FSYNCDIR:
      return fsync<FsyncDir>(in);
    case FUSE_GETLK:
      return GetLk{file_lock(in)};
    case FUSE_SETLK:
      return SetLk{file_lock(in)};
    case FUSE_SETLKW:
      return SetLkw{file_lock(in)};
    case FUSE_SETXATTR:
      return set_xattr(in);
    case FUSE_GETXATTR:
      return get_xattr(in);
    case FUSE_LISTXATTR:
      return ListXattr{in.take<fuse_getxattr_in>().size};
    case FUSE_REMOVEXATTR:
      return RemoveXattr{in.take_xattr_name()};
    case FUSE_INIT:
      return init(in);
    case FUSE_DESTROY:
      return Destroy{};
    case FUSE_INTERRUPT:
      return Interrupt{in.take<fuse_interrupt_in>().unique & ~kUniqueResend};
    default:
      return Unknown{opcode};  // opcodes are open-ended: kernels newer than us have more
  }
}

}  // namespace

uint64_t RequestHeader::wire_unique() const { return resent ? unique | kUniqueResend : unique; }

Result<RequestHeader> decode_header(std::span<const std::byte> buffer) {
  if (buffer.size() < sizeof(fuse_in_header)) {
    return fail(EPROTO,
                fmt::format("a FUSE request of {} bytes has no whole header", buffer.size()));
  }
  fuse_in_header head;
  std::memcpy(&head, buffer.data(), sizeof(head));
  return RequestHeader{.unique = head.unique & ~kUniqueResend,
                       .resent = (head.unique & kUniqueResend) != 0,
                       .opcode = head.opcode,
                       .node = head.nodeid,
                       .uid = head.uid,
                       .gid = head.gid,
                       .pid = head.pid};
}

Result<Request> decode(std::span<const std::byte> buffer) {
  VR_TRY(header, decode_header(buffer));
  fuse_in_header head;
  std::memcpy(&head, buffer.data(), sizeof(head));
  // Extensions come last and only to those who asked for them; we did not, but know how to step
  // over them.
  const size_t extensions = size_t{head.total_extlen} * 8;
  if (head.len != buffer.size() || extensions > buffer.size() - sizeof(head)) {
    return fail(EPROTO, fmt::format("FUSE request {} of {} bytes claims {} and {} of extensions",
                                    head.opcode, buffer.size(), head.len, extensions));
  }
  Reader in(buffer.subspan(sizeof(head), buffer.size() - sizeof(head) - extensions));
  Result<Request> request(std::in_place);  // made where it is returned: moving it costs
  request->header = header;
  request->body = body_of(header.opcode, header.node, in);
  if (in.bad()) {
    return fail(EPROTO,
                fmt::format("malformed FUSE request {} of {} bytes", head.opcode, buffer.size()));
  }
  return request;
}

bool wants_reply(uint32_t opcode) {
  return opcode != FUSE_FORGET && opcode != FUSE_BATCH_FORGET && opcode != FUSE_INTERRUPT;
}

}  // namespace vremote::fuse
