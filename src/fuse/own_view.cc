#include "fuse/own_view.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

namespace vremote::fuse {
namespace {

// FILEID_INO64_GEN of the kernel (exportfs.h): what FUSE takes for a node number and a generation.
constexpr int kHandleType = 0x81;
struct NodeHandle {
  file_handle head;
  uint32_t words[3];
};

}  // namespace

OwnView::OwnView(std::string path, uint32_t connection)
    : path_(std::move(path)), connection_(connection) {}

bool OwnView::possible() {
  const Fd root(::open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  NodeHandle handle{};
  handle.head.handle_bytes = sizeof handle.words;
  handle.head.handle_type = 0xff;  // nobody's
  const Fd none(::open_by_handle_at(root.get(), &handle.head, O_PATH | O_CLOEXEC));
  return errno != EPERM;
}

Result<Fd> OwnView::open(uint64_t node, uint32_t generation) const {
  const Fd root(::open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  struct statx seen {};
  if (!root.valid() || ::statx(root.get(), "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, 0, &seen) != 0)
    return fail(errno, path_);
  if (seen.stx_dev_major != 0 || seen.stx_dev_minor != connection_)
    return fail(ESTALE, path_ + ": something else is mounted there");
  NodeHandle handle{};
  handle.head.handle_bytes = sizeof handle.words;
  handle.head.handle_type = kHandleType;
  handle.words[0] = static_cast<uint32_t>(node >> 32);
  handle.words[1] = static_cast<uint32_t>(node);
  handle.words[2] = generation;
  Fd file(::open_by_handle_at(root.get(), &handle.head, O_PATH | O_CLOEXEC));
  if (!file.valid()) return fail(errno, path_ + ": open by handle");
  return file;
}

Result<OwnView::Seen> OwnView::look(const Fd& file) {
  struct statx seen {};
  if (::statx(file.get(), "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_BASIC_STATS, &seen) != 0)
    return fail(errno, "statx on our own mount");
  return Seen{seen.stx_size, {seen.stx_mode, seen.stx_uid, seen.stx_gid}};
}

void OwnView::ask(const Fd& file) {
  const auto thread = static_cast<uint32_t>(::gettid());
  {
    std::lock_guard lock(mutex_);
    asking_.insert(thread);
    count_ = asking_.size();
  }
  struct statx seen {};
  // What it says does not matter, nor whether it can: the kernel has asked.
  (void)::statx(file.get(), "", AT_EMPTY_PATH | AT_STATX_FORCE_SYNC, STATX_SIZE, &seen);
  std::lock_guard lock(mutex_);
  asking_.erase(thread);
  count_ = asking_.size();
}

bool OwnView::asks(uint32_t thread) const {
  if (count_.load() == 0) return false;
  std::lock_guard lock(mutex_);
  return asking_.contains(thread);
}

void OwnView::pass_lock(const Fd& file) {
  const std::string path = fmt::format("/proc/self/fd/{}", file.get());
  (void)::setxattr(path.c_str(), kLockName, "", 0, 0);
}

}  // namespace vremote::fuse
