// The bytes of files: read, write, sync, allocate, seek.
#include <fcntl.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <limits>
#include <memory>
#include <mutex>
#include <shared_mutex>

#include "store/journal.h"
#include "store/size_locks.h"
#include "store/store.h"
#include "store/table.h"

namespace vremote::store {
namespace {

constexpr uint64_t kOffsetMax = std::numeric_limits<off_t>::max();
constexpr size_t kIovMax = 64;
constexpr uint64_t kAskSizeAbove = 16 << 10;  // below it, an unused buffer is cheaper than asking

struct Buffer {
  std::shared_ptr<std::byte[]> memory;
  size_t size = 0;
  Bytes take(size_t used) && {
    std::span<const std::byte> view(memory.get(), used);
    return Bytes(std::move(memory), view);
  }
};

// What a read of [offset, offset + length) needs at most. The length comes from the wire and may
// lie far beyond the file.
Result<Buffer> buffer_for(int fd, uint64_t offset, uint64_t length) {
  if (offset > kOffsetMax) return fail(EINVAL);
  length = std::min(length, kOffsetMax - offset);
  if (length > kAskSizeAbove) {
    struct stat st {};
    if (::fstat(fd, &st) != 0) return fail(errno);
    auto size = static_cast<uint64_t>(st.st_size);
    length = size > offset ? std::min(length, size - offset) : 0;
  }
  if (length > kReadMax) return fail(EINVAL);
  return Buffer{std::make_shared_for_overwrite<std::byte[]>(length), length};
}

// Writes a run of extents that follow each other without gaps.
Status write_run(int fd, std::span<const coherence::Extent> run) {
  iovec pieces[kIovMax];
  size_t count = 0;
  for (const auto& extent : run)
    pieces[count++] = {const_cast<std::byte*>(extent.bytes.data()), extent.bytes.size()};
  auto offset = static_cast<off_t>(run.front().offset);
  std::span<iovec> left(pieces, count);
  while (!left.empty()) {
    ssize_t n = ::pwritev(fd, left.data(), static_cast<int>(left.size()), offset);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail(errno);
    if (n == 0) return fail(EIO);
    offset += n;
    auto written = static_cast<size_t>(n);
    while (!left.empty() && written >= left.front().iov_len) {
      written -= left.front().iov_len;
      left = left.subspan(1);
    }
    if (!left.empty()) {
      left.front().iov_base = static_cast<std::byte*>(left.front().iov_base) + written;
      left.front().iov_len -= written;
    }
  }
  return {};
}

}  // namespace

Result<Bytes> Store::read(FileId id, uint64_t offset, uint64_t length) {
  VR_TRY(file, acquire_data(id));
  VR_TRY(fd, file->readable());
  VR_TRY(buffer, buffer_for(fd, offset, length));
  size_t done = 0;
  while (done < buffer.size) {
    ssize_t n = ::pread(fd, buffer.memory.get() + done, buffer.size - done,
                        static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail(errno);
    if (n == 0) break;
    done += static_cast<size_t>(n);
  }
  return std::move(buffer).take(done);
}

Result<Bytes> Store::try_read(FileId id, uint64_t offset, uint64_t length) {
  OpenRef file = table_->use_if_open(id);
  int fd = file != nullptr ? file->readable_if_open() : -1;
  if (fd < 0) return fail(EAGAIN);
  VR_TRY(buffer, buffer_for(fd, offset, length));
  if (buffer.size == 0) return Bytes();
  iovec piece{buffer.memory.get(), buffer.size};
  ssize_t n = ::preadv2(fd, &piece, 1, static_cast<off_t>(offset), RWF_NOWAIT);
  if (n < 0 && (errno == EOPNOTSUPP || errno == EINTR)) return fail(EAGAIN);
  if (n < 0) return fail(errno);
  auto done = static_cast<size_t>(n);
  if (done < buffer.size) {
    // The end of the file, or the end of what is in memory?
    struct stat st {};
    if (::fstat(fd, &st) != 0) return fail(errno);
    if (offset + done < static_cast<uint64_t>(st.st_size)) return fail(EAGAIN);
  }
  return std::move(buffer).take(done);
}

Status Store::write(FileId id, std::span<const coherence::Extent> extents) {
  for (const auto& extent : extents) {
    if (extent.offset > kOffsetMax || extent.bytes.size() > kOffsetMax - extent.offset)
      return fail(EFBIG);
  }
  VR_TRY(file, acquire_data(id));
  VR_TRY(fd, file->writable());
  std::shared_lock lock(size_locks_->of(id));
  while (!extents.empty()) {
    size_t count = 1;
    uint64_t end = extents[0].offset + extents[0].bytes.size();
    while (count < extents.size() && count < kIovMax && extents[count].offset == end)
      end += extents[count++].bytes.size();
    auto run = extents.first(count);
    if (end > run.front().offset) {
      auto written = write_run(fd, run);
      if (!written && makes_room(written.error().code)) written = write_run(fd, run);
      if (!written) return written;
    }
    extents = extents.subspan(count);
  }
  return {};
}

Result<coherence::Outcome> Store::run(const Caller&, const coherence::SyncCall& call) {
  VR_TRY(file, acquire_data(call.file));
  Fd directory;
  int fd = -1;
  if (file->is_directory()) {
    VR_TRY(opened, reopen(file->path(), O_RDONLY | O_DIRECTORY));
    directory = std::move(opened);
    fd = directory.get();
  } else {
    VR_TRY(opened, file->readable());
    fd = opened;
  }
  if ((call.data_only ? ::fdatasync(fd) : ::fsync(fd)) != 0) return fail(errno);
  // That nodes can go on using the file after a power failure.
  if (journal_) journal_->sync();
  return Outcome{};
}

Status Store::sync_everything() {
  if (::syncfs(root_.get()) != 0) return fail(errno);
  return {};
}

// As changing a file does for who is not root; we are.
Status Store::strip_as(const Caller& caller, FileId file) {
  if (caller.uid == 0) return {};
  coherence::SetAttributesCall strip;
  strip.file = file;
  strip.clear_suid = true;
  if (auto stripped = run(caller, strip); !stripped) return std::unexpected(stripped.error());
  return {};
}

Result<coherence::Outcome> Store::run(const Caller& caller, const coherence::AllocateCall& call) {
  if (call.offset > kOffsetMax || call.length > kOffsetMax - call.offset) return fail(EFBIG);
  VR_TRY(file, acquire_data(call.file));
  VR_TRY(fd, file->writable());
  {
    std::unique_lock lock(size_locks_->of(call.file));
    int result = 0;
    do {
      result = ::fallocate(fd, static_cast<int>(call.mode), static_cast<off_t>(call.offset),
                           static_cast<off_t>(call.length));
    } while (result != 0 && errno == EINTR);
    if (result != 0) return fail(errno);
  }
  VR_TRY_VOID(strip_as(caller, call.file));
  return Outcome{};
}

Result<coherence::Outcome> Store::run(const Caller& caller, const coherence::CopyCall& call) {
  if (call.from.export_index != export_index_) return fail(EXDEV);
  if (call.offset > kOffsetMax || call.length > kOffsetMax - call.offset ||
      call.from_offset > kOffsetMax || call.length > kOffsetMax - call.from_offset)
    return fail(EFBIG);
  VR_TRY(from, acquire_data(call.from));
  VR_TRY(file, acquire_data(call.file));
  VR_TRY(in, from->readable());
  VR_TRY(out, file->writable());
  std::shared_lock lock(size_locks_->of(call.file));
  auto in_offset = static_cast<off_t>(call.from_offset);
  auto out_offset = static_cast<off_t>(call.offset);
  uint64_t copied = 0;
  while (copied < call.length) {
    const ssize_t n = ::copy_file_range(in, &in_offset, out, &out_offset, call.length - copied, 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && copied == 0) return fail(errno);
    if (n <= 0) break;
    copied += static_cast<uint64_t>(n);
  }
  if (copied > 0) VR_TRY_VOID(strip_as(caller, call.file));
  return coherence::Offset{copied};
}

// Locks and sessions are the home's: a disk knows nothing of them.
Result<coherence::Outcome> Store::run(const Caller&, const coherence::LockCall&) {
  return fail(EOPNOTSUPP, "locks are not kept on the disk");
}

Result<coherence::Outcome> Store::run(const Caller&, const coherence::ReclaimCall&) {
  return fail(EOPNOTSUPP, "sessions are not kept on the disk");
}

Result<coherence::Outcome> Store::run(const Caller&, const coherence::LeaveCall&) {
  return fail(EOPNOTSUPP, "sessions are not kept on the disk");
}

Result<coherence::Outcome> Store::run(const Caller&, const coherence::SeekCall& call) {
  // The others need no disk: the asking node answers them from the size.
  if (call.whence != SEEK_DATA && call.whence != SEEK_HOLE) return fail(EINVAL);
  if (call.offset > kOffsetMax) return fail(ENXIO);
  VR_TRY(file, acquire_data(call.file));
  VR_TRY(fd, file->readable());
  // The position this sets is shared with other threads and used by nobody.
  off_t found = ::lseek(fd, static_cast<off_t>(call.offset), static_cast<int>(call.whence));
  if (found < 0) return fail(errno);
  return coherence::Offset{static_cast<uint64_t>(found)};
}

}  // namespace vremote::store
