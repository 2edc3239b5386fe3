#include "node/recovery/recovery_writer.h"

#include <dirent.h>
#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <ctime>
#include <filesystem>

#include "node/base/shown_inode.h"
#include "node/recovery/recovery_file.h"

namespace vremote::node {
namespace {

constexpr size_t kOpenMax = 256;  // files kept open for more of the same loss

}  // namespace

Status RecoveryWriter::prepare() {
  std::error_code error;
  std::filesystem::create_directories(directory_, error);
  if (error) return fail(error.value(), directory_ + ": " + error.message());
  if (::chmod(directory_.c_str(), 0700) != 0)
    return fail(errno, directory_ + ": " + std::strerror(errno));
  return {};
}

uint64_t RecoveryWriter::files() const {
  uint64_t count = 0;
  std::error_code error, ignored;
  for (auto at = std::filesystem::directory_iterator(directory_, error);
       !error && at != std::filesystem::directory_iterator(); at.increment(error))
    if (at->path().extension() == kRecoverySuffix &&
        at->symlink_status(ignored).type() == std::filesystem::file_type::regular)
      ++count;
  return count;
}

void RecoveryWriter::keep(const std::string& home, coherence::Rescue rescue) {
  std::lock_guard lock(mutex_);
  jobs_.push_back({home, std::move(rescue)});
  if (std::exchange(working_, true)) return;
  threads_.submit([this] { work(); });
}

void RecoveryWriter::next(const std::string& home) {
  std::lock_guard lock(mutex_);
  jobs_.push_back({home, {}, true});
  if (std::exchange(working_, true)) return;
  threads_.submit([this] { work(); });
}

bool RecoveryWriter::wait(int64_t patience_ms) {
  std::unique_lock lock(mutex_);
  return idle_.wait_for(lock, std::chrono::milliseconds(patience_ms), [this] { return !working_; });
}

void RecoveryWriter::work() {
  for (;;) {
    Job job;
    bool last = false;
    {
      std::lock_guard lock(mutex_);
      if (jobs_.empty()) {
        working_ = false;
        idle_.notify_all();
        return;
      }
      job = std::move(jobs_.front());
      jobs_.pop_front();
      last = jobs_.empty();
    }
    if (job.next) {
      finish(job.home);
    } else {
      write(job);
    }
    // It was in memory only until now.
    if (last)
      for (auto& [key, open] : open_) (void)::fdatasync(open.fd.get());
  }
}

void RecoveryWriter::finish(const std::string& home) {
  for (auto it = open_.begin(); it != open_.end();) {
    if (it->first.first != home) {
      ++it;
      continue;
    }
    (void)::fdatasync(it->second.fd.get());
    it = open_.erase(it);
  }
}

void RecoveryWriter::write(Job& job) {
  uint64_t bytes = 0;
  for (const coherence::Extent& extent : job.rescue.extents) bytes += extent.bytes.size();
  auto open = open_for(job.home, job.rescue);
  Status done = open ? append_recovery((*open)->fd, job.rescue.extents, job.rescue.attributes)
                     : Status(std::unexpected(open.error()));
  if (!done)
    spdlog::error("{}: {} bytes of inode {} are LOST: they cannot be kept: {}", job.home, bytes,
                  job.rescue.file.inode, done.error().what);
}

Result<RecoveryWriter::Open*> RecoveryWriter::open_for(const std::string& home,
                                                       const coherence::Rescue& rescue) {
  const FileId file = rescue.file;
  if (auto it = open_.find({home, file}); it != open_.end()) return &it->second;
  if (open_.size() >= kOpenMax) {
    (void)::fdatasync(open_.begin()->second.fd.get());
    open_.erase(open_.begin());
  }
  const Seen seen = look_ ? look_(home, file) : Seen{};
  const RecoveryHeader header{.saved_at = static_cast<uint64_t>(::time(nullptr)),
                              .home = home,
                              .file = file,
                              .shown_inode = shown_inode(home, file.export_index, file.inode),
                              .path = seen.path,
                              .written = rescue.attributes.mtime,
                              .export_name = seen.export_name};
  for (int attempt = 0; attempt < 10000; ++attempt) {
    Open open;
    open.path =
        fmt::format("{}/{}-{}-{}-{}{}", directory_, header.saved_at, home, file.export_index,
                    file.inode, attempt == 0 ? "" : fmt::format("-{}", attempt));
    open.path += kRecoverySuffix;
    auto fd = begin_recovery_file(open.path, header);
    if (!fd && fd.error().code == EEXIST) continue;
    if (!fd) return std::unexpected(fd.error());
    open.fd = std::move(*fd);
    spdlog::error(
        "{}: what was written here to {} and had not reached it is kept in {}: the lease was gone; "
        "see to it with `vremote recover --dir {} list`",
        home, name_of(header), open.path, directory_);
    return &open_.emplace(std::pair(home, file), std::move(open)).first->second;
  }
  return fail(EEXIST, directory_ + ": no free name");
}

}  // namespace vremote::node
