// Bytes written here: taken in, sent, counted.
#include <algorithm>
#include <cerrno>
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
  inode_changes(now);
  touch(PageRange::of_bytes(offset, bytes.size()));
  wrote(offset, bytes, wall, true);
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

void FileAgent::note_flight(const Flush& flush, uint64_t bytes) {
  flights_.emplace(flush.flush, Flight{bytes, flush.extents, flush.attributes});
  shared_.flush_bytes_in_flight += bytes;
}

// In the order in which they were written. What was under way may have arrived or not.
void FileAgent::rescue_dirty(AgentActions& actions) {
  DirtyAttributes attributes = std::exchange(dirty_attributes_, {});
  for (const auto& [id, flight] : flights_) {
    const DirtyAttributes& sent = flight.attributes;
    attributes.has_size = attributes.has_size || sent.has_size;
    attributes.has_mtime = attributes.has_mtime || sent.has_mtime;
    attributes.size = std::max(attributes.size, sent.size);
    attributes.mtime = std::max(attributes.mtime, sent.mtime);
  }
  // It may have gone before the bytes.
  if (!attributes.has_mtime && attributes_.mtime != Timestamp{}) {
    attributes.has_mtime = true;
    attributes.mtime = attributes_.mtime;
  }
  const auto rescue = [&](std::vector<Extent> extents) {
    for (const Extent& extent : extents) shared_.statistics.rescued_bytes += extent.bytes.size();
    note_error(EIO);
    actions.push_back(Rescue{id_, std::move(extents), attributes});
  };
  for (auto& [id, flight] : flights_) {
    shared_.flush_bytes_in_flight -= flight.bytes;
    if (!flight.extents.empty()) rescue(std::move(flight.extents));
  }
  flights_.clear();
  while (dirty_.has_unsent()) {
    uint64_t bytes = 0;
    std::vector<Extent> extents =
        dirty_.take_unsent(PageRange::all(), shared_.next_id++, kFlushMax, &bytes);
    if (extents.empty()) break;
    rescue(std::move(extents));
  }
  const uint64_t before = dirty_.bytes();
  dirty_.remove(PageRange::all());
  dirty_.resend();  // forgets the flushes that never were
  set_dirty_bytes(before);
}

// What was learnt while the home synced the file is told, too: a sync after a power failure says
// nothing of what that took.
int32_t FileAgent::synced(uint64_t begun, int32_t error, uint64_t asked, Opener who, bool by_disk) {
  if (error != 0) {
    // The disk has told it to this one, and will not tell it again.
    if (by_disk) {
      note_error(error);
      (void)errors_.tell(who, shared_.syncs);
    }
    return error;
  }
  if (unsynced_ <= begun) unsynced_ = 0;
  return errors_.tell(who, std::min(begun, asked));
}

// Each fsync has a number of its own: the one that begins next is not less than this.
void FileAgent::note_error(int32_t error) {
  errors_.add(error, shared_.options.mistakes.has(Mistake::TellLossToOne) ? 0 : shared_.syncs);
}

// The file is at least this long, without a word from the home. Others who have the Attributes may
// have cut it since, but not before the end of what is ours: they would have recalled those pages.
// Bytes under way count, too, of pages that were given up: the home most likely had neither them
// nor the ack (if it had, and its answer was lost with it: docs/protocol.md, "Not covered").
uint64_t FileAgent::size_for_sure() const {
  if (attributes_mode_ != LeaseMode::None) return attributes_.size;
  if (shared_.options.mistakes.has(Mistake::UndoTruncations)) return size_floor_;
  PageSet held = leases_.exclusive();
  for (PageRange piece : leases_.shared().ranges()) held.add(piece);
  uint64_t end = dirty_.end_in(held);
  for (const auto& [id, flight] : flights_)
    for (const Extent& extent : flight.extents)
      end = std::max(end, extent.offset + extent.bytes.size());
  return std::min({std::max(size_floor_, floor_before_), end, cut_on_the_way()});
}

// S1. The home cuts bytes at the end of the file, which may lie before them again.
void FileAgent::bring_size_back(uint64_t size) {
  if (size == 0 || shared_.options.mistakes.has(Mistake::ForgetLostSize)) return;
  const auto bring = [size](DirtyAttributes& attributes) {
    attributes.size = attributes.has_size ? std::max(attributes.size, size) : size;
    attributes.has_size = true;
  };
  for (auto& [id, flight] : flights_)
    if (!flight.extents.empty()) bring(flight.attributes);
  if (!dirty_.empty()) bring(dirty_attributes_);
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
    // bring the file back): tell it where that is. A truncation of ours that is under way has not
    // been done yet: it takes the Attributes from us, and with them this size.
    if (dirty_attributes_.has_size) {
      flush.attributes.has_size = true;
      flush.attributes.size = dirty_attributes_.size;
    }
    ++shared_.next_id;
    ++shared_.statistics.flushes;
    shared_.statistics.flush_bytes += bytes;
    note_flight(flush, bytes);
    actions.push_back(SendToHome{std::move(flush)});
  }
  // Size and time stamps go with the whole file's flush; the Attributes lease is still here, so
  // only the disk learns of them.
  if (range == PageRange::all() && truncations_ == 0) send_dirty_attributes(actions);
  return true;
}

// As a flush of its own, also before an ack that gives them up: until the home has confirmed it, a
// home that restarts is told again. Nothing tells what has become of an ack.
void FileAgent::send_dirty_attributes(AgentActions& actions) {
  if (!dirty_attributes_.has_size && !dirty_attributes_.has_mtime) return;
  Flush flush = new_flush();
  flush.attributes = std::exchange(dirty_attributes_, {});
  if (!shared_.options.mistakes.has(Mistake::ForgetSentSize)) note_flight(flush, 0);
  actions.push_back(SendToHome{std::move(flush)});
}

// What the disk will have given the file for its bytes, as far as one can tell without asking: as
// if they all lay in holes, for too little would make programs take them for holes (tar -S). With
// the next grant comes the truth.
uint64_t FileAgent::blocks_with(uint64_t dirty_bytes) const {
  const auto in_pages = [](uint64_t bytes) {
    return (bytes / kPageSize + (bytes % kPageSize != 0 ? 1 : 0)) * (kPageSize / 512);
  };
  return std::max(attributes_.blocks,
                  std::min(in_pages(attributes_.size), attributes_.blocks + in_pages(dirty_bytes)));
}

void FileAgent::tell_time() {
  if (!untold_time_) return;
  for (const Request& request : requests_)
    if (request.kind == Kind::Time) return;
  Request request;
  request.kind = Kind::Time;
  requests_.push_back(std::move(request));
}

void FileAgent::flush_if_due(Instant now, AgentActions& actions) {
  if (truncations_ > 0 || !waits_to_flush()) return;
  if (now - dirty_since_ < shared_.options.flush_after_ns) return;
  dirty_since_ = now;
  send_dirty(PageRange::all(), false, actions);
  tell_time();
}

void FileAgent::set_dirty_bytes(uint64_t before) {
  shared_.dirty_bytes = shared_.dirty_bytes - before + dirty_.bytes();
}

}  // namespace vremote::coherence
