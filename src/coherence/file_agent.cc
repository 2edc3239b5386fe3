#include "coherence/file_agent.h"

#include <cerrno>
#include <utility>

namespace vremote::coherence {
namespace {

constexpr uint64_t kFlushMax = 1 << 20;  // bytes of one Flush
constexpr size_t kTouchedMax = 8;        // ranges remembered as in use
constexpr uint64_t kTouchedAhead = 64;   // pages a sequential user will want next
constexpr uint64_t kAll = ~uint64_t{0};

}  // namespace

FileAgent::FileAgent(FileId id, AgentShared& shared)
    : id_(id), shared_(shared), kernel_(shared.options.mistakes) {}

// ---- events
// ---------------------------------------------------------------------------------------------------------------------

void FileAgent::read(Instant, const ReadEvent& event) {
  known_to_kernel();
  Request request;
  request.kind = event.fill ? Kind::Fill : Kind::Read;
  request.token = event.token;
  request.offset = event.offset;
  request.size = event.size;
  request.range = PageRange::of_bytes(event.offset, event.size);
  if (event.fill) {
    request.fill = shared_.next_id++;
    kernel_.fill_arrived(request.fill, request.range);
    ++shared_.statistics.fills;
  } else {
    ++shared_.statistics.direct_reads;
    touch(request.range);
  }
  requests_.push_back(std::move(request));
}

void FileAgent::write(WriteEvent event) {
  known_to_kernel();
  ++shared_.statistics.direct_writes;
  Request request;
  request.kind = Kind::Write;
  request.token = event.token;
  request.offset = event.offset;
  request.size = event.bytes.size();
  request.range = PageRange::of_bytes(event.offset, event.bytes.size());
  request.bytes = std::move(event.bytes);
  request.append = event.append;
  request.kernel_end = event.offset + request.size;
  request.wall = event.now_wall;
  requests_.push_back(std::move(request));
}

void FileAgent::write_back(Instant now, uint64_t offset, const Bytes& bytes, Timestamp now_wall) {
  ++shared_.statistics.write_backs;
  if (!leases_.covers(PageRange::of_bytes(offset, bytes.size()), LeaseMode::Exclusive))
    ++shared_.statistics.write_backs_without_exclusive;
  if (dirty_.empty()) dirty_since_ = now;
  // Its size was in the kernel's view already: a write-back never extends the file.
  wrote(offset, bytes, now_wall, false);
}

void FileAgent::open(Token token, bool may_map) {
  known_to_kernel();
  ++opens_;
  Request request;
  request.kind = Kind::Open;
  request.token = token;
  if (may_map) {
    ++mapping_opens_;
    if (may_write()) request.purge = not_exclusive(kernel_.resident());
  }
  requests_.push_back(std::move(request));
}

void FileAgent::close(bool may_map, AgentActions& actions) {
  VR_CHECK(opens_ > 0 && (!may_map || mapping_opens_ > 0));
  --opens_;
  if (may_map) --mapping_opens_;
  if (opens_ == 0 && told_in_use_) {
    told_in_use_ = false;
    actions.push_back(SendToHome{Release{.file = id_, .seen = seen_, .leases = false}});
  }
}

void FileAgent::attributes(Token token) {
  known_to_kernel();
  Request request;
  request.kind = Kind::Attributes;
  request.token = token;
  requests_.push_back(std::move(request));
}

void FileAgent::entries(Token token) {
  known_to_kernel();
  Request request;
  request.kind = Kind::Entries;
  request.token = token;
  requests_.push_back(std::move(request));
}

void FileAgent::flush(Instant, Token token, AgentActions& actions) {
  send_dirty(PageRange::all(), true, actions);
  Request request;
  request.kind = Kind::Flush;
  request.token = token;
  request.flush_upto = shared_.next_id;
  requests_.push_back(std::move(request));
}

void FileAgent::truncate(Token token, uint64_t size) {
  known_to_kernel();
  ++truncations_;
  Request request;
  request.kind = Kind::Truncate;
  request.token = token;
  request.size = size;
  request.range = PageRange{size >> kPageShift, kPageEnd};
  requests_.push_back(std::move(request));
}

void FileAgent::truncate_done(Instant now, bool done, uint64_t size) {
  VR_CHECK(truncations_ > 0);
  --truncations_;
  std::erase_if(requests_, [&](const Request& r) { return r.kind == Kind::Truncate && r.active; });
  if (!done) return;
  const uint64_t before = dirty_.bytes();
  dirty_.truncate(size);
  set_dirty_bytes(before);
  size_floor_ = std::min(size_floor_, size);
  told_at_most(size);
  truncated_until_ = now + shared_.options.residency_ns;
  if (dirty_attributes_.has_size) dirty_attributes_.has_size = false;
  if (attributes_mode_ != LeaseMode::None) attributes_.size = size;
  void_data({size >> kPageShift, kPageEnd});
}

void FileAgent::interrupt(Token token, AgentActions& actions) {
  for (auto it = requests_.begin(); it != requests_.end(); ++it) {
    if (it->token != token) continue;
    // A fill is never given up (its folios stay locked); what is being carried out is finished: it
    // waits for nothing remote.
    if (it->kind == Kind::Fill || it->active || it->kind == Kind::Truncate) return;
    if (it->kind == Kind::Open)
      return;  // the handle is counted already; it waits for attributes or a local purge only
    actions.push_back(ReplyError{token, EINTR});
    requests_.erase(it);
    return;
  }
}

void FileAgent::forget(Instant now) {
  forgotten_ = true;
  release_at_ = now;
  kernel_.forgotten();
}

void FileAgent::purge_returned(PurgeId purge) { kernel_.purge_returned(purge); }

void FileAgent::size_pushed(uint64_t push) {
  for (Request& request : requests_) {
    if (request.push != push) continue;
    request.push = 0;
    request.pushed = true;
  }
}

void FileAgent::granted(Instant now, Grant message, AgentActions&) {
  seen_ = message.sequence;  // counts at the home whether it worked or not
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
        leases_.raise(message.range, message.mode);
        size_floor_ = message.size_floor;
      }
      for (Request& request : requests_) {
        if (request.data_request == 0 || request.data_request != message.request) continue;
        request.data_request = 0;
        if (message.error == EAGAIN) {  // bounced (K8): somebody needs our Attributes first
          request.pinned = false;
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
  recalls_.push_back({message.recall, message.resource, message.to, message.range});
}

void FileAgent::flush_acked(const FlushAck& message) {
  auto flight = flights_.find(message.flush);
  if (flight == flights_.end()) return;  // from before a reset
  shared_.flush_bytes_in_flight -= flight->second;
  flights_.erase(flight);
  if (message.error != 0) write_error_ = message.error;
  if (shared_.options.mistakes.has(Mistake::StaleOverlay)) return;
  const uint64_t before = dirty_.bytes();
  PageSet clean = dirty_.acked(message.flush);
  set_dirty_bytes(before);
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

void FileAgent::reset(Instant, AgentActions& actions) {
  leases_.clear();
  attributes_mode_ = entries_ = LeaseMode::None;
  entries_request_ = 0;
  seen_ = 0;
  size_floor_ = 0;
  told_in_use_ = false;
  recalls_.clear();
  for (auto& [flush, bytes] : flights_) shared_.flush_bytes_in_flight -= bytes;
  flights_.clear();
  for (Request& request : requests_) {
    request.data_request = request.attributes_request = request.fetch = 0;
    request.have_data = false;
    request.pinned = false;
    if (request.kind == Kind::Write) request.active = false;
  }
  actions.push_back(EntriesLost{id_});
  dirty_.resend();
  send_dirty(PageRange::all(), true, actions);
  // What the kernel has cached is unleased: like a recall of everything that nobody waits to hear
  // of.
  recalls_.push_back({0, Resource::Data, LeaseMode::None, PageRange::all()});
}

// ---- what has become possible
// ---------------------------------------------------------------------------------------------------

void FileAgent::step(Instant now, AgentActions& actions) {
  stepped_at_ = now;
  for (bool moved = true; moved;) {
    moved = false;
    wake_.reset();
    for (auto it = requests_.begin(); it != requests_.end();) {
      if (advance(now, *it, actions)) {
        it = requests_.erase(it);
        moved = true;
      } else {
        ++it;
      }
    }
    for (auto it = recalls_.begin(); it != recalls_.end();) {
      if (advance_recall(now, *it, actions)) {
        it = recalls_.erase(it);
        moved = true;
      } else {
        tell_busy(now, *it, actions);
        ++it;
      }
    }
  }
  for (const KernelCache::Purge& purge :
       kernel_.start_purges(purges_wanted(now), &shared_.next_purge)) {
    ++shared_.statistics.purges;
    actions.push_back(StartPurge{purge.id, id_, purge.range});
  }
  if (forgotten_ && seen_ > 0 && release_at_ && *release_at_ <= now && requests_.empty() &&
      recalls_.empty() && entries_request_ == 0 && opens_ == 0 && truncations_ == 0 &&
      kernel_.purges_in_flight() == 0) {
    if (!clean()) {
      send_dirty(PageRange::all(), true, actions);
    } else {
      actions.push_back(SendToHome{Release{.file = id_, .seen = seen_, .leases = true}});
      if (entries_ != LeaseMode::None) actions.push_back(EntriesLost{id_});
      leases_.clear();
      attributes_mode_ = entries_ = LeaseMode::None;
      told_in_use_ = false;
      seen_ = 0;
    }
  }
}

bool FileAgent::advance(Instant now, Request& request, AgentActions& actions) {
  if (request.error != 0) {
    if (request.kind == Kind::Fill) kernel_.fill_failed(request.fill);
    if (request.kind == Kind::Truncate) --truncations_;
    actions.push_back(ReplyError{request.token, request.error});
    return true;
  }
  switch (request.kind) {
    case Kind::Fill:
    case Kind::Read:
      return advance_read(now, request, actions);
    case Kind::Write:
      return advance_write(now, request, actions);
    case Kind::Attributes:
      return advance_attributes(request, actions);
    case Kind::Entries:
      if (entries_ != LeaseMode::None && !recall_pending(Resource::Entries, kUnit)) {
        actions.push_back(ReplyEntries{request.token});
        return true;
      }
      if (entries_ == LeaseMode::None && entries_request_ == 0) {
        entries_request_ = shared_.next_id++;
        ++shared_.statistics.lease_requests;
        actions.push_back(SendToHome{LeaseRequest{.file = id_,
                                                  .request = entries_request_,
                                                  .resource = Resource::Entries,
                                                  .mode = LeaseMode::Shared,
                                                  .range = kUnit,
                                                  .want_data = false}});
      }
      return false;
    case Kind::Open:
      return advance_open(request, actions);
    case Kind::Flush: {
      if (!flights_.empty() && flights_.begin()->first < request.flush_upto) return false;
      actions.push_back(ReplyFlushed{request.token, std::exchange(write_error_, 0)});
      return true;
    }
    case Kind::Truncate:
      return advance_truncate(request, actions);
  }
  return false;
}

// Holds the Attributes lease for this request from here to its answer, or asks for it.
bool FileAgent::need_attributes(Request& request, LeaseMode mode, AgentActions& actions) {
  if (covers(attributes_mode_, mode)) {
    if (request.pinned) return true;
    // The recall came first: give up, then ask anew (the home serves the other node first).
    if (recall_pending(Resource::Attributes, kUnit)) return false;
    request.pinned = true;
    return true;
  }
  request.pinned = false;
  if (request.attributes_request != 0 || recall_pending(Resource::Attributes, kUnit)) return false;
  request.attributes_request = shared_.next_id++;
  request.asked_message = true;
  ++shared_.statistics.lease_requests;
  actions.push_back(SendToHome{LeaseRequest{.file = id_,
                                            .request = request.attributes_request,
                                            .resource = Resource::Attributes,
                                            .mode = mode,
                                            .range = kUnit,
                                            .want_data = false}});
  return false;
}

void FileAgent::ask_data(Request& request, LeaseMode mode, bool want_data, AgentActions& actions) {
  if (request.data_request != 0) return;
  request.data_request = shared_.next_id++;
  request.asked_message = true;
  request.have_data = false;
  request.fetch = 0;
  ++shared_.statistics.lease_requests;
  actions.push_back(SendToHome{LeaseRequest{.file = id_,
                                            .request = request.data_request,
                                            .resource = Resource::Data,
                                            .mode = mode,
                                            .range = request.range,
                                            .want_data = want_data}});
}

// K16: the kernel throws an answer away when the inode changed in any way since it asked (a purge,
// another answer), and goes on with the size it had: a read at the old end would miss what another
// node has appended. So a size larger than the one it was last told is made known first.
bool FileAgent::advance_attributes(Request& request, AgentActions& actions) {
  if (request.push != 0) return false;
  if (!request.pushed) {
    if (!need_attributes(request, LeaseMode::Shared, actions)) return false;
    request.told = attributes_;
    request.told_order = ++last_told_;
    request.told.blocks = std::max(request.told.blocks,
                                   std::min((request.told.size + 511) / 512, dirty_.bytes() / 512));
    if (told_size_ && request.told.size > *told_size_) {
      // The answer was true when the question was there; the lease need not wait for the push.
      request.pinned = false;
      request.push = shared_.next_id++;
      ++shared_.statistics.size_pushes;
      actions.push_back(PushSize{request.push, id_, request.told.size});
      return false;
    }
  }
  if (request.pushed) {
    // What has become true since the question is as good an answer, and a later one.
    if (covers(attributes_mode_, LeaseMode::Shared)) {
      request.told = attributes_;
      request.told_order = ++last_told_;
    }
  }
  // Nobody is told an older truth after a newer one.
  for (Request& other : requests_) {
    if (other.told_order == 0 || other.told_order >= request.told_order) continue;
    other.told = request.told;
    other.told_order = request.told_order;
  }
  told_size_ = request.told.size;
  actions.push_back(ReplyAttributes{request.token, request.told});
  return true;
}

bool FileAgent::advance_read(Instant now, Request& request, AgentActions& actions) {
  const bool fill = request.kind == Kind::Fill;
  const Mistakes& mistakes = shared_.options.mistakes;
  if (fill) {
    // K3: while this fill stands for the absence of its pages, it is not answered.
    if (!mistakes.has(Mistake::FillFromRecalled) && recall_pending(Resource::Data, request.range))
      return false;
    for (const Request& other : requests_) {
      if (!other.active || !other.range.overlaps(request.range)) continue;
      if (other.kind == Kind::Write || (other.kind == Kind::Truncate && !may_write())) return false;
    }
  } else if (recall_pending(Resource::Data, request.range)) {
    return false;
  }
  // A message for the data is under way and will carry what we need.
  if (request.data_request != 0) return false;

  uint64_t available = request.size;
  if (request.offset + request.size > size_floor_ || attributes_mode_ != LeaseMode::None) {
    if (request.offset + request.size > size_floor_ && attributes_mode_ == LeaseMode::None &&
        !need_attributes(request, LeaseMode::Shared, actions))
      return false;
    if (request.offset + request.size > attributes_.size) {
      // The answer depends on the true size: it must not change until we have given it.
      if (!request.pinned && recall_pending(Resource::Attributes, kUnit)) return false;
      request.pinned = true;
      available = request.offset < attributes_.size ? attributes_.size - request.offset : 0;
    }
  }
  const LeaseMode mode = fill && may_write() ? LeaseMode::Exclusive : LeaseMode::Shared;
  if (!fill && available == 0) {
    actions.push_back(ReplyData{request.token, {}, 0});
    return true;
  }
  if (!leases_.covers(request.range, mode) &&
      !(mistakes.has(Mistake::FillFromRecalled) && request.have_data)) {
    ask_data(request, mode, true, actions);
    return false;
  }
  if (!request.have_data && !dirty_.covers(request.offset, available)) {
    if (request.fetch == 0) {
      request.fetch = shared_.next_id++;
      request.asked_message = true;
      ++shared_.statistics.fetches;
      actions.push_back(
          SendToHome{Fetch{.file = id_, .fetch = request.fetch, .range = request.range}});
    }
    return false;
  }
  if (!request.asked_message) ++shared_.statistics.hits_without_message;
  if (!request.have_data) request.data = {};
  // A fill that waited for our own truncation: the kernel ignores a short answer until it has taken
  // in the truncation's, and its reader would take the rest of the page, which is zero, for bytes
  // of the file.
  if (fill && available < request.size && now < truncated_until_) {
    wake_ = wake_ ? std::min(*wake_, truncated_until_) : truncated_until_;
    return false;
  }
  if (fill && available < request.size)
    told_at_most(request.offset + available);  // the kernel takes a short answer for the end
  if (fill) kernel_.fill_answered(request.fill, request.range, now + shared_.options.residency_ns);
  actions.push_back(ReplyData{
      request.token, dirty_.compose(request.offset, available, request.data_offset, request.data),
      available});
  return true;
}

bool FileAgent::advance_write(Instant now, Request& request, AgentActions& actions) {
  if (!request.active) {
    // An append behind another write that is being carried out starts where that one ends.
    if (request.append)
      for (const Request& other : requests_)
        if (other.kind == Kind::Write && other.active) return false;
    const uint64_t end = request.offset + request.size;
    const uint64_t known_size =
        attributes_mode_ != LeaseMode::None ? attributes_.size : size_floor_;
    const bool extends = request.append || end > known_size;
    if (!need_attributes(request, extends ? LeaseMode::Exclusive : LeaseMode::Update, actions))
      return false;
    if (request.append) {
      request.offset = attributes_.size;
      request.range = PageRange::of_bytes(request.offset, request.size);
    }
    if (request.offset + request.size > static_cast<uint64_t>(INT64_MAX)) {
      actions.push_back(ReplyError{request.token, EFBIG});
      return true;
    }
    if (recall_pending(Resource::Data, request.range)) return false;
    if (!leases_.covers(request.range, LeaseMode::Exclusive)) {
      ask_data(request, LeaseMode::Exclusive, false, actions);
      return false;
    }
    request.active = true;
  }
  // Purge before apply: the purge may write back an older mapped page, which must not land on top
  // of these bytes (K12).
  if (!shared_.options.mistakes.has(Mistake::ApplyBeforePurge) &&
      kernel_.resident().overlaps(request.range))
    return false;
  // A fill that met the old end left zeroes behind it in its page. A reader that was woken by it
  // looks at the size only now: it must not find the new one and take those zeroes for bytes of the
  // file. As with recalls (K13), it gets a moment.
  if (const uint64_t end = request.offset + request.size; end > attributes_.size) {
    if (auto until = kernel_.keep_until(
            {attributes_.size >> kPageShift, ((end - 1) >> kPageShift) + 1}, now)) {
      wake_ = wake_ ? std::min(*wake_, *until) : *until;
      return false;
    }
  }
  if (dirty_.empty()) dirty_since_ = now;
  touch(request.range);
  wrote(request.offset, request.bytes, request.wall, true);
  if (told_size_) told_size_ = std::max(*told_size_, request.kernel_end);
  if (!request.asked_message) ++shared_.statistics.hits_without_message;
  if (shared_.dirty_bytes > shared_.options.dirty_max_bytes) {
    shared_.throttled.push_back(
        {request.token, request.offset, static_cast<uint32_t>(request.size)});
    send_dirty(PageRange::all(), false, actions);
  } else {
    actions.push_back(
        ReplyWritten{request.token, request.offset, static_cast<uint32_t>(request.size)});
  }
  return true;
}

bool FileAgent::advance_open(Request& request, AgentActions& actions) {
  // Any mode will do: at its recall the home hears that the file is in use.
  if (attributes_mode_ == LeaseMode::None && !need_attributes(request, LeaseMode::Shared, actions))
    return false;
  if (!request.purge.empty()) {
    PageSet left;
    for (PageRange piece : request.purge.ranges())
      for (PageRange still : not_exclusive(kernel_.resident().intersect(piece)).ranges())
        left.add(still);
    request.purge = left;
    if (!left.empty()) {
      // Other nodes need not wait for the purge: this open only has to hear of its pages.
      request.pinned = false;
      return false;
    }
  }
  actions.push_back(ReplyOpened{request.token});
  return true;
}

bool FileAgent::advance_truncate(Request& request, AgentActions& actions) {
  if (request.active) return false;  // sent; truncate_done() ends it
  // A flush under way could land behind the truncation and bring cut bytes back.
  if (!flights_.empty()) return false;
  for (const Request& other : requests_)
    if (other.kind == Kind::Truncate && other.active) return false;
  // With a writable mapping the kernel holds its write-backs until the truncation is answered: a
  // purge could not end (K8). The kernel itself drops those pages right after our answer.
  if (!may_write() && kernel_.resident().overlaps(request.range)) return false;
  request.active = true;
  actions.push_back(ReplyTruncateReady{request.token});
  return false;
}

bool FileAgent::advance_recall(Instant now, const PendingRecall& recall, AgentActions& actions) {
  switch (recall.resource) {
    case Resource::Entries:
      if (recall.to == LeaseMode::None) {
        entries_ = LeaseMode::None;
        actions.push_back(EntriesLost{id_});
      }
      actions.push_back(SendToHome{RecallAck{.file = id_,
                                             .recall = recall.id,
                                             .given = recall.range,
                                             .seen = seen_,
                                             .attributes = {},
                                             .in_use = false,
                                             .busy = false}});
      return true;
    case Resource::Attributes: {
      for (Request& request : requests_) {
        if (!request.pinned) continue;
        // K8: what waits here may wait for our own truncation, which may wait for this ack.
        if (truncations_ == 0 || request.active) return false;
        request.pinned = false;
      }
      // K16: another node may make the file longer. The page with the end in it must not keep what
      // lies behind it.
      if (const PageRange behind = behind_end(recall); kernel_.resident().overlaps(behind)) {
        if (auto until = kernel_.keep_until(behind, now))
          wake_ = wake_ ? std::min(*wake_, *until) : *until;
        return false;
      }
      RecallAck ack{.file = id_,
                    .recall = recall.id,
                    .given = recall.range,
                    .seen = seen_,
                    .attributes = dirty_attributes_,
                    .in_use = opens_ > 0,
                    .busy = false};
      told_in_use_ = opens_ > 0;
      dirty_attributes_ = {};
      if (recall.to == LeaseMode::None) {
        attributes_mode_ = LeaseMode::None;
      } else if (attributes_mode_ != LeaseMode::None) {
        attributes_mode_ = recall.to;
      }
      actions.push_back(SendToHome{std::move(ack)});
      return true;
    }
    case Resource::Data: {
      for (const Request& request : requests_)
        if (request.kind == Kind::Write && request.active && request.range.overlaps(recall.range))
          return false;
      if (must_purge(recall) && !shared_.options.mistakes.has(Mistake::AckBeforePurge)) {
        if (auto until = kernel_.keep_until(recall.range, now)) {
          wake_ = wake_ ? std::min(*wake_, *until) : *until;
          return false;
        }
        if (kernel_.resident().overlaps(recall.range)) return false;
      }
      ack_data(recall, actions);
      return true;
    }
  }
  return false;
}

// K8: while a truncation of ours is unanswered the kernel holds back its write-backs, so a purge
// may not end and no ack can wait for it. The home must serve the truncation first.
void FileAgent::tell_busy(Instant now, PendingRecall& recall, AgentActions& actions) {
  if (truncations_ == 0 || recall.told_busy || recall.id == 0) return;
  if (!recall.stuck_since) recall.stuck_since = now;
  const Instant due = *recall.stuck_since + shared_.options.busy_after_ns;
  if (now < due) {
    wake_ = wake_ ? std::min(*wake_, due) : due;
    return;
  }
  recall.told_busy = true;
  actions.push_back(SendToHome{RecallAck{.file = id_,
                                         .recall = recall.id,
                                         .given = recall.range,
                                         .seen = seen_,
                                         .attributes = {},
                                         .in_use = false,
                                         .busy = true}});
}

// The pages that must not stay cached when the Attributes lease goes: from the one with the file's
// end in it on.
PageRange FileAgent::behind_end(const PendingRecall& recall) const {
  if (recall.to != LeaseMode::None || attributes_mode_ == LeaseMode::None || truncations_ > 0)
    return {};
  return {attributes_.size >> kPageShift, kPageEnd};
}

// Gives more than was asked where this node has nothing going on, so that a sequential neighbour is
// not served page by page.
PageRange FileAgent::give_around(const PendingRecall& recall) const {
  PageRange wide = dirty_.clean_around(recall.range);
  auto keep_out = [&](PageRange used) {
    if (used.overlaps(recall.range) || used.empty()) return;
    if (used.end <= recall.range.first) wide.first = std::max(wide.first, used.end);
    if (used.first >= recall.range.end) wide.end = std::min(wide.end, used.first);
  };
  if (must_purge(recall)) {
    PageRange gap = kernel_.resident().gap_around(recall.range);
    wide.first = std::max(wide.first, gap.first);
    wide.end = std::min(wide.end, gap.end);
  }
  for (const Request& request : requests_) keep_out(request.range);
  for (PageRange range : touched_) {
    if (range.overlaps(recall.range)) {
      keep_out({range.first, recall.range.first > range.first ? recall.range.first : range.first});
      keep_out({recall.range.end, std::max(range.end, recall.range.end)});
    }
    keep_out(range);
  }
  for (const PendingRecall& other : recalls_)
    if (other.id != recall.id && other.resource == Resource::Data) keep_out(other.range);
  wide.first = std::min(wide.first, recall.range.first);
  wide.end = std::max(wide.end, recall.range.end);
  return wide;
}

void FileAgent::ack_data(const PendingRecall& recall, AgentActions& actions) {
  const Mistakes& mistakes = shared_.options.mistakes;
  const PageRange given = recall.id == 0 ? recall.range : give_around(recall);
  RecallAck ack{.file = id_,
                .recall = recall.id,
                .given = given,
                .seen = seen_,
                .attributes = {},
                .in_use = false,
                .busy = false};
  if (recall.id == 0) {  // after a reset: nobody to tell, and the bytes are on their way
    leases_.reduce(given, LeaseMode::None);
    return;
  }
  if (mistakes.has(Mistake::AckBeforeFlush)) actions.push_back(SendToHome{ack});
  send_dirty(given, true, actions);
  if (recall.to == LeaseMode::None) {
    if (!mistakes.has(Mistake::StaleOverlay)) {
      const uint64_t before = dirty_.bytes();
      dirty_.remove(given);
      set_dirty_bytes(before);
    }
    void_data(given);
  }
  leases_.reduce(given, recall.to);
  if (!mistakes.has(Mistake::AckBeforeFlush)) actions.push_back(SendToHome{std::move(ack)});
}

PageSet FileAgent::purges_wanted(Instant now) {
  PageSet need;
  for (const Request& request : requests_) {
    if (request.kind == Kind::Write && request.active) need.add(request.range);
    if (request.kind == Kind::Truncate && !request.active && flights_.empty() && !may_write())
      need.add(request.range);
    if (request.kind == Kind::Open)
      for (PageRange piece : request.purge.ranges())
        for (PageRange left : not_exclusive(kernel_.resident().intersect(piece)).ranges())
          need.add(left);
  }
  for (const PendingRecall& recall : recalls_) {
    if (recall.resource == Resource::Attributes)
      if (const PageRange behind = behind_end(recall); !kernel_.keep_until(behind, now))
        need.add(behind);
    if (recall.resource == Resource::Data && must_purge(recall) &&
        !kernel_.keep_until(recall.range, now))
      need.add(recall.range);
  }
  return need;
}

// ---- dirty bytes
// ------------------------------------------------------------------------------------------------------------------

void FileAgent::wrote(uint64_t offset, const Bytes& bytes, Timestamp wall, bool extend) {
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
  if (truncations_ > 0 || clean()) return;
  if (!dirty_.has_unsent() && !dirty_attributes_.has_mtime && !dirty_attributes_.has_size) return;
  if (now - dirty_since_ < shared_.options.flush_after_ns) return;
  dirty_since_ = now;
  send_dirty(PageRange::all(), false, actions);
}

void FileAgent::set_dirty_bytes(uint64_t before) {
  shared_.dirty_bytes = shared_.dirty_bytes - before + dirty_.bytes();
}

// ---- small questions
// --------------------------------------------------------------------------------------------------------------

bool FileAgent::may_write() const {
  return mapping_opens_ > 0 && shared_.options.writable_mappings &&
         !shared_.options.mistakes.has(Mistake::ForgetMayWrite);
}

bool FileAgent::recall_pending(Resource resource, PageRange range) const {
  for (const PendingRecall& recall : recalls_)
    if (recall.resource == resource && recall.range.overlaps(range)) return true;
  return false;
}

void FileAgent::known_to_kernel() {
  forgotten_ = false;
  release_at_.reset();
}

PageSet FileAgent::not_exclusive(const PageSet& pages) const {
  PageSet result = pages;
  result.remove(leases_.exclusive());
  return result;
}

// The bytes that waiting requests hold, or have asked for, of these pages say nothing any more.
void FileAgent::void_data(PageRange range) {
  if (shared_.options.mistakes.has(Mistake::KeepVoidFetch) ||
      shared_.options.mistakes.has(Mistake::FillFromRecalled))
    return;
  for (Request& request : requests_) {
    if (!request.range.overlaps(range) ||
        (request.kind != Kind::Fill && request.kind != Kind::Read))
      continue;
    if (request.have_data || request.fetch != 0) ++shared_.statistics.void_fetches;
    request.have_data = false;
    request.fetch = 0;
  }
}

void FileAgent::touch(PageRange range) {
  range.end = std::min(range.end + kTouchedAhead, kPageEnd);
  if (!touched_.empty() && touched_.back().overlaps(range)) {
    touched_.back() = range;
    return;
  }
  touched_.push_back(range);
  if (touched_.size() > kTouchedMax) touched_.pop_front();
}

std::optional<Instant> FileAgent::deadline() const {
  std::optional<Instant> at = wake_;
  // Once it is past, the next event of the file will do it.
  if (forgotten_ && seen_ > 0 && release_at_ && *release_at_ > stepped_at_ &&
      (!at || *release_at_ < *at))
    at = release_at_;
  if ((dirty_.has_unsent() || dirty_attributes_.has_mtime || dirty_attributes_.has_size) &&
      truncations_ == 0 && !shared_.due.contains(id_)) {
    Instant due = dirty_since_ + shared_.options.flush_after_ns;
    if (!at || due < *at) at = due;
  }
  return at;
}

bool FileAgent::done() const {
  return seen_ == 0 && requests_.empty() && recalls_.empty() && opens_ == 0 && truncations_ == 0 &&
         leases_.empty() && attributes_mode_ == LeaseMode::None && entries_ == LeaseMode::None &&
         entries_request_ == 0 && clean() && kernel_.purges_in_flight() == 0 &&
         kernel_.resident().empty();
}

LeaseMode FileAgent::held(Resource resource, uint64_t page) const {
  switch (resource) {
    case Resource::Entries:
      return entries_;
    case Resource::Attributes:
      return attributes_mode_;
    case Resource::Data:
      return leases_.at(page);
  }
  return LeaseMode::None;
}

void FileAgent::add_counts(AgentCounts& counts) const {
  ++counts.files;
  counts.shared_pages += leases_.shared().page_count();
  counts.exclusive_pages += leases_.exclusive().page_count();
  counts.shared_ranges += leases_.shared().range_count();
  counts.exclusive_ranges += leases_.exclusive().range_count();
  counts.resident_pages += kernel_.resident().page_count();
  counts.waiting += requests_.size();
  counts.purges_in_flight += kernel_.purges_in_flight();
  counts.recalls_pending += recalls_.size();
}

void FileAgent::check() const {
  // After a reset the whole file is being given up, and nobody else can have been told that it is
  // free.
  for (const PendingRecall& recall : recalls_)
    if (recall.id == 0) return;
  for (PageRange piece : kernel_.resident().ranges()) {
    // What the kernel may show is leased, or about to be purged for good: a recall is acked only
    // when its pages are absent.
    VR_CHECK_MSG(leases_.covers(piece, LeaseMode::Shared) ||
                     shared_.options.mistakes.has(Mistake::AckBeforePurge) || piece.empty(),
                 "cached pages without a lease");
  }
  VR_CHECK(mapping_opens_ <= opens_);
}

}  // namespace vremote::coherence
