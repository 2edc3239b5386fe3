// What the disk does for a home, each in its turn in the file's queue: grants that carry bytes,
// flushes, fetches.
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "net/event_loop.h"
#include "node/home/home_service.h"

namespace vremote::node {

using namespace coherence;

namespace {

// The kernel's view of a size can be older than a truncation: a mapped store beyond the true end
// must not bring the file back.
void cut_extents(std::vector<Extent>& extents, uint64_t size) {
  for (Extent& extent : extents)
    if (extent.offset + extent.bytes.size() > size)
      extent.bytes = extent.bytes.part(0, extent.offset < size ? size - extent.offset : 0);
  std::erase_if(extents, [](const Extent& extent) { return extent.bytes.empty(); });
}

}  // namespace

bool HomeService::run(SendGrant& action, bool may_block) {
  store::Store& store = *store_of(action.grant.file);
  Grant& grant = action.grant;
  if (!action.data.empty()) {
    const uint64_t offset = action.data.byte_offset();
    auto bytes = may_block ? store.read(grant.file, offset, action.data.byte_length())
                           : store.try_read(grant.file, offset, action.data.byte_length());
    if (!bytes && bytes.error().code == EAGAIN && !may_block) return false;
    if (bytes) {
      grant.data = std::move(*bytes);
    } else {
      grant.error = bytes.error().code;
    }
  }
  if (grant.error == 0 && grant.resource != Resource::Entries) {
    auto attributes = store.stat(grant.file);
    if (attributes) {
      grant.size_floor = attributes->size;
      if (grant.resource == Resource::Attributes) {
        grant.attributes = *attributes;
        grant.has_xattrs = store.has_xattrs(grant.file);
      }
    } else {
      grant.error = attributes.error().code;
    }
  }
  const FileId file = grant.file;
  {
    std::lock_guard lock(unsynced_mutex_);
    grant.unsynced = unsynced_.has(file);
  }
  deliver_(action.node, file, std::move(grant));
  return true;
}

bool HomeService::run(ApplyFlush& action, bool may_block) {
  if (!may_block && !action.flush.extents.empty()) return false;
  store::Store& store = *store_of(action.flush.file);
  const Flush& flush = action.flush;
  FlushAck ack{.file = flush.file, .flush = flush.flush, .error = 0};
  DirtyAttributes after = flush.attributes;
  if (!action.flush.extents.empty()) {
    Status done;
    if (auto before = store.stat(flush.file)) {
      // Writing sets the disk's modification time to now; the file's is what its writer, or
      // utimes(2), said.
      if (!after.has_mtime) {
        after.has_mtime = true;
        after.mtime = before->mtime;
      }
      cut_extents(action.flush.extents,
                  std::max(before->size, flush.attributes.has_size ? flush.attributes.size : 0));
      if (!flush.extents.empty()) done = store.write(flush.file, flush.extents);
    } else {
      done = std::unexpected(before.error());
    }
    if (!done) {
      ack.error = done.error().code;
      // ESTALE: the last name and the last handle are gone, and with them whoever could have missed
      // the bytes.
      const auto tell = ack.error == ESTALE
                            ? RepeatedErrors::Tell::Nothing
                            : not_written_.failed(net::EventLoop::now(), flush.file, ack.error);
      if (tell != RepeatedErrors::Tell::Nothing)
        spdlog::error("{}: dirty bytes not written: {} {}; said once until they are{}",
                      described(flush.file), std::strerror(ack.error), done.error().what,
                      RepeatedErrors::of_others(tell));
    } else if (const uint64_t untold = not_written_.succeeded(flush.file); untold != 0) {
      spdlog::info("{}: dirty bytes are written again; they were not {} more times",
                   described(flush.file), untold);
    }
  }
  if (after.has_mtime || after.has_size)
    if (auto done = store.apply(flush.file, after); !done && ack.error == 0)
      ack.error = done.error().code;
  // Before it is confirmed, and before the next grant.
  changed(flush.file, false);
  if (ack.error == 0)
    if (const auto now = store.stat(flush.file)) ack.blocks = now->blocks;
  deliver_(action.node, flush.file, std::move(ack));
  return true;
}

bool HomeService::run(ServeFetch& action, bool may_block) {
  store::Store& store = *store_of(action.fetch.file);
  const PageRange range = action.fetch.range;
  auto bytes = may_block
                   ? store.read(action.fetch.file, range.byte_offset(), range.byte_length())
                   : store.try_read(action.fetch.file, range.byte_offset(), range.byte_length());
  if (!bytes && bytes.error().code == EAGAIN && !may_block) return false;
  FetchReply reply{.file = action.fetch.file,
                   .fetch = action.fetch.fetch,
                   .error = 0,
                   .data_offset = range.byte_offset(),
                   .data = {}};
  if (bytes) {
    reply.data = std::move(*bytes);
  } else {
    reply.error = bytes.error().code;
  }
  deliver_(action.node, action.fetch.file, std::move(reply));
  return true;
}

}  // namespace vremote::node
