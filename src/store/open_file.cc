#include "store/open_file.h"

#include <fcntl.h>

#include <cerrno>

namespace vremote::store {

Attributes attributes_of(const struct stat& st) {
  auto time = [](const timespec& t) { return Timestamp{t.tv_sec, static_cast<uint32_t>(t.tv_nsec)}; };
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
  a.rdev = static_cast<uint32_t>(st.st_rdev);  // the low half of dev_t is the kernel's 12:20 encoding
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
  VR_TRY(fd, reopen(path_.get(), O_RDONLY));
  reading_ = std::move(fd);
  readable_.store(reading_.get(), std::memory_order_release);
  return reading_.get();
}

Result<int> OpenFile::writable() {
  if (int fd = writable_.load(std::memory_order_acquire); fd >= 0) return fd;
  VR_TRY_VOID(check_regular());
  std::lock_guard lock(mutex_);
  if (int fd = writable_.load(std::memory_order_relaxed); fd >= 0) return fd;
  VR_TRY(fd, reopen(path_.get(), O_WRONLY));
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
