// Attributes: stat, what agents changed under their leases, setattr, statfs, the target of a link.
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <limits>
#include <mutex>
#include <shared_mutex>

#include "store/credentials.h"
#include "store/departed.h"
#include "store/size_locks.h"
#include "store/store.h"
#include "store/table.h"

namespace vremote::store {
namespace {

constexpr uint64_t kSizeMax = std::numeric_limits<off_t>::max();

bool is_time(const Timestamp& time) {
  return time.nanoseconds < 1'000'000'000;
}  // UTIME_NOW and UTIME_OMIT are not

timespec to_timespec(bool set, bool now, const Timestamp& time) {
  if (!set) return {0, UTIME_OMIT};
  if (now) return {0, UTIME_NOW};
  return {time.seconds, static_cast<long>(time.nanoseconds)};
}

Status set_times(const OpenFile& file, timespec atime, timespec mtime) {
  timespec times[2] = {atime, mtime};
  if (::utimensat(AT_FDCWD, ProcPath(file.path()).c_str(), times, 0) != 0) return fail(errno);
  return {};
}

Status truncate_to(OpenFile& file, uint64_t size) {
  if (file.is_directory()) return fail(EISDIR);
  if (size > kSizeMax) return fail(EFBIG);
  VR_TRY(fd, file.writable());
  int result = 0;
  do {
    result = ::ftruncate(fd, static_cast<off_t>(size));
  } while (result != 0 && errno == EINTR);
  if (result != 0) return fail(errno);
  return {};
}

bool is_member(const coherence::Caller& caller, gid_t group) {
  return caller.uid == 0 || caller.gid == group ||
         std::find(caller.groups.begin(), caller.groups.end(), group) != caller.groups.end();
}

// What a write, a truncation or a chown by somebody without privileges does to a program's set-ID
// bits. `group`: the file's before that.
Status clear_set_id(const coherence::Caller& caller, const OpenFile& file, gid_t group) {
  VR_TRY(st, file.stat());
  if (!file.is_regular()) return {};
  mode_t cleared = st.st_mode & ~S_ISUID;
  // Without it, set-group-ID once meant mandatory locks: the group's members leave it alone.
  if ((st.st_mode & S_IXGRP) != 0 || !is_member(caller, group)) cleared &= ~S_ISGID;
  if (cleared == st.st_mode) return {};
  return change_mode(file.path(), cleared);
}

}  // namespace

Result<Attributes> Store::stat(FileId id) {
  auto file = acquire(id, Keep::No);
  if (!file) {
    if (file.error().code == ESTALE)
      if (const auto last = departed_->attributes(id)) return *last;
    return std::unexpected(file.error());
  }
  VR_TRY(st, (*file)->stat());
  Attributes attributes = attributes_of(st);
  struct statx born {};
  if (::statx((*file)->path(), "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_BTIME, &born) == 0 &&
      (born.stx_mask & STATX_BTIME) != 0) {
    attributes.has_btime = true;
    attributes.btime = {born.stx_btime.tv_sec, born.stx_btime.tv_nsec};
  }
  if (st.st_nlink == 0 && !table_->pinned(id)) {
    departed_->add(id, st, std::move(*file));
    table_->gone(id);
  }
  return attributes;
}

Status Store::apply(FileId id, const coherence::DirtyAttributes& changes) {
  if (changes.has_mtime && !is_time(changes.mtime)) return fail(EINVAL);
  VR_TRY(file, acquire_data(id));
  if (changes.has_size) {
    if (!file->is_regular()) return fail(file->is_directory() ? EISDIR : EINVAL);
    std::unique_lock lock(size_locks_->of(id));
    VR_TRY(st, file->stat());
    if (changes.size > static_cast<uint64_t>(st.st_size))
      VR_TRY_VOID(truncate_to(*file, changes.size));
  }
  if (changes.has_mtime)
    VR_TRY_VOID(set_times(*file, {0, UTIME_OMIT}, to_timespec(true, false, changes.mtime)));
  return {};
}

Result<coherence::Outcome> Store::run(const Caller& caller,
                                      const coherence::SetAttributesCall& call) {
  constexpr uint32_t kNobody = std::numeric_limits<uint32_t>::max();  // means "leave it" to chown()
  if ((call.has_uid && call.uid == kNobody) || (call.has_gid && call.gid == kNobody))
    return fail(EINVAL);
  if (call.has_atime && !call.atime_now && !is_time(call.atime)) return fail(EINVAL);
  if (call.has_mtime && !call.mtime_now && !is_time(call.mtime)) return fail(EINVAL);
  VR_TRY(file, acquire_data(call.file));
  if (call.must_own) {
    VR_TRY(owned, file->stat());
    if (owned.st_uid != caller.uid) return fail(EPERM);
  }
  // Nothing at all is what a kernel sends for chown(-1, -1), which takes set-ID bits away. For
  // fallocate(2) by a stranger, too, and there the call itself sees to them: so who may not change
  // the owner is not refused.
  if (!call.has_mode && !call.has_uid && !call.has_gid && !call.has_size && !call.has_atime &&
      !call.has_mtime && !call.clear_suid) {
    const auto done = as_caller(caller, privileged_, [&] {
      return ::fchownat(file->path(), "", kNobody, kNobody, AT_EMPTY_PATH);
    });
    if (!done && done.error().code != EPERM) return std::unexpected(done.error());
  }
  // In this order: the size is what fails most, a chown clears set-ID bits that a mode may set, and
  // everything else sets times.
  uint64_t size_before = 0;
  if (call.has_size) {
    std::unique_lock lock(size_locks_->of(call.file));
    VR_TRY(was, file->stat());
    size_before = static_cast<uint64_t>(was.st_size);
    VR_TRY_VOID(truncate_to(*file, call.size));
  }
  VR_TRY(before, file->stat());
  if (call.has_uid || call.has_gid) {
    uid_t uid = call.has_uid ? call.uid : kNobody;
    gid_t gid = call.has_gid ? call.gid : kNobody;
    VR_TRY_VOID(as_caller(caller, judges_,
                          [&] { return ::fchownat(file->path(), "", uid, gid, AT_EMPTY_PATH); }));
  }
  if (call.has_mode) {
    VR_TRY(scope, CallerScope::enter(caller, judges_));
    static_cast<void>(scope);
    VR_TRY_VOID(change_mode(file->path(), call.mode));
  }
  if (call.clear_suid && !call.has_mode) VR_TRY_VOID(clear_set_id(caller, *file, before.st_gid));
  if (call.has_atime || call.has_mtime) {
    VR_TRY(scope, CallerScope::enter(caller, judges_));
    static_cast<void>(scope);
    VR_TRY_VOID(set_times(*file, to_timespec(call.has_atime, call.atime_now, call.atime),
                          to_timespec(call.has_mtime, call.mtime_now, call.mtime)));
  }
  VR_TRY(st, file->stat());
  return coherence::Node{call.file, attributes_of(st), size_before};
}

Result<coherence::Outcome> Store::run(const Caller&, const coherence::StatFsCall& call) {
  // One that has been removed is still of this file system; one that never was is not.
  const auto file = acquire(call.file, Keep::No);
  if (!file && (file.error().code != ESTALE || !departed_->attributes(call.file)))
    return std::unexpected(file.error());
  struct statvfs st {};
  if (::fstatvfs(file ? (*file)->path() : root_.get(), &st) != 0) return fail(errno);
  coherence::FileSystemStats stats;
  stats.blocks = st.f_blocks;
  stats.blocks_free = st.f_bfree;
  stats.blocks_available = st.f_bavail;
  stats.files = st.f_files;
  stats.files_free = st.f_ffree;
  stats.block_size = static_cast<uint32_t>(st.f_bsize);
  stats.name_max = static_cast<uint32_t>(st.f_namemax);
  stats.fragment_size = static_cast<uint32_t>(st.f_frsize);
  return stats;
}

Result<coherence::Outcome> Store::run(const Caller&, const coherence::ReadLinkCall& call) {
  VR_TRY(file, acquire(call.file, Keep::No));
  if (file->type() != S_IFLNK) return fail(EINVAL);
  std::byte target[coherence::kLinkMax];
  ssize_t n = ::readlinkat(file->path(), "", reinterpret_cast<char*>(target), sizeof target);
  if (n < 0) return fail(errno);
  if (static_cast<size_t>(n) >= sizeof target) return fail(ENAMETOOLONG);
  return coherence::Text{Bytes::copy_of({target, static_cast<size_t>(n)})};
}

}  // namespace vremote::store
