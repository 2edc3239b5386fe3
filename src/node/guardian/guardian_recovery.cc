#include "node/guardian/guardian_recovery.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>

#include "node/base/shown_inode.h"
#include "node/recovery/recovery_file.h"

namespace vremote::node {
namespace {

constexpr size_t kOpenFilesMax = 256;

std::string safe(std::string name) {
  std::ranges::replace_if(
      name, [](char c) { return c == '/' || c == '\0'; }, '_');
  return name;
}

}  // namespace

GuardianRecovery::File* GuardianRecovery::file_of(uint64_t node) {
  if (auto it = files_.find(node); it != files_.end()) return &it->second;
  const auto inode = table_.find(node);
  if (!inode) return nullptr;
  if (files_.size() >= kOpenFilesMax) {
    // Its bytes stay; what comes for it later goes into another file.
    (void)::fdatasync(files_.begin()->second.fd.get());
    files_.erase(files_.begin());
  }
  std::error_code ignored;
  std::filesystem::create_directories(directory_, ignored);
  (void)::chmod(directory_.c_str(), 0700);
  RecoveryHeader header;
  header.saved_at = static_cast<uint64_t>(::time(nullptr));
  header.home = table_.home_name(inode->home);
  header.file = inode->file;
  header.shown_inode = shown_inode(header.home, header.file.export_index, header.file.inode);
  // Its path would have to be asked for at the mount, which this process answers for.
  if (const auto exports = table_.exports())
    for (const GuardianTable::Export& known : *exports)
      if (known.home == inode->home && known.root.export_index == header.file.export_index)
        header.export_name = known.name;
  for (int attempt = 0; attempt < 1000; ++attempt) {
    File file;
    file.path = fmt::format("{}/{}-{}-{}-{}-guardian{}{}", directory_, header.saved_at,
                            safe(header.home), inode->file.export_index, inode->file.inode,
                            attempt == 0 ? "" : fmt::format("-{}", attempt), kRecoverySuffix);
    auto fd = begin_recovery_file(file.path, header);
    if (!fd && fd.error().code == EEXIST) continue;
    if (!fd) {
      spdlog::error("guardian: {}: {}", file.path, fd.error().what);
      return nullptr;
    }
    file.fd = std::move(*fd);
    spdlog::error("guardian: what programs had stored in mappings of {} is kept in {}",
                  name_of(header), file.path);
    return &files_.emplace(node, std::move(file)).first->second;
  }
  return nullptr;
}

void GuardianRecovery::keep(uint64_t node, uint64_t offset, std::span<const std::byte> bytes) {
  std::lock_guard lock(mutex_);
  File* file = file_of(node);
  Status kept = fail(ENOENT, "the inode is not known");
  if (file != nullptr)
    kept = append_recovery(file->fd, {{.offset = offset, .bytes = Bytes::copy_of(bytes)}}, {});
  if (kept) {
    bytes_ += bytes.size();
  } else {
    spdlog::error("guardian: {} bytes at {} of node {} are LOST: they cannot be kept: {}",
                  bytes.size(), offset, node, kept.error().what);
  }
}

void GuardianRecovery::sync() {
  std::lock_guard lock(mutex_);
  for (auto& [node, file] : files_) (void)::fdatasync(file.fd.get());
}

uint64_t GuardianRecovery::bytes() const {
  std::lock_guard lock(mutex_);
  return bytes_;
}

void GuardianRecovery::remove() {
  std::lock_guard lock(mutex_);
  for (auto& [node, file] : files_) {
    (void)::unlink(file.path.c_str());
    spdlog::info("guardian: {} is not needed: the daemon has its bytes again", file.path);
  }
  files_.clear();
}

}  // namespace vremote::node
