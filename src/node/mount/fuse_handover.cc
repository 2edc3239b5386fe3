// A mount goes from one daemon of this node to the next (docs/architecture.md, "Upgrades").
//
// The descriptors stay open, so the kernel keeps what they had read and nobody has answered, and
// delivers it again (FUSE_NOTIFY_RESEND): it alone knows for sure what that is, and no request has
// to be copied when it comes, for the day of an upgrade.
#include <poll.h>
#include <pthread.h>
#include <spdlog/spdlog.h>

#include <cerrno>
#include <chrono>

#include "fuse/reply.h"
#include "node/agent/kernel_names.h"
#include "node/mount/fuse_server.h"

namespace vremote::node {

bool FuseServer::pause(int64_t patience_ms) {
  if (forgets()) return false;  // it may take seconds
  wants_pause_ = true;
  std::unique_lock lock(pause_mutex_);
  // The next daemon would never hear of what is still to be forgotten; more may have come just now.
  for (int64_t waited = 0; paused_ < threads_.size() || forgets(); ++waited) {
    if (waited >= patience_ms) {
      lock.unlock();
      resume();
      return false;
    }
    // Again and again: one may have come just before read(2).
    for (std::thread& thread : threads_) (void)::pthread_kill(thread.native_handle(), kPauseSignal);
    paused_changed_.wait_for(lock, std::chrono::milliseconds(1));
  }
  return true;
}

void FuseServer::resume() {
  std::lock_guard lock(pause_mutex_);
  wants_pause_ = false;
  paused_changed_.notify_all();
}

void FuseServer::pause_if_wanted() {
  std::unique_lock lock(pause_mutex_);
  if (!wants_pause_) return;
  ++paused_;
  paused_changed_.notify_all();
  paused_changed_.wait(lock, [this] { return !wants_pause_; });
  --paused_;
}

KeptMount FuseServer::kept() {
  KeptMount out{.connection = mount_.connection_id(),
                .capabilities = capabilities_,
                .channels = {},
                .guardians_channel = guardians_ ? guardians_->fd() : -1,
                .next_handle = next_handle_.load(),
                .next_directory = 1,
                .generation = generation_,
                .locked = {},
                .locked_nodes = {},
                .directories = {},
                .lost = {}};
  for (const auto& channel : channels_) out.channels.push_back(channel->fd());
  {
    std::lock_guard lock(locks_mutex_);
    for (const auto& [handle, locks] : handle_locks_)
      for (const auto& [kind, owner] : locks.owners)
        out.locked.push_back({handle, locks.node, kind, owner});
    std::set<uint64_t> locked = locked_nodes_;
    for (const auto& [node, owner] : range_owners_) locked.insert(node);
    out.locked_nodes.assign(locked.begin(), locked.end());
    for (const auto& [handle, lost] : lost_locks_)
      for (const auto& [kind, owner] : lost.owners)
        out.lost.push_back({handle, lost.node, kind, owner});
  }
  std::lock_guard lock(directories_mutex_);
  out.next_directory = next_directory_;
  for (const auto& [handle, stream] : directories_) out.directories.push_back(handle);
  return out;
}

void FuseServer::take_over(const KeptMount& kept) {
  for (int fd : kept.channels) channels_.push_back(std::make_unique<fuse::Channel>(Fd(fd)));
  if (kept.guardians_channel >= 0) guardians_.emplace(Fd(kept.guardians_channel));
  capabilities_ = kept.capabilities;
  next_handle_ = kept.next_handle;
  for (const KeptMount::Locked& locked : kept.locked) {
    handle_locks_[locked.handle].node = locked.node;
    handle_locks_[locked.handle].owners.insert({locked.kind, locked.owner});
  }
  locked_nodes_.insert(kept.locked_nodes.begin(), kept.locked_nodes.end());
  for (const KeptMount::Lost& lost : kept.lost) {
    lost_locks_[lost.handle].node = lost.node;
    lost_locks_[lost.handle].owners.insert({lost.kind, lost.owner});
    if (guardian_table() != nullptr)
      guardian_table()->locks().note(
          {lost.handle, lost.node, lost.owner, static_cast<uint8_t>(lost.kind)});
  }
  lost_handles_ = lost_locks_.size();
  if (guardian_table() != nullptr) {
    std::vector<GuardianLock> held;
    for (const KeptMount::Locked& locked : kept.locked)
      held.push_back({locked.handle, 0, locked.owner, static_cast<uint8_t>(locked.kind)});
    guardian_table()->locks().learn_all(held);
  }
  generation_ = kept.generation;
  next_directory_ = kept.next_directory;
  for (uint64_t handle : kept.directories) add_directory(handle);
  if (!capabilities_.inc_epoch || !capabilities_.expire_only) return;
  // Which names the kernel may use was not written down: it asks for each again.
  if (auto done = channel()->inc_epoch(); !done)
    spdlog::error("names in the kernel: {}", done.error().what);
  kernel_names_.enable(channel());
}

Status FuseServer::deliver_again() {
  // The kernel shows no attribute of before from here on.
  for (uint64_t node : inodes_.nodes()) (void)channel()->invalidate_attributes(node);
  (void)channel()->invalidate_attributes(FUSE_ROOT_ID);
  // What the guardian has answered has happened. What it holds comes again, and not twice.
  if (options_.guardian != nullptr && options_.guardian->table().guardian_in_charge())
    take_back(true);
  VR_TRY_VOID(channel()->resend());
  // All that waits is begun before the first purge: one that meets the locked page of a fill which
  // has not been read hangs until that is answered.
  fuse::ReceiveBuffer buffer = buffers_.take();
  const fuse::Channel& from = *channels_.front();
  for (;;) {
    pollfd wait{from.fd(), POLLIN, 0};
    if (::poll(&wait, 1, 0) != 1 || (wait.revents & POLLIN) == 0) return {};
    std::span<std::byte> memory = buffer.next();
    auto length = from.receive(memory);
    if (!length && (length.error().code == EAGAIN || length.error().code == EINTR)) continue;
    if (!length) return {};  // the mount has ended; the threads will find out
    receive(from, memory.first(*length), Instant{}, buffer);
  }
}

Status FuseServer::serve_on(std::function<void()> ended) {
  ended_ = std::move(ended);
  return start_threads();
}

}  // namespace vremote::node
