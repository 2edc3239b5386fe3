#include "coherence/file_agent.h"

#include <algorithm>
#include <cerrno>
#include <utility>

namespace vremote::coherence {
namespace {

constexpr size_t kTouchedMax = 8;       // ranges remembered as in use
constexpr uint64_t kTouchedAhead = 64;  // pages a sequential user will want next

}  // namespace

FileAgent::FileAgent(FileId id, AgentShared& shared)
    : id_(id),
      shared_(shared),
      kernel_(shared.options.mistakes),
      kernel_size_(shared.options.settle_ns, shared.options.moment_ns) {}

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
  // The kernel lets no other write of the file begin before the one in pieces has ended.
  const bool goes_on = event.append && continues(event.handle, event.offset);
  if (!goes_on) turn_.reset();
  inode_lock_is_held(goes_on);
  ++shared_.statistics.direct_writes;
  Request request;
  request.kind = Kind::Write;
  request.token = event.token;
  request.offset = event.offset;
  request.size = event.bytes.size();
  request.range = PageRange::of_bytes(event.offset, event.bytes.size());
  request.bytes = std::move(event.bytes);
  request.append = event.append;
  request.handle = event.handle;
  request.kernel_end = event.offset + request.size;
  request.wall = event.now_wall;
  requests_.push_back(std::move(request));
}

void FileAgent::write_back(Instant now, uint64_t offset, const Bytes& bytes, Timestamp now_wall,
                           AgentActions& actions) {
  changed_ = now;
  ++shared_.statistics.write_backs;
  if (!cut_off_.empty() && offset + bytes.size() > cut_at_) {
    if (offset >= cut_at_) return;
    write_back(now, offset, bytes.part(0, cut_at_ - offset), now_wall, actions);
    return;
  }
  if (tail_.end != 0 && offset < tail_.end && offset + bytes.size() > tail_.from) {
    std::vector<std::byte> cut(bytes.view().begin(), bytes.view().end());
    const uint64_t from = std::max(offset, tail_.from) - offset;
    const uint64_t end = std::min(offset + bytes.size(), tail_.end) - offset;
    std::fill(cut.begin() + static_cast<ptrdiff_t>(from), cut.begin() + static_cast<ptrdiff_t>(end),
              std::byte{0});
    const Tail tail = std::exchange(tail_, {});
    write_back(now, offset, Bytes::copy_of(cut), now_wall, actions);
    tail_ = tail;
    return;
  }
  if (fenced_) {
    shared_.statistics.rescued_bytes += bytes.size();
    write_error_ = EIO;
    actions.push_back(Rescue{id_, {{offset, bytes}}, {.has_mtime = true, .mtime = now_wall}});
    return;
  }
  // One that the daemon before had read, and not answered, is under the lease that it had.
  if (!leases_.covers(PageRange::of_bytes(offset, bytes.size()), LeaseMode::Exclusive) &&
      !is_giving_up_all() && !taking_over_)
    ++shared_.statistics.write_backs_without_exclusive;
  if (dirty_.empty()) dirty_since_ = now;
  // Its size was in the kernel's view already: a write-back never extends the file.
  wrote(offset, bytes, now_wall, false);
  untold_time_ = untold_time_ || !covers(attributes_mode_, LeaseMode::Update);
}

void FileAgent::open(Token token, Opening opening) {
  known_to_kernel();
  ++opens_;
  told_in_use_ = told_in_use_ || opening.told;
  if (opening.reads) ++reading_opens_;
  Request request;
  request.kind = Kind::Open;
  request.token = token;
  request.opening = opening;
  if (opening.may_map) {
    ++mapping_opens_;
    if (may_write()) request.purge = not_exclusive(kernel_.resident());
  }
  requests_.push_back(std::move(request));
}

