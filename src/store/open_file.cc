#include "store/open_file.h"

#include <fcntl.h>

#include <cerrno>
#include <shared_mutex>

namespace vremote::store {
namespace {

// Shared: changing a mode for good. Exclusive: changing one for a moment.
std::shared_mutex mode_mutex;

// For an unprivileged daemon: the asking kernel has checked that the caller may write (it may have
// the file open since before its mode forbade that), so the daemon gives itself, the owner, the
// permission while it opens its own file. Never for set-ID files: a chmod by the owner may clear
// those bits for ever.
Result<Fd> open_as_owner(int path, int flags) {
  std::unique_lock lock(mode_mutex);
  ProcPath name(path);
  struct stat st {};
  if (::fstat(path, &st) != 0) return fail(errno);
  if (st.st_uid != ::geteuid() || (st.st_mode & (S_ISUID | S_ISGID)) != 0) return fail(EACCES);
  if (::chmod(name.c_str(), (st.st_mode & 07777) | S_IRUSR | S_IWUSR) != 0) return fail(EACCES);
  auto fd = reopen(path, flags);
  if (::chmod(name.c_str(), st.st_mode & 07777) != 0) return fail(errno);
  return fd;
}

// Opens the data of a regular file whatever its mode.
Result<Fd> open_data(int path, int flags) {
  auto fd = reopen(path, flags);
  if (fd || fd.error().code != EACCES) return fd;
  return open_as_owner(path, flags);
}

}  // namespace

Status change_mode(int path, mode_t mode) {
  std::shared_lock lock(mode_mutex);
  // fchmod() refuses O_PATH descriptors, and fchmodat2() is new (6.6).
  if (::chmod(ProcPath(path).c_str(), mode & 07777) != 0) return fail(errno);
  return {};
}

Attributes attributes_of(const struct stat& st) {
  auto time = [](const timespec& t) {
    return Timestamp{t.tv_sec, static_cast<uint32_t>(t.tv_nsec)};
  };
  Attributes a;
  a.inode = st.st_ino;
  a.size = static_cast<uint64_t>(st.st_size);
  a.blocks = static_cast<uint64_t>(st.st_blocks);
  a.atime = time(st.st_atim);
  a.mtime = time(st.st_mtim);
  a.ctime = time(st.st_ctim);
  a.mode = st.st_mode;
  a.nlink = static_cast<uint32_t>(st.st_nlink);
  a.uid = st.st_uid;
  a.gid = st.st_gid;
  a.rdev =
      static_cast<uint32_t>(st.st_rdev);  // the low half of dev_t is the kernel's 12:20 encoding
  a.block_size = static_cast<uint32_t>(st.st_blksize);
  return a;
}

Result<Fd> reopen(int path, int flags) {
  ProcPath name(path);
  Fd fd(::open(name.c_str(), flags | O_CLOEXEC | O_NOCTTY | O_NOATIME));
  // O_NOATIME is for owners and CAP_FOWNER only.
  if (!fd.valid() && errno == EPERM) fd = Fd(::open(name.c_str(), flags | O_CLOEXEC | O_NOCTTY));
  if (!fd.valid()) return fail(errno == ENOENT ? ESTALE : errno);
  return fd;
}

OpenFile::OpenFile(Fd path, mode_t type, Fd writable)
    : path_(std::move(path)), type_(type), writing_(std::move(writable)) {
  if (writing_.valid()) {
    writable_ = writing_.get();
    readable_ = writing_.get();
  }
}

Status OpenFile::check_regular() const {
  if (is_regular()) return {};
  return fail(is_directory() ? EISDIR : EINVAL);
}

Result<int> OpenFile::readable() {
  if (int fd = readable_.load(std::memory_order_acquire); fd >= 0) return fd;
  VR_TRY_VOID(check_regular());
  std::lock_guard lock(mutex_);
  if (int fd = readable_.load(std::memory_order_relaxed); fd >= 0) return fd;
  VR_TRY(fd, open_data(path_.get(), O_RDONLY));
  reading_ = std::move(fd);
  readable_.store(reading_.get(), std::memory_order_release);
  return reading_.get();
}

Result<int> OpenFile::writable() {
  if (int fd = writable_.load(std::memory_order_acquire); fd >= 0) return fd;
  VR_TRY_VOID(check_regular());
  std::lock_guard lock(mutex_);
  if (int fd = writable_.load(std::memory_order_relaxed); fd >= 0) return fd;
  VR_TRY(fd, open_data(path_.get(), O_WRONLY));
  writing_ = std::move(fd);
  writable_.store(writing_.get(), std::memory_order_release);
  return writing_.get();
}

Result<struct stat> OpenFile::stat() const {
  struct stat st {};
  if (::fstat(path_.get(), &st) != 0) return fail(errno);
  return st;
}

}  // namespace vremote::store
