// What the kernel asks for, and what it says to have done. Requests are noted here and carried out
// in step().
#include <algorithm>
#include <cerrno>
#include <utility>

#include "coherence/file_agent.h"

namespace vremote::coherence {

namespace {

constexpr size_t kTouchedMax = 8;       // ranges remembered as in use
constexpr uint64_t kTouchedAhead = 64;  // pages a sequential user will want next

}  // namespace

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
    note_error(EIO);
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

void FileAgent::close(Opening opening, uint64_t handle, AgentActions& actions) {
  VR_CHECK(opens_ > 0 && (!opening.may_map || mapping_opens_ > 0) &&
           (!opening.reads || reading_opens_ > 0));
  --opens_;
  if (gone_opens_ > 0) --gone_opens_;  // whose closes come at once
  if (opens_ == 0) turn_.reset();
  errors_.closed(handle, opens_ > 0);
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

void FileAgent::flush(Token token, AgentActions& actions, Opener who, uint64_t asked) {
  asked = std::min(asked, shared_.syncs++);
  send_dirty(PageRange::all(), true, actions);
  tell_time();
  Request request;
  request.kind = Kind::Flush;
  request.token = token;
  request.flush_upto = shared_.next_id;
  request.who = who;
  request.asked = asked;
  requests_.push_back(std::move(request));
}

void FileAgent::interrupt(Token token, int error, AgentActions& actions) {
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
    actions.push_back(ReplyError{token, error});
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
  told_size_.reset();
  sure_size_.reset();
  unproved_.reset();
  written_end_ = 0;
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

void FileAgent::names_ended(uint64_t ending) {
  if (ending != ending_) return;
  ending_ = 0;
  kernel_has_names_ = false;
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

}  // namespace vremote::coherence
