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

#include "base/private_directory.h"
#include "node/base/shown_inode.h"
#include "node/recovery/recovery_file.h"

namespace vremote::node {
namespace {

constexpr size_t kFilesMax = 4096;     // that more of the same loss goes to
constexpr size_t kUnsettledMax = 256;  // each has a descriptor

}  // namespace

Status RecoveryWriter::prepare() { return make_private_directory(directory_); }

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
    if (!job.next) write(job);
    // It was in memory only until now.
    if (job.next || last || unsettled_.size() >= kUnsettledMax) settle_all();
    if (job.next)
      std::erase_if(files_, [&](const auto& each) { return each.first.first == job.home; });
  }
}

void RecoveryWriter::write(const Job& job) {
  file_of(job).add(job.rescue.extents, job.rescue.attributes);
  unsettled_.insert({job.home, job.rescue.file});
}

RescuedFile& RecoveryWriter::file_of(const Job& job) {
  const FileId file = job.rescue.file;
  if (auto it = files_.find({job.home, file}); it != files_.end()) return it->second;
  if (files_.size() >= kFilesMax) {
    settle_all();
    files_.erase(files_.begin());
  }
  const Seen seen = look_ ? look_(job.home, file) : Seen{};
  RecoveryHeader header{.home = job.home,
                        .file = file,
                        .shown_inode = shown_inode(job.home, file.export_index, file.inode),
                        .path = seen.path,
                        .written = job.rescue.attributes.mtime,
                        .export_name = seen.export_name};
  return files_.try_emplace({job.home, file}, directory_, "", std::move(header)).first->second;
}

void RecoveryWriter::settle_all() {
  for (const Key& key : unsettled_) settle(files_.at(key));
  unsettled_.clear();
}

void RecoveryWriter::settle(RescuedFile& file) {
  const RescuedFile::Sum sum = file.settle();
  kept_ += sum.kept;
  lost_ += sum.lost;
  const RecoveryHeader& header = file.header();
  if (sum.is_first)
    spdlog::error(
        "{}: what was written here to {} and had not reached it is kept in {}: the lease was gone; "
        "see to it with `vremote recover --dir {} list`",
        header.home, name_of(header), file.path(), directory_);
  if (!sum.why.empty())
    spdlog::error("{}: {} bytes written here to {} are LOST: they cannot be kept: {}", header.home,
                  sum.lost, name_of(header), sum.why);
}

}  // namespace vremote::node
