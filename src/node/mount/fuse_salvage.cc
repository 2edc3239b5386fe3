// What a mount's next daemon must not do twice, and must not let pass, after the one before was
// killed (salvage.h); and what it writes down for the case that it is killed itself.
#include <fcntl.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cerrno>

#include "base/overload.h"
#include "node/base/handle.h"
#include "node/mount/fuse_server.h"

namespace vremote::node {

using namespace coherence;

namespace {

// Doing it twice is not as good as once (is_repeatable() of the operation that it is). A plain
// write is: what the dead daemon had taken of it died with it.
bool is_unrepeatable(const fuse::Request& request) {
  return std::visit(
      Overload{[](const fuse::Create&) { return true; }, [](const fuse::MkNod&) { return true; },
               [](const fuse::TmpFile&) { return true; }, [](const fuse::MkDir&) { return true; },
               [](const fuse::Symlink&) { return true; }, [](const fuse::Link&) { return true; },
               [](const fuse::Unlink&) { return true; }, [](const fuse::RmDir&) { return true; },
               [](const fuse::Rename&) { return true; }, [](const fuse::SetXattr&) { return true; },
               [](const fuse::RemoveXattr&) { return true; },
               [](const fuse::Fallocate&) { return true; },
               [](const fuse::CopyFileRange&) { return true; },
               // What others wrote meanwhile must not be cut, or covered.
               [](const fuse::SetAttr& r) {
                 return r.mode || r.uid || r.gid || r.size || r.atime || r.mtime;
               },
               [](const fuse::Open& r) { return (r.flags & O_TRUNC) != 0; },
               [](const fuse::Write& r) {
                 return !r.write_back && (r.flags & (O_APPEND | O_SYNC | O_DSYNC)) != 0;
               },
               [](const auto&) { return false; }},
      request.body);
}

uint8_t number(LockKind kind) { return static_cast<uint8_t>(kind); }

}  // namespace

FuseServer::Handles FuseServer::handles_of(const fuse::Request& request) {
  return std::visit(
      Overload{[](const fuse::Read& r) {
                 // By a handle that may be written read(2) makes no fills (K1). Nearly all of its
                 // fills are faults of mappings, and an error would kill the program.
                 return r.fill && opening_of(r.fh).may_map ? Handles{} : Handles{r.fh};
               },
               // The handle of a write-back is the kernel's guess.
               [](const fuse::Write& r) { return r.write_back ? Handles{} : Handles{r.fh}; },
               [](const fuse::Fsync& r) { return Handles{r.fh}; },
               [](const fuse::Fallocate& r) { return Handles{r.fh}; },
               [](const fuse::LSeek& r) { return Handles{r.fh}; },
               [](const fuse::SetAttr& r) { return Handles{r.size ? r.fh.value_or(0) : 0}; },
               [](const fuse::CopyFileRange& r) {
                 return Handles{r.fh_out, r.fh_in};
               },
               [](const fuse::GetLk& r) { return Handles{r.lock.fh}; },
               [](const fuse::SetLk& r) { return Handles{r.lock.fh}; },
               [](const fuse::SetLkw& r) { return Handles{r.lock.fh}; },
               [](const auto&) { return Handles{}; }},
      request.body);
}

void FuseServer::after_crash(std::unordered_set<uint64_t> unseen) {
  after_crash_ = true;
  unseen_ = std::move(unseen);
}

GuardianTable* FuseServer::guardian_table() const {
  return options_.guardian == nullptr ? nullptr : &options_.guardian->table();
}

bool FuseServer::refuses(const fuse::Channel& channel, const fuse::Request& request) {
  bool refused = after_crash_ && request.header.resent &&
                 !unseen_.contains(request.header.unique) && is_unrepeatable(request);
  if (refused)
    spdlog::warn(
        "a call of process {} was under way when the daemon before died: it gets EIO, and may have "
        "happened",
        request.header.pid);
  refused = refused || (lost_handles_ != 0 && relies_on_lost_lock(request));
  if (refused) (void)channel.reply_error(request.header.wire_unique(), EIO);
  return refused;
}

bool FuseServer::relies_on_lost_lock(const fuse::Request& request) {
  std::lock_guard guard(locks_mutex_);
  return std::ranges::any_of(handles_of(request),
                             [&](uint64_t fh) { return lost_locks_.contains(fh); });
}

void FuseServer::fail_late(const Context& c) {
  {
    std::lock_guard guard(locks_mutex_);
    if (!lost_locks_.contains(c.handle)) return;
  }
  if (const auto node = inodes_.get(c.node)) node->agent->fail_waits({c.handle});
}

void FuseServer::note_lock(uint64_t node, uint64_t fh, const LockCall& lock) {
  const HeldRanges::Owner owner{node, lock.kind, lock.owner};
  if (lock.type == LockType::Unlock) {
    if (held_ranges_.given_up(owner, lock.start, lock.end)) note_no_lock(owner);
    return;
  }
  held_ranges_.granted(owner, lock.start, lock.end);
  if (guardian_table() != nullptr)
    guardian_table()->locks().note({fh, node, lock.owner, number(lock.kind)});
}

void FuseServer::note_no_lock(const HeldRanges::Owner& owner) {
  held_ranges_.gone(owner);
  if (guardian_table() != nullptr)
    guardian_table()->locks().drop(owner.node, number(owner.kind), owner.owner);
}

std::set<uint64_t> FuseServer::locks_are_lost(AgentService* agent,
                                              const LocksAtHome::AllHeld& lost) {
  std::set<HeldRanges::Owner> owners;
  for (const LockTable::Held& h : lost)
    if (const auto node = inodes_.find(agent, h.file))
      owners.insert({*node, h.kind, h.lock.owner.id});
  std::set<uint64_t> handles;
  std::lock_guard guard(locks_mutex_);
  ++losses_;
  for (const HeldRanges::Owner& owner : owners) held_ranges_.gone(owner);
  for (const auto& [handle, locks] : handle_locks_)
    for (const auto& [kind, owner] : locks.owners) {
      if (!owners.contains({locks.node, kind, owner})) continue;
      lost_locks_[handle].node = locks.node;
      lost_locks_[handle].owners.insert({kind, owner});
      handles.insert(handle);
    }
  lost_handles_ = lost_locks_.size();
  return handles;
}

void FuseServer::lock_is_held(uint64_t node, const LockCall& lock) {
  std::lock_guard guard(locks_mutex_);
  held_ranges_.granted({node, lock.kind, lock.owner}, lock.start, lock.end);
}

// The process has closed the file: none of its byte-range locks could be there any more.
void FuseServer::forget_lost_locks(uint64_t node, uint64_t owner) {
  if (lost_handles_ == 0) return;
  std::lock_guard guard(locks_mutex_);
  for (auto it = lost_locks_.begin(); it != lost_locks_.end();) {
    if (it->second.node == node) it->second.owners.erase({LockKind::Range, owner});
    if (it->second.owners.empty()) {
      it = lost_locks_.erase(it);
      --lost_handles_;
    } else {
      ++it;
    }
  }
}

}  // namespace vremote::node