void FileAgent::close(Opening opening, AgentActions& actions) {
  VR_CHECK(opens_ > 0 && (!opening.may_map || mapping_opens_ > 0) &&
           (!opening.reads || reading_opens_ > 0));
  --opens_;
  if (gone_opens_ > 0) --gone_opens_;  // whose closes come at once
  if (opens_ == 0) turn_.reset();
  if (opening.may_map) --mapping_opens_;
  if (opening.reads) --reading_opens_;
  if (opens_ == 0 && told_in_use_) {
    told_in_use_ = false;
    actions.push_back(SendToHome{Release{.file = id_, .seen = seen_, .leases = false}});
  }
}

void FileAgent::attributes(Instant now, Token token) {
  known_to_kernel();
  Request request;
  request.arrived = now;
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
  tell_time();
  Request request;
  request.kind = Kind::Flush;
  request.token = token;
  request.flush_upto = shared_.next_id;
  requests_.push_back(std::move(request));
}

void FileAgent::truncate(Token token, uint64_t size) {
  known_to_kernel();
  inode_lock_is_held();
  ++truncations_;
  turn_.reset();
  Request request;
  request.kind = Kind::Truncate;
  request.token = token;
  request.size = size;
  request.range = PageRange{size >> kPageShift, kPageEnd};
  requests_.push_back(std::move(request));
}

void FileAgent::truncate_done(Instant now, bool done, uint64_t size, bool under_lock,
                              AgentActions& actions) {
  VR_CHECK(truncations_ > 0);
  --truncations_;
  std::erase_if(requests_, [&](const Request& r) { return r.kind == Kind::Truncate && r.active; });
  // While its caller has an error and it goes on, the page is still being overwritten.
  if (going_on_ == 0) zeroing_ = {};
  if (!done) return;
  if (const auto settle = kernel_size_.truncated(now, size, under_lock, &shared_.next_id)) {
    ++shared_.statistics.size_settles;
    actions.push_back(SettleSize{settle->id, id_, size, true, under_lock});
  }
  is_cut(size);
}

// As if another node had done it: the kernel has been told that it failed.
void FileAgent::truncation_ended(bool done, uint64_t size, AgentActions& actions) {
  VR_CHECK(going_on_ > 0);
  --going_on_;
  zeroing_ = {};
  if (!done) return;
  drop_attributes(actions);
  cut_untold_ = true;
  is_cut(size);
}

void FileAgent::is_cut(uint64_t size) {
  const uint64_t before = dirty_.bytes();
  dirty_.truncate(size);
  set_dirty_bytes(before);
  size_floor_ = std::min(size_floor_, size);
  told_at_most(size);
  if (dirty_attributes_.has_size) dirty_attributes_.has_size = false;
  if (attributes_mode_ != LeaseMode::None) attributes_.size = size;
  void_data({size >> kPageShift, kPageEnd});
  if (cut_off_.empty() || !cut_untold_) {
    cut_off_ = {};
    cut_at_ = size;
  }
  cut_at_ = std::min(cut_at_, size);
  for (PageRange shown : kernel_.resident().intersect({size >> kPageShift, kPageEnd}).ranges())
    cut_off_.add(shown);
}

