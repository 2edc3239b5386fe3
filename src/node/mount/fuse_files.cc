// Attributes, handles and data.
#include <fcntl.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>

#include "fuse/reply.h"
#include "node/base/handle.h"
#include "node/base/signals.h"
#include "node/mount/fuse_server.h"

namespace vremote::node {

using namespace coherence;

namespace {

// Bigger writes keep their memory together: a page of it each would make many small pieces of a
// flush.
constexpr uint32_t kCopiedMax = kPageSize;

AgentService::Placement placement_of(const Inode& node, const fuse::Write& r) {
  return {
      .offset = r.offset, .append = (r.flags & O_APPEND) != 0, .handle = r.fh, .slot = node.slot};
}

}  // namespace

void FuseServer::handle(const Context& c, const fuse::GetAttr&) { tell_attributes(c, false); }
// The same, with the birth time, where the kernel has been asked for it.
void FuseServer::handle(const Context& c, const fuse::Statx&) { tell_attributes(c, true); }

void FuseServer::tell_attributes(const Context& c, bool extended) {
  metrics_.add(Counter::Getattrs);
  const auto tell = [c, extended](const Attributes& attributes, uint64_t shown,
                                  fuse::Validity valid) {
    if (extended) {
      (void)c.channel->reply(c.unique, fuse::statx_out(attributes, shown, valid));
    } else {
      (void)c.channel->reply(c.unique, fuse::attr_out(attributes, shown, valid));
    }
  };
  if (c.node == FUSE_ROOT_ID) {
    tell(root_attributes(), 1, fuse::kUntilInvalidated);
    return;
  }
  auto node = inode(c);
  if (!node) return;
  const bool own = mount_view_.asks(c.pid);
  node->agent->attributes(c.waiting(), node->file, own,
                          [this, c, tell, node = *node](Answer answer) {
                            if (answer.error != 0) {
                              (void)c.channel->reply_error(c.unique, answer.error);
                            } else {
                              tell(answer.attributes, shown_inode(node, answer.attributes.inode),
                                   answer.may_cache ? fuse::kUntilInvalidated : fuse::kNotCached);
                            }
                          });
}

void FuseServer::truncate(const Context& c, const Inode& node, SetAttributesCall call,
                          bool under_lock, AgentService::ThenReply then) {
  const uint64_t size = call.size;
  // Not of an O_TRUNC: its handle would be lost.
  GuardianTable* const table = under_lock ? guardian_table() : nullptr;
  if (table != nullptr) table->truncation_begins(c.unique);
  node.agent->truncate(
      c.pid, node.file, size,
      [this, node, c, size, call, under_lock, table, then = std::move(then)](Answer ready) mutable {
        if (ready.error != 0) {
          if (table != nullptr) (void)table->truncation_ended(c.unique);
          then(Reply{.call = 0, .error = ready.error, .outcome = {}});
          return;
        }
        node.agent->call(with_groups(c), call,
                         [this, c, node, size, under_lock, table,
                          then = std::move(then)](Reply&& reply) mutable {
                           const bool told = table != nullptr && table->truncation_ended(c.unique);
                           node.agent->truncation_replied(
                               node.file, size, under_lock, told, std::move(reply),
                               [then = std::move(then), half_done = HalfDone(half_done_)](
                                   Reply&& done) mutable { then(std::move(done)); });
                         },
                         {nullptr, 0, c.pid, c.request});
      });
}

namespace {

// Whoever may write may set the times to now.
OwnersWork for_owners(const SetAttributesCall& call) {
  return {.changes_owner = call.has_uid || call.has_gid,
          .changes_other = call.has_mode || (call.has_atime && !call.atime_now) ||
                           (call.has_mtime && !call.mtime_now)};
}

}  // namespace

void FuseServer::handle(const Context& c, const fuse::SetAttr& r) {
  if (c.node == FUSE_ROOT_ID) {
    (void)c.channel->reply_error(c.unique, EPERM);
    return;
  }
  auto node = inode(c);
  if (!node) return;
  SetAttributesCall call;
  call.file = node->file;
  if ((call.has_mode = r.mode.has_value())) call.mode = *r.mode & 07777;
  if ((call.has_uid = r.uid.has_value())) call.uid = *r.uid;
  if ((call.has_gid = r.gid.has_value())) call.gid = *r.gid;
  if ((call.has_size = r.size.has_value())) call.size = *r.size;
  if ((call.has_atime = r.atime.has_value() || r.atime_now))
    call.atime = r.atime.value_or(Timestamp{});
  if ((call.has_mtime = r.mtime.has_value() || r.mtime_now))
    call.mtime = r.mtime.value_or(Timestamp{});
  call.atime_now = r.atime_now;
  call.mtime_now = r.mtime_now;
  call.clear_suid = r.kill_suidgid;
  AgentService::ThenReply then = [this, c, node = *node](Reply&& reply) {
    const auto* made = std::get_if<Node>(&reply.outcome);
    if (reply.error != 0 || made == nullptr) {
      (void)c.channel->reply_error(c.unique, reply.error != 0 ? reply.error : EIO);
    } else {
      node.agent->size_told(node.file, made->attributes.size);
      (void)c.channel->reply(
          c.unique, fuse::attr_out(made->attributes, shown_inode(node, made->attributes.inode),
                                   fuse::kNotCached));
    }
  };
  if (call.has_size) {
    truncate(c, *node, call, true, std::move(then));
    return;
  }
  // By a descriptor the kernel judges by the owner that it has seen last.
  const OwnersWork work = for_owners(call);
  call.must_own = c.caller.uid != 0 && (work.changes_owner || work.changes_other);
  if (!call.must_own) {
    FuseServer::call(c, node->agent, call, std::move(then));
    return;
  }
  FuseServer::call(
      c, node->agent, call,
      [this, c, node = *node, call, work, then = std::move(then)](Reply&& reply) mutable {
        if (reply.error != EPERM || !may_act_as_owner(c.pid, work)) {
          then(std::move(reply));
          return;
        }
        call.must_own = false;
        FuseServer::call(c, node.agent, call, std::move(then));
      });
}

void FuseServer::open_file(
    const Context& c, const Inode& node, fuse::Open how, bool told,
    std::move_only_function<void(int error, uint64_t fh, uint32_t fopen_flags)> then) {
  const uint32_t mode = how.flags & O_ACCMODE;
  const Opening opening{.reads = mode != O_WRONLY, .may_map = mode == O_RDWR, .told = told};
  // K1: what only reads uses the kernel's page cache; what writes goes to the agent with each call.
  const uint32_t fopen_flags =
      mode == O_RDONLY ? FOPEN_KEEP_CACHE : FOPEN_KEEP_CACHE | FOPEN_DIRECT_IO;
  const uint64_t fh = next_handle_.fetch_add(1, std::memory_order_relaxed) << kHandleShift |
                      (opening.may_map ? kHandleMayMap : 0) | (opening.reads ? kHandleReads : 0);
  auto opened = [node, opening, fh, fopen_flags, then = std::move(then)](Answer answer) mutable {
    if (answer.error != 0) node.agent->close(node.file, opening);
    then(answer.error, fh, fopen_flags);
  };
  if ((how.flags & O_TRUNC) == 0) {
    node.agent->open(node.file, opening, std::move(opened), c.pid);
    return;
  }
  SetAttributesCall call;
  call.file = node.file;
  call.has_size = true;
  call.clear_suid = how.kill_suidgid;
  truncate(c, node, call, false,
           [this, node, opening, opened = std::move(opened)](Reply&& reply) mutable {
             node.agent->open(node.file, opening,
                              [opened = std::move(opened), error = reply.error,
                               half_done = HalfDone(half_done_)](Answer answer) mutable {
                                opened(error != 0 ? Answer{.error = error} : std::move(answer));
                              });
           });
}

void FuseServer::handle(const Context& c, const fuse::Open& r) {
  metrics_.add(Counter::Opens);
  auto node = inode(c);
  if (!node) return;
  // The origin refuses every change of it; this says so before anything is written.
  if ((r.flags & (O_ACCMODE | O_TRUNC)) != O_RDONLY &&
      exports_.read_only(node->agent, node->file.export_index)) {
    (void)c.channel->reply_error(c.unique, EROFS);
    return;
  }
  const int64_t started = net::EventLoop::now().ns;
  open_file(c, *node, r, false, [this, c, started](int error, uint64_t fh, uint32_t fopen_flags) {
    if (error != 0) {
      (void)c.channel->reply_error(c.unique, error);
    } else {
      note_handle(c.node, fh);
      (void)c.channel->reply(c.unique, fuse::open_out(fh, fopen_flags));
    }
    metrics_.record(Latency::Open, net::EventLoop::now().ns - started);
  });
}

// It is about to be given out.
void FuseServer::note_handle(uint64_t node, uint64_t fh) {
  const Opening opening = opening_of(fh);
  inodes_.opened(node, opening.reads, opening.may_map);
}

void FuseServer::handle(const Context& c, const fuse::Read& r) {
  auto node = inode(c);
  if (!node) return;
  if (r.size == 0) {
    (void)c.channel->reply(c.unique);
    return;
  }
  if (r.fill && options_.guardian != nullptr)
    options_.guardian->table().fill_begins(c.unique, c.node, r.offset, r.size);
  node->agent->read(c.waiting(), node->file, r.offset, r.size, r.fill);
}

void FuseServer::handle(const Context& c, const fuse::Write& r, fuse::ReceiveBuffer& buffer) {
  auto node = inode(c);
  if (!node) return;
  const uint32_t length = static_cast<uint32_t>(r.payload.size());
  const bool synced = (r.flags & (O_SYNC | O_DSYNC)) != 0;
  const AgentService::Placement at = placement_of(*node, r);
  if (length <= kCopiedMax && !r.write_back && !refuses_writes_ && !synced && !r.kill_suidgid &&
      node->agent->write_now(c.waiting(), node->file, at, r.payload))
    return;
  Bytes bytes = buffer.cut(r.payload);
  if (r.write_back) {
    // K7: at once, waiting on nothing.
    node->agent->write_back(node->file, node->slot, r.offset, std::move(bytes));
    (void)c.channel->reply(c.unique, fuse::write_out(length));
    return;
  }
  if (refuses_writes_) {
    (void)c.channel->reply_error(c.unique, ENOTCONN);
    return;
  }
  bool strip = false;
  // Not for a write that is refused.
  if (r.kill_suidgid && r.offset + length <= AgentOptions{}.file_max_bytes) {
    auto mode = node->agent->peek_mode(node->file);
    strip = !mode || (*mode & (S_ISUID | S_ISGID)) != 0;  // which of them, the home knows
  }
  if (!synced && !strip) {
    node->agent->write(c.waiting(), node->file, at, std::move(bytes), {});
    return;
  }
  if (!strip) {
    write_synced(c, *node, r, std::move(bytes));
    return;
  }
  SetAttributesCall call;
  call.file = node->file;
  call.clear_suid = true;
  fuse::Write copy = r;
  copy.payload = {};
  FuseServer::call(c, node->agent, call,
                   [this, c, node = *node, copy, bytes = std::move(bytes)](Reply&& reply) mutable {
                     if (reply.error != 0) {
                       (void)c.channel->reply_error(c.unique, reply.error);
                     } else if ((copy.flags & (O_SYNC | O_DSYNC)) != 0) {
                       write_synced(c, node, copy, std::move(bytes));
                     } else {
                       node.agent->write(c.waiting(), node.file, placement_of(node, copy),
                                         std::move(bytes), {});
                     }
                   });
}

AgentService::Sync FuseServer::sync_by(const Context& c, const Inode& node, uint64_t fh) const {
  return {
      .file = node.file,
      .who = {.handle = fh, .next = next_handle_.load(std::memory_order_relaxed) << kHandleShift},
      .request = c.request};
}

void FuseServer::write_synced(const Context& c, const Inode& node, const fuse::Write& r,
                              Bytes bytes) {
  const bool data_only = (r.flags & O_SYNC) != O_SYNC;
  const AgentService::Sync wait = sync_by(c, node, r.fh);
  node.agent->sync_asked(wait);
  node.agent->write(c.waiting(), node.file, placement_of(node, r), std::move(bytes),
                    [this, c, node, data_only, wait](Answer wrote) {
                      if (wrote.error != 0) {
                        node.agent->sync_ended(wait);
                        (void)c.channel->reply_error(c.unique, wrote.error);
                        return;
                      }
                      sync(c, node, data_only, wait,
                           [c, wrote, half_done = HalfDone(half_done_)](int error) {
                             if (error != 0) {
                               (void)c.channel->reply_error(c.unique, error);
                             } else {
                               (void)c.channel->reply(c.unique, fuse::write_out(wrote.length));
                             }
                           });
                    });
}

void FuseServer::sync(const Context& c, const Inode& node, bool data_only,
                      const AgentService::Sync& wait,
                      std::move_only_function<void(int error)> then) {
  node.agent->flush(
      c.waiting(), wait,
      [this, c, node, data_only, wait, then = std::move(then)](Answer flushed) mutable {
        if (flushed.error != 0) {
          node.agent->sync_ended(wait);
          then(flushed.error);
          return;
        }
        node.agent->sync_begins(wait);
        call(
            c, node.agent, SyncCall{node.file, data_only},
            [node, wait, then = std::move(then)](Reply&& reply) mutable {
              then(node.agent->synced(wait, reply));
            },
            {}, [node, wait](Reply&&) { node.agent->sync_ended(wait); });
      });
}

// One per close(2): the process's byte-range locks on the file go, as POSIX has it.
void FuseServer::handle(const Context& c, const fuse::Flush& r) {
  if (!flush_locks(c, r)) (void)c.channel->reply(c.unique);
}

void FuseServer::handle(const Context& c, const fuse::Release& r) {
  if (auto node = inodes_.get(c.node)) {
    release_handle_locks(*node, r.fh);
    node->agent->close(node->file, opening_of(r.fh), r.fh);
  }
  (void)c.channel->reply(c.unique);
  // After it: counted off twice it would be too few.
  const Opening opening = opening_of(r.fh);
  inodes_.closed(c.node, opening.reads, opening.may_map);
}

void FuseServer::handle(const Context& c, const fuse::Fsync& r) {
  auto node = inode(c);
  if (!node) return;
  const AgentService::Sync wait = sync_by(c, *node, r.fh);
  node->agent->sync_asked(wait);
  sync(c, *node, r.data_only, wait, [c](int error) {
    if (error != 0) {
      (void)c.channel->reply_error(c.unique, error);
    } else {
      (void)c.channel->reply(c.unique);
    }
  });
}

void FuseServer::handle(const Context& c, const fuse::Fallocate& r) {
  auto node = inode(c);
  if (!node) return;
  call(c, node->agent, AllocateCall{node->file, r.offset, r.length, r.mode},
       [this, c](Reply&& reply) { reply_done(c, reply); });
}

void FuseServer::handle(const Context& c, const fuse::LSeek& r) {
  auto node = inode(c);
  if (!node) return;
  call(c, node->agent, SeekCall{node->file, r.offset, r.whence}, [c](Reply&& reply) {
    const auto* at = std::get_if<Offset>(&reply.outcome);
    if (reply.error != 0 || at == nullptr) {
      (void)c.channel->reply_error(c.unique, reply.error != 0 ? reply.error : EIO);
    } else {
      (void)c.channel->reply(c.unique, fuse::lseek_out(at->value));
    }
  });
}

// With EOPNOTSUPP the kernel copies through its page cache, page by page and as coherently.
void FuseServer::handle(const Context& c, const fuse::CopyFileRange& r) {
  auto from = inode(c);
  if (!from) return;
  auto file = inode(c, r.node_out);
  if (!file) return;
  if (refuses_writes_) {
    (void)c.channel->reply_error(c.unique, ENOTCONN);
    return;
  }
  // After our answer the kernel throws the target's pages away without writing them back: a store
  // through a mapping that came in between would be lost. So not where somebody may have one.
  if (from->agent != file->agent || from->file.export_index != file->file.export_index ||
      r.length == 0 || file->agent->may_be_mapped(file->file)) {
    (void)c.channel->reply_error(c.unique, EOPNOTSUPP);
    return;
  }
  const CopyCall operation{.from = from->file,
                           .file = file->file,
                           .from_offset = r.offset_in,
                           .offset = r.offset_out,
                           .length = std::min(r.length, kCopyMax)};
  call(c, file->agent, operation, [c, reply_64 = r.reply_64](Reply&& reply) {
    const auto* copied = std::get_if<Offset>(&reply.outcome);
    if (reply.error != 0 || copied == nullptr) {
      // What the disk below cannot do, the kernel can; it would take ENOSYS as said for good.
      const bool unable = reply.error == EINVAL || reply.error == ENOSYS || reply.error == EXDEV;
      (void)c.channel->reply_error(c.unique, unable             ? EOPNOTSUPP
                                             : reply.error != 0 ? reply.error
                                                                : EIO);
    } else if (reply_64) {
      (void)c.channel->reply(c.unique, fuse::copy_out_64(copied->value));
    } else {
      (void)c.channel->reply(c.unique, fuse::write_out(static_cast<uint32_t>(copied->value)));
    }
  });
}

}  // namespace vremote::node
