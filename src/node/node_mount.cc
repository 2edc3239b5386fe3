// The mount: its beginning, what its guardian is told, and its last purge.
#include <fcntl.h>
#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <memory>
#include <thread>

#include "node/node.h"
#include "node/recovery/recovery_file.h"

namespace vremote::node {

using namespace coherence;

namespace {

constexpr int64_t kTellGuardianNs = 100'000'000;
constexpr int64_t kSettledNs = 500'000'000;

}  // namespace

// A request wakes another reader than the one that has just become free: on two processors a second
// reader costs more than it gives.
unsigned NodeDaemon::readers_of(const Config& config) { return std::max(1u, config.loops / 2); }

void NodeDaemon::make_fuse(unsigned threads) {
  FuseServerOptions options;
  options.threads = threads;
  options.readahead_kib = config_.readahead_kib;
  options.allow_mmap = allow_mmap_;
  options.loop = loops_.front().get();
  options.guardian = guardian_;
  options.helpers = purge_threads_.get();
  options.circles = circles_.get();
  fuse_ =
      std::make_unique<FuseServer>(*mount_, exports_, inodes_, *kernel_names_, metrics_, options);
}

Status NodeDaemon::start_mount(std::function<void()> ended) {
  fuse::MountOptions options;
  options.name = "vremote:" + config_.node;
  options.allow_suid = config_.mount_suid;
  auto mount = fuse::Mount::mount(config_.mount, options);
  if (!mount) return bad_key("mount", mount.error());
  mount_.emplace(std::move(*mount));
  make_fuse(readers_of(config_));
  VR_TRY_VOID(fuse_->start(std::move(ended)));
  notify_ = fuse_->channel();
  for (const std::string& lack : fuse_->lacks()) spdlog::warn("this kernel: {}", lack);
  return {};
}

// That this daemon lives.
void NodeDaemon::tell_guardian() {
  GuardianTable& table = guardian_->table();
  table.alive(GuardianTable::clock());
  // What the daemon before died of is not met by going on with its mount, or not at once.
  if (ready_ && net::EventLoop::now() - started_ > kSettledNs) table.set_early_deaths(0);
  (void)guardian_->knows_files();  // what it could not be told at once, and no thread tells
  if (guardian_->guarded() && table.guardian_in_charge())
    purge_threads_->submit([this] { fuse_->take_back(); });
  guardian_timer_ = loops_.front()->call_after(kTellGuardianNs, [this] { tell_guardian(); });
}

// For the recovery file: how people would find the file.
RecoveryWriter::Seen NodeDaemon::seen(const std::string& home, FileId file) {
  RecoveryWriter::Seen out;
  for (AgentService* agent : agents()) {
    if (agent->home_name() != home) continue;
    out.export_name = exports_.name_of(agent, file.export_index);
    out.path = path_in_kernel(agent, file);
  }
  if (out.path.empty()) {
    std::lock_guard lock(last_paths_mutex_);
    if (auto it = last_paths_.find({home, file}); it != last_paths_.end()) out.path = it->second;
  }
  return out;
}

std::string NodeDaemon::described(const std::string& home, FileId file) {
  const RecoveryWriter::Seen known = seen(home, file);
  return fmt::format(
      "{} (inode {} of {})",
      name_of({.home = home, .file = file, .path = known.path, .export_name = known.export_name}),
      file.inode, home);
}

// Tells of them elsewhere: the kernel is asked for names.
std::set<uint64_t> NodeDaemon::locks_lost(AgentService* agent, const LocksAtHome::AllHeld& lost,
                                          const std::string& why) {
  const auto named = static_cast<ptrdiff_t>(std::min(lost.size(), kNamedInTheLog));
  purge_threads_->submit([this, why, home = agent->home_name(), all = lost.size(),
                          some = LocksAtHome::AllHeld(lost.begin(), lost.begin() + named)] {
    for (const LockTable::Held& h : some)
      spdlog::error(
          "process {} has lost its lock on {}: {}; its calls on that open file end with "
          "EIO until it is closed",
          h.lock.pid, described(home, h.file), why);
    if (some.size() < all) spdlog::error("so it is with {} more locks", all - some.size());
  });
  return notify_.load() == nullptr ? std::set<uint64_t>{} : fuse_->locks_are_lost(agent, lost);
}

std::string NodeDaemon::path_in_kernel(AgentService* agent, FileId file) const {
  if (notify_.load() == nullptr) return {};
  const std::optional<uint64_t> node = inodes_.find(agent, file);
  if (!node) return {};
  auto fd = fuse_->mount_view().open(*node);
  if (!fd) return {};
  std::array<char, 4096> text;
  const ssize_t length =
      ::readlink(fmt::format("/proc/self/fd/{}", fd->get()).c_str(), text.data(), text.size());
  if (length <= 0) return {};
  std::string path(text.data(), static_cast<size_t>(length));
  if (!path.starts_with(config_.mount + "/") || path.ends_with(" (deleted)")) return {};
  return path;
}

// The kernel tells no path any more once the mount is gone, which is before it is known what cannot
// be flushed.
void NodeDaemon::note_paths(int64_t patience_ms) {
  if (notify_.load() == nullptr) return;
  auto busy = std::make_shared<std::atomic<bool>>(true);
  const Instant end = net::EventLoop::now() + patience_ms * 1'000'000;
  purge_threads_->submit([this, busy, end] {
    for (uint64_t node : inodes_.nodes()) {
      if (net::EventLoop::now() > end) break;
      const auto inode = inodes_.get(node);
      if (!inode || !inode->agent->owes(inode->file)) continue;
      std::string path = path_in_kernel(inode->agent, inode->file);
      if (path.empty()) continue;
      std::lock_guard lock(last_paths_mutex_);
      last_paths_[{inode->agent->home_name(), inode->file}] = std::move(path);
    }
    *busy = false;
  });
  while (*busy && net::EventLoop::now() < end)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

// What is still open or mapped must not go on being read from the page cache once nobody keeps it
// true. Dirty mapped pages come back to us as write-backs, and go to their origins with the rest.
void NodeDaemon::purge_everything(int64_t patience_ms) {
  const fuse::Channel* channel = notify_.load();
  if (channel == nullptr) return;
  auto waiting = std::make_shared<std::atomic<int>>(1);
  purge_threads_->submit([channel, waiting, nodes = inodes_.nodes()] {
    for (uint64_t node : nodes) (void)channel->invalidate_data(node, 0, 0);
    waiting->fetch_sub(1);
  });
  for (int64_t waited = 0; waiting->load() > 0 && waited < patience_ms; waited += 2)
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
}

}  // namespace vremote::node
