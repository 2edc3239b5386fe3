#include "node/guardian/guardian_recovery.h"

#include <spdlog/spdlog.h>

#include "node/base/shown_inode.h"

namespace vremote::node {
namespace {

constexpr size_t kUnsettledMax = 256;  // each has a descriptor

}  // namespace

RescuedFile* GuardianRecovery::file_of(uint64_t node) {
  if (auto it = files_.find(node); it != files_.end()) return &it->second;
  const auto inode = table_.find(node);
  if (!inode) return nullptr;
  RecoveryHeader header;
  header.home = table_.home_name(inode->home);
  header.file = inode->file;
  header.shown_inode = shown_inode(header.home, header.file.export_index, header.file.inode);
  // Its path would have to be asked for at the mount, which this process answers for.
  if (const auto exports = table_.exports())
    for (const GuardianTable::Export& known : *exports)
      if (known.home == inode->home && known.root.export_index == header.file.export_index)
        header.export_name = known.name;
  return &files_.try_emplace(node, directory_, "-guardian", std::move(header)).first->second;
}

void GuardianRecovery::keep(uint64_t node, uint64_t offset, std::span<const std::byte> bytes) {
  std::lock_guard lock(mutex_);
  RescuedFile* file = file_of(node);
  if (file == nullptr) {
    spdlog::error("guardian: {} bytes at {} of node {} are LOST: the inode is not known",
                  bytes.size(), offset, node);
    return;
  }
  file->add({{.offset = offset, .bytes = Bytes::copy_of(bytes)}}, {});
  unsettled_.insert(node);
  if (unsettled_.size() >= kUnsettledMax) settle_all();
}

void GuardianRecovery::sync() {
  std::lock_guard lock(mutex_);
  settle_all();
}

void GuardianRecovery::settle_all() {
  for (uint64_t node : unsettled_) {
    RescuedFile& file = files_.at(node);
    const RescuedFile::Sum sum = file.settle();
    if (sum.is_first)
      spdlog::error("guardian: what programs had stored in mappings of {} is kept in {}",
                    name_of(file.header()), file.path());
    if (!sum.why.empty())
      spdlog::error("guardian: {} bytes of {} are LOST: they cannot be kept: {}", sum.lost,
                    name_of(file.header()), sum.why);
  }
  unsettled_.clear();
}

uint64_t GuardianRecovery::bytes() const {
  std::lock_guard lock(mutex_);
  uint64_t bytes = 0;
  for (const auto& [node, file] : files_) bytes += file.bytes();
  return bytes;
}

void GuardianRecovery::remove() {
  std::lock_guard lock(mutex_);
  for (auto& [node, file] : files_) {
    if (!file.path().empty())
      spdlog::info("guardian: {} is not needed: the daemon has its bytes again", file.path());
    file.remove();
  }
  files_.clear();
  unsettled_.clear();
}

}  // namespace vremote::node
