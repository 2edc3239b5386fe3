#include "coherence/file_agent.h"

#include <algorithm>
#include <cerrno>
#include <utility>

namespace vremote::coherence {

FileAgent::FileAgent(FileId id, AgentShared& shared)
    : id_(id),
      shared_(shared),
      kernel_(shared.options.mistakes),
      kernel_size_(shared.options.settle_ns, shared.options.moment_ns) {}

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
    if (request.kind == Kind::Flush &&
        ((flights_.empty() && !shared_.failing) ||
         (shared_.failing && shared_.options.mistakes.has(Mistake::SyncWithoutPatience)))) {
      answer_flush(request, actions);
      return true;
    }
    // What is our own nobody waits for, and what the home does is ended by the driver.
    if (!shared_.failing || request.token == 0 ||
        (request.kind == Kind::Truncate && request.active))
      return false;
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
  // K20: whoever is not told of the new size cannot have stored behind the old one.
  if (looks && !request.active && tail_may_show() && !holds_up_tail(request)) return false;
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
      answer_flush(request, actions);
      return true;
    }
    case Kind::Truncate:
      return advance_truncate(request, actions);
  }
  return false;
}

void FileAgent::answer_flush(const Request& request, AgentActions& actions) {
  actions.push_back(ReplyFlushed{request.token, errors_.tell(request.who, request.asked)});
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

void FileAgent::drop_attributes(AgentActions& actions) {
  if (!std::exchange(kernel_has_attributes_, false)) return;
  changed_ = stepped_at_;
  inode_changes(stepped_at_);
  if (!shared_.options.mistakes.has(Mistake::KeepAttributes))
    actions.push_back(DropAttributes{id_});
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
         (kernel_size_.nothing_told() || shared_.options.settle_ns == 0) &&
         // What an fsync has to tell is kept as long as the kernel knows the file.
         (forgotten_ || (errors_.empty() && unsynced_ == 0));
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
