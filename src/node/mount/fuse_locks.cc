// Advisory locks: every one is asked of the file's home, so that none is ever only local.
#include <fcntl.h>

#include <cerrno>

#include "fuse/reply.h"
#include "node/mount/fuse_server.h"

namespace vremote::node {

using namespace coherence;

namespace {

LockType type_of(uint32_t type) {
  return type == F_RDLCK ? LockType::Read : type == F_WRLCK ? LockType::Write : LockType::Unlock;
}

LockCall call_of(const Inode& inode, const fuse::FileLock& lock, LockAction action) {
  return {.file = inode.file,
          .action = action,
          .kind = lock.flock ? LockKind::Flock : LockKind::Range,
          .type = type_of(lock.type),
          .owner = lock.owner,
          .start = lock.flock ? 0 : std::min<uint64_t>(lock.start, INT64_MAX),
          .end = lock.flock ? INT64_MAX : std::min<uint64_t>(lock.end, INT64_MAX),
          .pid = lock.pid,
          .waiting_call = 0};
}

}  // namespace

void FuseServer::handle(const Context& c, const fuse::GetLk& r) {
  auto node = inode(c);
  if (!node) return;
  call(c, node->agent, call_of(*node, r.lock, LockAction::Test), [c](Reply&& reply) {
    const auto* state = std::get_if<LockState>(&reply.outcome);
    if (reply.error != 0 || state == nullptr) {
      (void)c.channel->reply_error(c.unique, reply.error != 0 ? reply.error : EIO);
      return;
    }
    fuse::LockOut out{.start = state->start, .end = state->end, .type = F_UNLCK, .pid = state->pid};
    if (!state->free) out.type = state->type == LockType::Write ? F_WRLCK : F_RDLCK;
    (void)c.channel->reply(c.unique, fuse::lk_out(out));
  });
}

void FuseServer::handle(const Context& c, const fuse::SetLk& r) { set_lock(c, r.lock, false); }
void FuseServer::handle(const Context& c, const fuse::SetLkw& r) { set_lock(c, r.lock, true); }

void FuseServer::set_lock(const Context& c, const fuse::FileLock& lock, bool wait) {
  auto node = inode(c);
  if (!node) return;
  LockCall operation = call_of(*node, lock, wait ? LockAction::Wait : LockAction::Try);
  const bool ranges = operation.kind == LockKind::Range && operation.type != LockType::Unlock;
  operation.holds_elsewhere =
      ranges && options_.circles->holds_elsewhere(node->agent, operation.owner);
  const uint64_t id = node->agent->reserve_call(c.request, operation);
  {
    std::lock_guard guard(locks_mutex_);
    if (operation.type != LockType::Unlock) {
      HandleLocks& through = handle_locks_[lock.fh];
      through.node = c.node;
      through.owners.insert({operation.kind, operation.owner});
      if (operation.kind == LockKind::Range) range_owners_.insert({c.node, operation.owner});
    }
    // One that does not wait has nothing to cancel.
    lock_waits_[c.unique] = {node->agent, node->file, id, {c.channel, c.pid}, !wait};
  }
  if (wait && ranges) options_.circles->begins(node->agent, node->file, id, operation.owner);
  node->agent->call_as(
      id, c.caller, operation,
      [this, c, wait, ranges, agent = node->agent, id, operation, fh = lock.fh](Reply&& reply) {
        if (wait && ranges) options_.circles->ends(agent, id);
        {
          std::lock_guard guard(locks_mutex_);
          lock_waits_.erase(c.unique);
          if (reply.error == 0) note_lock(c.node, fh, operation);
        }
        reply_done(c, reply);
      },
      {nullptr, 0, c.pid, c.request, c.handle});
}

// close(2) of a process that may hold byte-range locks on the file: it returns when they are gone.
// False: there are none.
bool FuseServer::flush_locks(const Context& c, const fuse::Flush& r) {
  auto node = inodes_.get(c.node);
  if (!node) return false;
  forget_lost_locks(c.node, r.lock_owner);
  {
    std::lock_guard guard(locks_mutex_);
    note_no_lock({c.node, LockKind::Range, r.lock_owner});
    if (range_owners_.erase({c.node, r.lock_owner}) == 0 && !locked_nodes_.contains(c.node))
      return false;
    // The handle's RELEASE comes later: it must not take what this process locks through another
    // handle meanwhile.
    if (auto it = handle_locks_.find(r.fh); it != handle_locks_.end())
      it->second.owners.erase({LockKind::Range, r.lock_owner});
  }
  call(c, node->agent,
       LockCall{.file = node->file,
                .action = LockAction::Release,
                .kind = LockKind::Range,
                .type = LockType::Unlock,
                .owner = r.lock_owner},
       [c](Reply&&) { (void)c.channel->reply(c.unique); });
  return true;
}

// K17: the kernel sends no unlock for OFD locks when their handle goes; a flock goes with it too.
void FuseServer::release_handle_locks(const Inode& inode, uint64_t fh) {
  HandleLocks taken;
  {
    std::lock_guard guard(locks_mutex_);
    if (lost_locks_.erase(fh) != 0) {
      --lost_handles_;
      if (guardian_table() != nullptr) guardian_table()->locks().drop(fh);
    }
    auto it = handle_locks_.find(fh);
    if (it == handle_locks_.end()) return;
    taken = std::move(it->second);
    handle_locks_.erase(it);
    for (const auto& [kind, owner] : taken.owners) {
      note_no_lock({inode.node, kind, owner});
      if (kind == LockKind::Range) range_owners_.erase({inode.node, owner});
    }
    if (guardian_table() != nullptr) guardian_table()->locks().drop(fh);
  }
  for (const auto& [kind, owner] : taken.owners)
    inode.agent->call({},
                      LockCall{.file = inode.file,
                               .action = LockAction::Release,
                               .kind = kind,
                               .type = LockType::Unlock,
                               .owner = owner},
                      [](Reply&&) {});
}

}  // namespace vremote::node
