// What the home says, and what the end of a session does.
#include <algorithm>
#include <map>
#include <utility>

#include "coherence/file_agent.h"

namespace vremote::coherence {

void FileAgent::granted(Instant now, Grant message, AgentActions&) {
  // Counts at the home whether it worked or not; a refusal at its door has no number.
  if (message.sequence != 0) seen_ = message.sequence;
  if (message.error == 0) floor_before_ = 0;
  if (message.unsynced && !shared_.options.mistakes.has(Mistake::ForgetOthersBytes)) not_synced();
  if (forgotten_ && !release_at_) release_at_ = now + shared_.options.offer_ns;
  switch (message.resource) {
    case Resource::Entries:
      if (message.error == 0) entries_ = LeaseMode::Shared;
      if (message.request == entries_request_) entries_request_ = 0;
      if (message.error != 0)
        for (Request& request : requests_)
          if (request.kind == Kind::Entries) request.error = message.error;
      return;
    case Resource::Attributes: {
      if (message.error == 0) {
        const bool knew = covers(attributes_mode_, LeaseMode::Shared);
        if (!knew) {
          attributes_ = message.attributes;
          has_xattrs_ = message.has_xattrs;
          if (dirty_attributes_.has_size)
            attributes_.size = std::max(attributes_.size, dirty_attributes_.size);
          if (dirty_attributes_.has_mtime && attributes_.mtime < dirty_attributes_.mtime)
            attributes_.mtime = attributes_.ctime = dirty_attributes_.mtime;
        }
        if (attributes_mode_ == LeaseMode::None || message.mode == LeaseMode::Exclusive) {
          attributes_mode_ = message.mode;
        } else if (!covers(attributes_mode_, message.mode)) {
          attributes_mode_ =
              LeaseMode::Exclusive;  // Shared and Update together: the home joins them the same way
        }
        size_floor_ = std::max(size_floor_, attributes_.size);
        watched_ = message.watched;
      }
      for (Request& request : requests_) {
        if (request.attributes_request == 0 || request.attributes_request != message.request)
          continue;
        request.attributes_request = 0;
        request.error = message.error;
      }
      return;
    }
    case Resource::Data:
      if (message.error == 0) {
        // I5: it may hold less than it was granted.
        const bool asked = std::ranges::any_of(requests_, [&](const Request& request) {
          return request.data_request != 0 && request.data_request == message.request;
        });
        if (asked || leases_.shared().range_count() + leases_.exclusive().range_count() <
                         kUnaskedRangesMax) {
          leases_.raise(message.range, message.mode);
          // The home knows of no growth that is still told here alone.
          size_floor_ = attributes_mode_ == LeaseMode::None
                            ? message.size_floor
                            : std::max(message.size_floor, attributes_.size);
        }
      }
      for (Request& request : requests_) {
        if (request.data_request == 0 || request.data_request != message.request) continue;
        request.data_request = 0;
        if (message.error == EAGAIN) {  // bounced (B2, M3): our Attributes are wanted first
          if (request.active) break;    // it has got its pages by another grant since
          request.bounced = true;
          request.pinned = false;
          kernel_size_.give_way();
          if (request.append) turn_.reset();
          break;
        }
        request.error = message.error;
        if (request.kind != Kind::Write && message.error == 0) {
          request.have_data = true;
          request.data_offset = message.data_offset;
          request.data = std::move(message.data);
        }
        break;
      }
      return;
  }
}

void FileAgent::recalled(const Recall& message) {
  ++shared_.statistics.recalls;
  if (recalls_.size() >= kRecallsOfFileMax) return;
  recalls_.push_back({message.recall, message.resource, message.to, message.range});
}

void FileAgent::flush_acked(const FlushAck& message, AgentActions& actions) {
  auto flight = flights_.find(message.flush);
  if (flight == flights_.end()) return;  // from before a reset
  shared_.flush_bytes_in_flight -= flight->second.bytes;
  if (message.error == 0) {
    attributes_.blocks = message.blocks;
    not_synced();
    // A grant that the home gave before it had this may have said less since.
    if (flight->second.attributes.has_size)
      size_floor_ = std::max(size_floor_, flight->second.attributes.size);
  }
  flights_.erase(flight);
  if (message.error != 0) note_error(message.error);
  if (shared_.options.mistakes.has(Mistake::StaleOverlay)) return;
  const uint64_t before = dirty_.bytes();
  PageSet clean = dirty_.acked(message.flush);
  set_dirty_bytes(before);
  // Nothing is left to guess, and the kernel may keep what was guessed.
  if (dirty_.empty() && told_blocks_ != attributes_.blocks) drop_attributes(actions);
  // Bytes that a request holds were read before this flush was written, and the overlay is gone
  // now.
  if (!shared_.options.mistakes.has(Mistake::KeepVoidFetch))
    for (Request& request : requests_)
      if (request.have_data && !clean.intersect(request.range).empty()) request.have_data = false;
}

void FileAgent::fetched(FetchReply message, AgentActions&) {
  for (Request& request : requests_) {
    if (request.fetch == 0 || request.fetch != message.fetch) continue;
    request.fetch = 0;
    request.error = message.error;
    request.have_data = message.error == 0;
    request.data_offset = message.data_offset;
    request.data = std::move(message.data);
    return;
  }
}

void FileAgent::suspend(Instant now, AgentActions& actions) {
  stepped_at_ = now;
  drop_attributes(actions);
  ending_ = 0;
  if (std::exchange(kernel_has_names_, false))
    actions.push_back(EndNames{shared_.next_id++, id_, true});
}

void FileAgent::reset(Instant now, Agent::Dirty dirty, AgentActions& actions, bool disk_has_lost) {
  stepped_at_ = now;
  const uint64_t size = size_for_sure();
  const uint64_t cut = disk_has_lost ? cut_on_the_way() : UINT64_MAX;
  // Of these the home may have had the size before it cut the file. (Without a power failure such a
  // truncation is made again, and others may see the file before that.)
  for (auto& [id, flight] : flights_)
    flight.attributes.size = std::min(flight.attributes.size, cut);
  // What lies behind that may be cut although the truncation came to nothing.
  const bool loses = disk_has_lost && std::exchange(unsynced_, 0) != 0;
  if ((loses || cut != UINT64_MAX) && !shared_.options.mistakes.has(Mistake::ForgetUnsynced))
    note_error(EIO);
  PageSet kept = kernel_.resident();
  kept.remove(not_exclusive(kept));
  keep_resident(kept_pages_);
  for (PageRange still : kept_pages_.ranges()) kept.add(still);
  kept_pages_ = dirty == Agent::Dirty::Kept ? std::move(kept) : PageSet();
  claim_ = 0;
  claim_held_ = false;
  leases_.clear();
  attributes_mode_ = entries_ = LeaseMode::None;
  entries_request_ = 0;
  seen_ = 0;
  // Once more before that was brought back: the home may have lost its disk's end only then.
  const uint64_t floor = std::max(size_floor_, floor_before_);
  floor_before_ = dirty != Agent::Dirty::Kept ? 0 : std::max(size, floor);
  size_floor_ = 0;
  told_in_use_ = false;
  turn_.reset();
  recalls_.clear();
  for (Request& request : requests_) {
    request.data_request = request.attributes_request = request.fetch = request.tell = 0;
    request.have_data = false;
    request.pinned = false;
    if (request.kind == Kind::Write) request.active = false;
  }
  actions.push_back(EntriesLost{id_});
  suspend(now, actions);
  if (dirty == Agent::Dirty::Fenced && !shared_.options.mistakes.has(Mistake::FlushAfterFence)) {
    rescue_dirty(actions);
    fenced_ = true;
  } else {
    if (disk_has_lost) bring_size_back(size);
    // Older bytes first: those of pages that were given up on the way are in no other place.
    std::map<uint64_t, Flight> again;
    again.swap(flights_);
    for (auto& [id, flight] : again) {
      shared_.flush_bytes_in_flight -= flight.bytes;
      if (shared_.options.mistakes.has(Mistake::LostReclaim)) continue;
      if (flight.extents.empty() && !flight.attributes.has_size && !flight.attributes.has_mtime)
        continue;
      Flush flush = new_flush();
      flush.extents = std::move(flight.extents);
      flush.attributes = flight.attributes;
      note_flight(flush, flight.bytes);
      actions.push_back(SendToHome{std::move(flush)});
    }
    dirty_.resend();
    send_dirty(PageRange::all(), true, actions);
    // Whoever waits for the flushes waits for these.
    for (Request& request : requests_)
      if (request.kind == Kind::Flush) request.flush_upto = shared_.next_id;
  }
  // What the kernel has cached is unleased: like a recall of everything that nobody waits to hear
  // of.
  recalls_.push_back({0, Resource::Data, LeaseMode::None, PageRange::all()});
  forget_announcements();
}

}  // namespace vremote::coherence
