// Truncations of this node: what they cut here, those that come too late (K8, T3), and what was
// stored behind the old end (K20).
#include <algorithm>
#include <cerrno>
#include <utility>

#include "coherence/file_agent.h"

namespace vremote::coherence {

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

bool FileAgent::advance_truncate(Request& request, AgentActions& actions) {
  if (request.active) return false;  // sent; truncate_done() ends it
  // A flush under way could land behind the truncation and bring cut bytes back.
  if (!flights_.empty()) return false;
  for (const Request& other : requests_)
    if (other.kind == Kind::Truncate && other.active) return false;
  // With a writable mapping the kernel holds its write-backs until the truncation is answered: a
  // purge could not end (K8). The kernel itself drops those pages right after our answer.
  if (!may_write() && kernel_.resident().overlaps(request.range)) return false;
  request.active = some_active_ = true;
  actions.push_back(ReplyTruncateReady{request.token});
  return false;
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

void FileAgent::truncation_goes_on() {
  ++going_on_;
  ++shared_.statistics.truncations_ended;
  for (const Request& request : requests_)
    if (request.kind == Kind::Truncate && request.active)
      going_on_to_ = std::min(going_on_to_, request.size);
}

// Where those of this node that are under way leave the end of the file. The home may have done
// them, unless the Attributes are here, which it takes first.
uint64_t FileAgent::cut_on_the_way() const {
  if (attributes_mode_ != LeaseMode::None || shared_.options.mistakes.has(Mistake::UndoTruncations))
    return UINT64_MAX;
  uint64_t size = going_on_to_;
  for (const Request& request : requests_)
    if (request.kind == Kind::Truncate && request.active) size = std::min(size, request.size);
  return size;
}

// As if another node had done it: the kernel has been told that it failed.
void FileAgent::truncation_ended(Instant now, bool done, uint64_t size, AgentActions& actions) {
  VR_CHECK(going_on_ > 0);
  if (--going_on_ == 0) going_on_to_ = UINT64_MAX;
  zeroing_ = {};
  if (!done) return;
  drop_attributes(actions);
  cut_untold_ = true;
  is_cut(size);
  // Or longer: mappings here would go on to end where the file did.
  if (reading_opens_ > 0 && !kernel_knows(now, size) && !tail_may_show() && !setattr_under_way(now))
    (void)push_size(now, size, true, actions);
}

void FileAgent::is_cut(uint64_t size) {
  const uint64_t before = dirty_.bytes();
  dirty_.truncate(size);
  set_dirty_bytes(before);
  size_floor_ = std::min(size_floor_, size);
  floor_before_ = std::min(floor_before_, size);
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

// T3: the kernel holds its dirty pages back, and shows them, until a truncation is answered. When
// the leases are over it must be, whatever becomes of it. What is clean goes in a moment.
bool FileAgent::end_late_truncations(Instant now, AgentActions& actions) {
  const bool must_go = (shared_.suspended || (is_giving_up_all() && !claim_held_)) &&
                       (shared_.over || fenced_) && may_write() && !kernel_.resident().empty() &&
                       !shared_.options.mistakes.has(Mistake::TruncateAfterExpiry);
  if (!must_go) {
    held_back_since_.reset();
    return false;
  }
  if (!held_back_since_) held_back_since_ = now;
  const Instant due = *held_back_since_ + shared_.options.busy_after_ns;
  if (now < due) {
    wake_at(due);
    return false;
  }
  const bool any = std::erase_if(requests_, [&](const Request& request) {
                     if (request.kind != Kind::Truncate || request.active) return false;
                     actions.push_back(ReplyError{request.token, EIO});
                     ++shared_.statistics.truncations_ended;
                     --truncations_;
                     return true;
                   }) > 0;
  if (truncations_ > 0) {
    // It may be on its way between the driver's hands: once more, later.
    actions.push_back(EndTruncation{id_});
    held_back_since_ = now;
    wake_at(now + shared_.options.busy_after_ns);
  }
  return any;
}

// What a mapping has stored behind the end of the file, in the page that has it, is nothing, and
// must not become bytes of the file when a write makes that longer. The kernel cuts what it writes
// back at the size it has: so that page goes first.
PageRange FileAgent::tail_shown_by(uint64_t end_of_write) const {
  if (end_of_write <= attributes_.size || !may_write() || attributes_.size % kPageSize == 0)
    return {};
  return PageRange::of_bytes(attributes_.size, 1);
}

// The same behind a truncation of ours, beside which no purge can end (K8): its page is overwritten
// with zeroes before the kernel hears of the new size. It is ours alone until then. A purge of it
// that is stuck holds its lock, and would hold that up.
bool FileAgent::tail_is_shown(uint64_t before, uint64_t size) {
  if (size <= before || before % kPageSize == 0 || !may_write() ||
      shared_.options.mistakes.has(Mistake::ShowTails))
    return false;
  const PageRange page = PageRange::of_bytes(before, 1);
  if (!kernel_.resident().overlaps(page)) return false;
  if (kernel_.is_purging(page)) {
    // One that began before the truncation came: what it writes back is cut here, as the kernel
    // would have cut it.
    tail_ = {before, std::min(size, (page.first + 1) << kPageShift)};
    return false;
  }
  zeroing_ = page;
  return true;
}

}  // namespace vremote::coherence