void FileAgent::interrupt(Token token, AgentActions& actions) {
  for (auto it = requests_.begin(); it != requests_.end(); ++it) {
    if (it->token != token) continue;
    if (it->kind == Kind::Time) continue;
    if (it->grown != 0) {
      // It is done. Whoever is killed does not return from it and tells nobody.
      answer_write(*it, actions);
      requests_.erase(it);
      return;
    }
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
  kernel_has_attributes_ = false;
  kernel_has_names_ = false;
  kernel_size_.forgotten();
  told_access_.reset();
  access_settle_.reset();
}

void FileAgent::purge_returned(Instant now, PurgeId purge) {
  changed_ = now;
  kernel_.purge_returned(purge);
}

void FileAgent::size_pushed(uint64_t push, bool there) {
  if (awaited_push_ended(push, there)) return;
  for (Request& request : requests_) {
    if (request.push != push) continue;
    request.push = 0;
    request.pushed = true;
    // Nothing smaller was told since: what was pushed is there.
    if (there && told_size_ && request.push_size > 0) {
      told_size_ = std::max(*told_size_, request.push_size);
      proved(request.push_size);
    }
  }
}

void FileAgent::granted(Instant now, Grant message, AgentActions&) {
  // Counts at the home whether it worked or not; a refusal at its door has no number.
  if (message.sequence != 0) seen_ = message.sequence;
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
        leases_.raise(message.range, message.mode);
        size_floor_ = message.size_floor;
      }
      for (Request& request : requests_) {
        if (request.data_request == 0 || request.data_request != message.request) continue;
        request.data_request = 0;
        if (message.error == EAGAIN) {  // bounced (K8): somebody needs our Attributes first
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
  recalls_.push_back({message.recall, message.resource, message.to, message.range});
}

void FileAgent::flush_acked(const FlushAck& message, AgentActions& actions) {
  auto flight = flights_.find(message.flush);
  if (flight == flights_.end()) return;  // from before a reset
  shared_.flush_bytes_in_flight -= flight->second.bytes;
  if (message.error == 0) attributes_.blocks = message.blocks;
  flights_.erase(flight);
  if (message.error != 0) write_error_ = message.error;
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

void FileAgent::reset(Instant now, Agent::Dirty dirty, AgentActions& actions) {
  stepped_at_ = now;
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

void FileAgent::step(Instant now, AgentActions& actions) {
  stepped_at_ = now;
  keep_resident(cut_off_);
  if (cut_off_.empty()) cut_untold_ = false;
  if (tail_.end != 0 && !kernel_.resident().overlaps(tail_.page())) tail_ = {};
  some_active_ =
      std::any_of(requests_.begin(), requests_.end(), [](const Request& r) { return r.active; });
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
    if (truncations_ > 0 && end_late_truncations(now, actions)) moved = true;
    for (auto it = recalls_.begin(); it != recalls_.end();) {
      if (advance_recall(now, *it, actions)) {
        it = recalls_.erase(it);
        moved = true;
      } else {
        tell_busy(now, *it, actions);
        ++it;
      }
    }
    for (auto it = shows_.begin(); it != shows_.end();)
      it = advance_show(now, *it, actions) ? shows_.erase(it) : std::next(it);
    if (!size_pushes_.empty() && look_after_pushes(now, actions)) moved = true;
  }
  for (const KernelCache::Purge& purge :
       kernel_.start_purges(purges_wanted(now), &shared_.next_purge)) {
    ++shared_.statistics.purges;
    inode_changes(now);
    actions.push_back(StartPurge{purge.id, id_, purge.range});
  }
  if (forgotten_ && seen_ > 0 && release_at_ && *release_at_ <= now && requests_.empty() &&
      recalls_.empty() && entries_request_ == 0 && opens_ == 0 && truncations_ == 0 &&
      going_on_ == 0 && kernel_.purges_in_flight() == 0) {
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
  if (request.grown != 0) return advance_growth(now, request, actions);
  // What was begun goes on when the leases are good again: nobody else has been granted anything of
  // it, or the session is void and it begins anew.
  if (shared_.suspended && request.error == 0) {
    if (request.kind == Kind::Flush && flights_.empty() && !shared_.failing) {
      actions.push_back(ReplyFlushed{request.token, std::exchange(write_error_, 0)});
      return true;
    }
    if (!shared_.failing || (request.kind == Kind::Truncate && request.active)) return false;
    request.error = EIO;
  }
  if (request.error != 0) {
    if (request.kind == Kind::Fill) kernel_.fill_failed(request.fill);
    if (request.kind == Kind::Truncate) --truncations_;
    if (request.token != 0) actions.push_back(ReplyError{request.token, request.error});
    return true;
  }
  // K16: nobody here sees the file after a truncation while a mapping may still show what was
  // before.
  const bool looks = request.kind == Kind::Fill || request.kind == Kind::Read ||
                     request.kind == Kind::Write || request.kind == Kind::Attributes;
  if (looks && !request.active && !cut_off_.empty()) return false;
  if ((looks || request.kind == Kind::Truncate) && !request.active && going_on_ > 0) return false;
  // K20: whoever is not told of the new size cannot have stored behind the old one. A fill must not
  // hold up what overwrites the page, nor a purge.
  const auto holds_up = [&](PageRange range) {
    return range.overlaps(zeroing_) || range.overlaps(tail_.page()) || kernel_.is_purging(range);
  };
  if (looks && !request.active && tail_may_show() &&
      (request.kind != Kind::Fill || !holds_up(request.range)))
    return false;
  switch (request.kind) {
    case Kind::Fill:
    case Kind::Read:
      return advance_read(now, request, actions);
    case Kind::Write:
      return advance_write(now, request, actions);
    case Kind::Attributes:
      return advance_attributes(now, request, actions);
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
      return advance_open(now, request, actions);
    case Kind::Time:
      if (untold_time_ && !need_attributes(request, LeaseMode::Update, actions)) return false;
      untold_time_ = false;
      return true;
    case Kind::Flush: {
      for (const Request& other : requests_)
        if (other.kind == Kind::Time) return false;
      if (!flights_.empty() && flights_.begin()->first < request.flush_upto) return false;
      actions.push_back(ReplyFlushed{request.token, std::exchange(write_error_, 0)});
      return true;
    }
    case Kind::Truncate:
      return advance_truncate(request, actions);
  }
  return false;
}

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

void FileAgent::keep_resident(PageSet& pages) const {
  PageSet left;
  for (PageRange piece : pages.ranges())
    for (PageRange still : kernel_.resident().intersect(piece).ranges()) left.add(still);
  pages = std::move(left);
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

void FileAgent::names_ended(uint64_t ending) {
  if (ending != ending_) return;
  ending_ = 0;
  kernel_has_names_ = false;
}

void FileAgent::drop_attributes(AgentActions& actions) {
  if (!std::exchange(kernel_has_attributes_, false)) return;
  changed_ = stepped_at_;
  inode_changes(stepped_at_);
  if (!shared_.options.mistakes.has(Mistake::KeepAttributes))
    actions.push_back(DropAttributes{id_});
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
  if (waits_to_flush() && truncations_ == 0 && !shared_.due.contains(id_)) {
    Instant due = dirty_since_ + shared_.options.flush_after_ns;
    if (!at || due < *at) at = due;
  }
  return at;
}

bool FileAgent::done() const {
  return seen_ == 0 && requests_.empty() && recalls_.empty() && opens_ == 0 && truncations_ == 0 &&
         going_on_ == 0 && leases_.empty() && attributes_mode_ == LeaseMode::None &&
         entries_ == LeaseMode::None && entries_request_ == 0 && clean() && shows_.empty() &&
         size_pushes_.empty() && kernel_.purges_in_flight() == 0 && kernel_.resident().empty() &&
         (kernel_size_.nothing_told() || shared_.options.settle_ns == 0);
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
  if (taking_over_ || is_giving_up_all()) return;
  for (PageRange piece : kernel_.resident().ranges()) {
    // What the kernel may show is leased, or about to be purged for good: a recall is acked only
    // when its pages are absent.
    VR_CHECK_MSG(leases_.covers(piece, LeaseMode::Shared) ||
                     shared_.options.mistakes.has(Mistake::AckBeforePurge) || piece.empty(),
                 "cached pages without a lease");
  }
  VR_CHECK(mapping_opens_ <= reading_opens_ && reading_opens_ <= opens_);
}

}  // namespace vremote::coherence
