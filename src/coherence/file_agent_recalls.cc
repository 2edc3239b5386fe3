// Recalls: when they may be acked, what is given, which purges they and others want.
#include <algorithm>

#include "coherence/file_agent.h"

namespace vremote::coherence {

bool FileAgent::advance_recall(Instant now, const PendingRecall& recall, AgentActions& actions) {
  switch (recall.resource) {
    case Resource::Entries:
      if (recall.to == LeaseMode::None && kernel_has_names_ &&
          !shared_.options.mistakes.has(Mistake::KeepNames)) {
        if (ending_ == 0) {
          ending_ = shared_.next_id++;
          actions.push_back(EntriesLost{id_});
          actions.push_back(EndNames{ending_, id_, false});
        }
        return false;
      }
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
        // What is announced waits for nothing that we hold.
        if (truncations_ == 0 || request.active || request.grown != 0) return false;
        request.pinned = false;
      }
      // K15: the rest of an append is about to come.
      if (turn_ && now < turn_->until) {
        wake_at(turn_->until);
        return false;
      }
      if (!cut_off_.empty() || tail_may_show()) return false;
      if (recall.to == LeaseMode::None) {
        if (const auto until = kernel_size_.cutting_until(now)) {  // Z3
          wake_at(*until);
          return false;
        }
      }
      // K16: another node may make the file longer. The page with the end in it must not keep what
      // lies behind it.
      if (const PageRange behind = behind_end(recall); kernel_.resident().overlaps(behind)) {
        if (auto until = kernel_.keep_until(behind, now)) wake_at(*until);
        return false;
      }
      // Whoever looks at the attributes next also sees how many blocks the file has, and one with
      // bytes but without blocks is a file without data to some (tar -S). Writers that take turns
      // need not wait for that. As much as has room: what is more has had some blocks before.
      if (dirty_.has_unsent() && truncations_ == 0 &&
          (recall.to == LeaseMode::Shared || attributes_.blocks == 0))
        send_dirty(PageRange::all(), false, actions);
      untold_time_ = false;
      send_dirty_attributes(actions);
      RecallAck ack{.file = id_,
                    .recall = recall.id,
                    .given = recall.range,
                    .seen = seen_,
                    .attributes = {},
                    .in_use = opens_ > 0,
                    .watches = reading_opens_ > 0,
                    .busy = false};
      // Of what has no name that may come too late: whoever opens it asks (may_be_gone).
      told_in_use_ = opens_ > 0 && (told_in_use_ || !has_no_name());
      if (!covers(recall.to, LeaseMode::Shared)) drop_attributes(actions);
      turn_.reset();
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
          wake_at(*until);
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
    wake_at(due);
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

// R6: the home serves nobody before it has what the kernel holds back, and our truncation is among
// those that wait. So it hears whose these pages are, and serves it.
void FileAgent::claim_held_back(AgentActions& actions) {
  // What was written back since the reset. A truncation that waits at the home does so behind this.
  if (!shared_.suspended) {
    send_dirty(PageRange::all(), true, actions);
    send_dirty_attributes(actions);
  }
  if (!is_giving_up_all() || truncations_ == 0 || claim_held_ || claim_ != 0 || !may_write() ||
      shared_.options.mistakes.has(Mistake::ReclaimBehindTruncation))
    return;
  PageSet others = kernel_.resident();
  others.remove(kept_pages_);
  if (!others.empty()) return;  // those are clean, and go
  std::vector<PageRange> pages;
  for (PageRange range : kernel_.resident().ranges()) pages.push_back(range);
  if (pages.empty() || pages.size() > kReclaimedRangesMax) return;
  claim_ = shared_.next_id++;
  actions.push_back(ClaimPages{claim_, id_, std::move(pages)});
}

void FileAgent::claimed(uint64_t claim, bool held) {
  if (claim != claim_) return;
  claim_ = 0;
  claim_held_ = held && is_giving_up_all();
  if (claim_held_) shared_.statistics.pages_claimed += kernel_.resident().page_count();
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
    fenced_ = false;
    kept_pages_.clear();
    claim_held_ = false;
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
  PageSet need = cut_off_;
  if (shared_.suspended)
    for (PageRange piece : kernel_.resident().ranges()) need.add(piece);
  // The purge that was under way may have passed it by, for a fill that was answered since.
  if (truncations_ == 0) need.add(tail_.page());
  for (const Request& request : requests_) {
    if (request.kind == Kind::Write && request.active) {
      need.add(request.range);
      need.add(guessed_behind(request));
      need.add(tail_shown_by(request.offset + request.size));
    }
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
  need.remove(zeroing_);
  return need;
}

}  // namespace vremote::coherence
