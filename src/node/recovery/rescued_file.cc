#include "node/recovery/rescued_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <utility>

#include "base/durable_file.h"
#include "base/private_directory.h"

namespace vremote::node {
namespace {

constexpr int kNamesMax = 10'000;

std::string safe(std::string name) {
  std::ranges::replace_if(
      name, [](char c) { return c == '/' || c == '\0'; }, '_');
  return name;
}

}  // namespace

void RescuedFile::add(const std::vector<coherence::Extent>& extents,
                      const coherence::DirtyAttributes& attributes) {
  Appended added;
  if (Status opened = open()) {
    added = append_recovery(fd_, extents, attributes);
  } else {
    added = {.lost = bytes_of(extents), .status = std::move(opened), .told = false};
  }
  if (!added.told) {
    lacks_ = true;
    untold_ += added.lost;
  } else if (added && std::exchange(lacks_, false)) {
    note_lost(fd_, std::exchange(untold_, 0));
  }
  sum_.kept += added.kept;
  sum_.lost += added.lost;
  bytes_ += added.kept;
  if (!added.status) sum_.why = added.status.error().what;
}

Status RescuedFile::open() {
  if (fd_.valid()) return {};
  // Somebody may have discarded it, or be about to; or it was spoilt, and what comes now is not.
  if (!path_.empty()) fd_ = Fd(::open(path_.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  struct stat st {};
  if (fd_.valid() && ::flock(fd_.get(), LOCK_EX | LOCK_NB) == 0 && ::fstat(fd_.get(), &st) == 0 &&
      st.st_nlink > 0 && takes_more(fd_))
    return {};
  fd_.reset();
  return begin();
}

Status RescuedFile::begin() {
  VR_TRY_VOID(make_private_directory(directory_));
  header_.saved_at = static_cast<uint64_t>(::time(nullptr));
  for (int attempt = 0; attempt < kNamesMax; ++attempt) {
    std::string path =
        fmt::format("{}/{}-{}-{}-{}{}{}{}", directory_, header_.saved_at, safe(header_.home),
                    header_.file.export_index, header_.file.inode, mark_,
                    attempt == 0 ? "" : fmt::format("-{}", attempt), kRecoverySuffix);
    auto fd = begin_recovery_file(path, header_);
    if (!fd && fd.error().code == EEXIST) continue;
    if (!fd) return std::unexpected(fd.error());
    (void)::flock(fd->get(), LOCK_EX | LOCK_NB);  // nobody knows it yet
    fd_ = std::move(*fd);
    path_ = std::move(path);
    is_named_ = has_some_ = false;
    return {};
  }
  return fail(EEXIST, directory_ + ": no free name");
}

Status RescuedFile::make_sure() {
  if (::fdatasync(fd_.get()) != 0)
    return fail(errno, fmt::format("{}: {}", path_, std::strerror(errno)));
  if (!is_named_) VR_TRY_VOID(sync_directory_of(path_));
  is_named_ = true;
  struct stat st {};
  if (::fstat(fd_.get(), &st) == 0 && st.st_nlink == 0)
    return fail(ENOENT, path_ + " was removed meanwhile");
  return {};
}

RescuedFile::Sum RescuedFile::settle() {
  if (fd_.valid()) {
    if (const Status sure = make_sure(); !sure) {
      // What is on the disk nobody knows. The file says that it lacks something.
      note_lost(fd_);
      (void)::fdatasync(fd_.get());
      bytes_ -= sum_.kept;
      sum_.lost += std::exchange(sum_.kept, 0);
      sum_.why = sure.error().what;
    }
    fd_.reset();
    if (sum_.kept > 0) sum_.is_first = !std::exchange(has_some_, true);
  }
  return std::exchange(sum_, {});
}

void RescuedFile::remove() {
  fd_.reset();
  if (!path_.empty()) (void)::unlink(path_.c_str());
  path_.clear();
  sum_ = {};
  bytes_ = 0;
}

}  // namespace vremote::node
