// Bytes written here: taken in, sent, counted.
#include <utility>

#include "coherence/file_agent.h"

namespace vremote::coherence {
namespace {

constexpr uint64_t kFlushMax = 1 << 20;  // bytes of one Flush

}  // namespace

template <class Source>
void FileAgent::wrote(uint64_t offset, const Source& bytes, Timestamp wall, bool extend) {
  const uint64_t before = dirty_.bytes();
  dirty_.write(offset, bytes);
  set_dirty_bytes(before);
  dirty_attributes_.has_mtime = true;
  dirty_attributes_.mtime = std::max(dirty_attributes_.mtime, wall);
  attributes_.mtime = attributes_.ctime = std::max(attributes_.mtime, wall);
  const uint64_t end = offset + bytes.size();
  if (extend && end > attributes_.size) {
    attributes_.size = end;
    dirty_attributes_.has_size = true;
    dirty_attributes_.size = end;
    size_floor_ = std::max(size_floor_, end);
  }
}

template <class Source>
void FileAgent::apply_write(Instant now, uint64_t offset, const Source& bytes, Timestamp wall,
                            uint64_t kernel_end) {
  if (dirty_.empty()) dirty_since_ = now;
  touch(PageRange::of_bytes(offset, bytes.size()));
  wrote(offset, bytes, wall, true);
  written_end_ = std::max(written_end_, kernel_end);
  kernel_size_.told_by_write(now, std::max(kernel_end, offset + bytes.size()));
}

template void FileAgent::wrote(uint64_t, const Bytes&, Timestamp, bool);
template void FileAgent::apply_write(Instant, uint64_t, const Bytes&, Timestamp, uint64_t);
template void FileAgent::apply_write(Instant, uint64_t, const std::span<const std::byte>&,
                                     Timestamp, uint64_t);

Flush FileAgent::new_flush() {
  Flush flush{.file = id_, .flush = shared_.next_id++, .extents = {}, .attributes = {}};
  ++shared_.statistics.flushes;
  return flush;
}

bool FileAgent::send_dirty(PageRange range, bool all, AgentActions& actions) {
  while (dirty_.has_unsent()) {
    if (!all && shared_.flush_bytes_in_flight >= shared_.options.flush_window_bytes) {
      shared_.due.insert(id_);
      return false;
    }
    Flush flush{.file = id_, .flush = shared_.next_id, .extents = {}, .attributes = {}};
    uint64_t bytes = 0;
    flush.extents = dirty_.take_unsent(range, flush.flush, kFlushMax, &bytes);
    if (flush.extents.empty()) break;
    // The home cuts flushed bytes at the file's end (a mapping older than a truncation must not
    // bring the file back): tell it where that is.
    if (dirty_attributes_.has_size) {
      flush.attributes.has_size = true;
      flush.attributes.size = dirty_attributes_.size;
      for (const Request& request : requests_)
        if (request.kind == Kind::Truncate && request.active)
          flush.attributes.size = std::min(flush.attributes.size, request.size);
    }
    ++shared_.next_id;
    ++shared_.statistics.flushes;
    shared_.statistics.flush_bytes += bytes;
    flights_.emplace(flush.flush, bytes);
    shared_.flush_bytes_in_flight += bytes;
    actions.push_back(SendToHome{std::move(flush)});
  }
  // Size and time stamps go with the whole file's flush; the Attributes lease is still here, so
  // only the disk learns of them.
  if (range == PageRange::all() && (dirty_attributes_.has_size || dirty_attributes_.has_mtime) &&
      truncations_ == 0) {
    Flush flush = new_flush();
    flush.attributes = std::exchange(dirty_attributes_, {});
    flights_.emplace(flush.flush, 0);
    actions.push_back(SendToHome{std::move(flush)});
  }
  return true;
}

void FileAgent::flush_if_due(Instant now, AgentActions& actions) {
  if (truncations_ > 0 || !waits_to_flush()) return;
  if (now - dirty_since_ < shared_.options.flush_after_ns) return;
  dirty_since_ = now;
  send_dirty(PageRange::all(), false, actions);
}

void FileAgent::set_dirty_bytes(uint64_t before) {
  shared_.dirty_bytes = shared_.dirty_bytes - before + dirty_.bytes();
}

}  // namespace vremote::coherence
