// A file goes from one daemon of this node to the next, under live mounts.
//
// Requests are not in what is kept: the kernel delivers again what was not answered. So nothing may
// be half done that would be done twice. Leases are not in it either; the home may go on counting
// them, since whoever wants them is acked as soon as the kernel shows nothing of before. What the
// kernel has is not looked up: it may have all, until it was purged.
#include "coherence/file_agent.h"

namespace vremote::coherence {

bool FileAgent::can_be_handed_over() const {
  if (!clean() || turn_ || going_on_ > 0) return false;
  for (const Request& request : requests_)
    if (request.grown != 0) return false;
  return true;
}

KeptFile FileAgent::kept() const {
  KeptFile out{.file = id_,
               .opens = opens_,
               .reading_opens = reading_opens_,
               .mapping_opens = mapping_opens_,
               .seen = seen_,
               .told_in_use = told_in_use_,
               .known_to_kernel = !forgotten_,
               .untold_time = untold_time_,
               .errors = errors_.kept(),
               .unsynced = unsynced_ != 0,
               .unsynced_since = unsynced_,
               .kernel_size_most = kernel_size_.at_most(),
               .told_access = told_access_,
               .recalls = {},
               .shows = {}};
  // These handles are counted again when their OPENs come again.
  for (const Request& request : requests_) {
    if (request.kind != Kind::Open || request.token == 0) continue;
    --out.opens;
    if (request.opening.reads) --out.reading_opens;
    if (request.opening.may_map) --out.mapping_opens;
  }
  for (const PendingRecall& recall : recalls_)
    if (recall.id != 0)
      out.recalls.push_back({id_, recall.id, recall.resource, recall.to, recall.range});
  for (const Show& show : shows_) out.shows.push_back({id_, show.show, show.size});
  return out;
}

void FileAgent::take_over(const KeptFile& kept) {
  opens_ = kept.opens;
  reading_opens_ = kept.reading_opens;
  mapping_opens_ = kept.mapping_opens;
  seen_ = kept.seen;
  told_in_use_ = kept.told_in_use;
  forgotten_ = !kept.known_to_kernel;
  untold_time_ = kept.untold_time;
  errors_.take_over(kept.errors);
  if (kept.unsynced) {
    not_synced();
    if (kept.unsynced_since != 0) unsynced_ = std::min(unsynced_, kept.unsynced_since);
  }
  if (kept.kernel_size_most > 0) kernel_size_.told(kept.kernel_size_most);
  told_access_ = kept.told_access;
  // Any size that is there is at least this: so the first answer pushes the true one.
  told_size_ = 0;
  if (kept.known_to_kernel) kernel_.may_have_all();
  taking_over_ = true;
}

void FileAgent::took_over(Instant now, bool same_session, AgentActions& actions) {
  stepped_at_ = now;
  taking_over_ = false;
  // What of it was not ours nobody has changed before this home gives it away.
  if (may_write()) kept_pages_ = kernel_.resident();
  if (forgotten_) release_at_ = now;
  if (!same_session) {
    reset(now, Agent::Dirty::Kept, actions);
    return;
  }
  // As after a reset: it is unleased, and nobody waits to hear of it.
  if (!kernel_.resident().empty())
    recalls_.push_back({0, Resource::Data, LeaseMode::None, PageRange::all()});
}

}  // namespace vremote::coherence
