#include "coherence/agent.h"

#include <utility>

#include "coherence/file_agent.h"

namespace vremote::coherence {

Agent::Agent(const AgentOptions& options) : shared_(std::make_unique<AgentShared>()) {
  shared_->options = options;
  if (!options.lease_at_start) {
    shared_->lease_until = Instant{};
    shared_->suspended = true;
  }
}
Agent::~Agent() = default;

FileAgent& Agent::file(FileId id) {
  auto& slot = files_[id];
  if (!slot) slot = std::make_unique<FileAgent>(id, *shared_);
  return *slot;
}

FileAgent* Agent::find(FileId id) const {
  auto it = files_.find(id);
  return it == files_.end() ? nullptr : it->second.get();
}

void Agent::settle(Instant now, FileAgent& file, AgentActions& actions) {
  settle_alone(now, file, actions);
  share_room(now, actions);
}

void Agent::settle_alone(Instant now, FileAgent& file, AgentActions& actions) {
  file.step(now, actions);
  set_deadline(file.id(), file.deadline());
  if (!offered_.empty() && (file.is_known_to_kernel() || file.done())) offered_.erase(file.id());
  if (file.done()) {
    set_deadline(file.id(), std::nullopt);
    shared_->due.erase(file.id());
    files_.erase(file.id());
  }
}

template <typename Event>
void Agent::if_known(Instant now, FileId id, AgentActions& actions, Event event) {
  FileAgent* f = find(id);
  if (f == nullptr) return;
  event(*f);
  settle(now, *f, actions);
}

void Agent::set_deadline(FileId id, std::optional<Instant> at) {
  auto known = deadline_of_.find(id);
  if (known != deadline_of_.end()) {
    if (at == known->second) return;
    deadlines_.erase({known->second, id});
    if (!at) {
      deadline_of_.erase(known);
      return;
    }
    known->second = *at;
  } else {
    if (!at) return;
    deadline_of_.emplace(id, *at);
  }
  deadlines_.insert({*at, id});
}

void Agent::read(Instant now, const ReadEvent& event, AgentActions& actions) {
  look_at_time(now, actions);
  FileAgent& f = file(event.file);
  f.read(now, event);
  settle(now, f, actions);
}

void Agent::write(Instant now, WriteEvent event, AgentActions& actions) {
  look_at_time(now, actions);
  FileAgent& f = file(event.file);
  f.write(std::move(event));
  settle(now, f, actions);
}

std::optional<Agent::WrittenNow> Agent::write_now(Instant now, const WriteNowEvent& event) {
  if (!leases_good(now)) return std::nullopt;
  FileAgent* f = find(event.file);
  if (f == nullptr) return std::nullopt;
  // Behind bytes that wait to be flushed there is no earlier deadline than theirs.
  const bool waiting = f->waits_to_flush();
  const std::optional<uint64_t> offset = f->write_now(now, event);
  if (!offset) return std::nullopt;
  if (!waiting) set_deadline(event.file, f->deadline());
  return WrittenNow{*offset, !waiting};
}

void Agent::write_back(Instant now, FileId id, uint64_t offset, Bytes bytes, Timestamp now_wall,
                       AgentActions& actions) {
  look_at_time(now, actions);
  FileAgent& f = file(id);
  f.write_back(now, offset, bytes, now_wall, actions);
  f.drop_attributes(actions);  // its time stamp is new, and the kernel has not seen to it
  settle(now, f, actions);
}

void Agent::open(Instant now, Token token, FileId id, Opening opening, AgentActions& actions) {
  look_at_time(now, actions);
  FileAgent& f = file(id);
  f.open(token, opening);
  settle(now, f, actions);
}

void Agent::close(Instant now, FileId id, Opening opening, AgentActions& actions, uint64_t handle) {
  look_at_time(now, actions);
  FileAgent& f = file(id);
  f.close(opening, handle, actions);
  settle(now, f, actions);
}

void Agent::directory_closed(FileId dir, uint64_t handle) {
  if (FileAgent* f = find(dir)) f->directory_closed(handle);
}

void Agent::attributes(Instant now, Token token, FileId id, bool own, AgentActions& actions) {
  look_at_time(now, actions);
  FileAgent& f = file(id);
  if (own) {
    f.own_attributes(token, actions);
  } else {
    f.attributes(now, token);
  }
  settle(now, f, actions);
}

void Agent::entries(Instant now, Token token, FileId dir, AgentActions& actions) {
  look_at_time(now, actions);
  FileAgent& f = file(dir);
  f.entries(token);
  settle(now, f, actions);
}

bool Agent::has_entries(FileId dir) const {
  const FileAgent* f = find(dir);
  return f != nullptr && f->has_entries();
}

bool Agent::may_give_names(FileId dir) const {
  const FileAgent* f = find(dir);
  return f != nullptr && f->may_give_names();
}

void Agent::names_given(FileId dir) {
  if (FileAgent* f = find(dir)) f->names_given();
}

bool Agent::may_be_mapped(FileId id) const {
  const FileAgent* f = find(id);
  return f != nullptr && f->may_be_mapped();
}

std::optional<uint32_t> Agent::peek_mode(FileId id) const {
  const FileAgent* f = find(id);
  return f == nullptr ? std::nullopt : f->peek_mode();
}

bool Agent::has_no_xattrs(FileId id) {
  FileAgent* f = find(id);
  if (f == nullptr || !f->has_no_xattrs()) return false;
  f->attributes_given();
  return true;
}

void Agent::flush(Instant now, Token token, FileId id, AgentActions& actions, Opener who,
                  uint64_t asked) {
  look_at_time(now, actions);
  FileAgent& f = file(id);
  f.flush(token, actions, who, asked);
  settle(now, f, actions);
}

uint64_t Agent::sync_begins() const { return shared_->syncs++; }

int32_t Agent::synced(FileId id, uint64_t begun, int32_t error, uint64_t asked, Opener who,
                      bool by_disk) {
  FileAgent* f = find(id);
  return f == nullptr ? error : f->synced(begun, error, asked, who, by_disk);
}

void Agent::changed_at_home(FileId id, bool known) {
  if (known) file(id).changed_at_home();
}

void Agent::truncate(Instant now, Token token, FileId id, uint64_t size, AgentActions& actions) {
  look_at_time(now, actions);
  FileAgent& f = file(id);
  f.truncate(token, size);
  settle(now, f, actions);
}

void Agent::truncate_done(Instant now, FileId id, bool done, uint64_t size, bool under_lock,
                          AgentActions& actions) {
  look_at_time(now, actions);
  FileAgent& f = file(id);
  f.truncate_done(now, done, size, under_lock, actions);
  settle(now, f, actions);
}

bool Agent::tail_is_shown(Instant now, FileId id, uint64_t before, uint64_t size,
                          AgentActions& actions) {
  look_at_time(now, actions);
  FileAgent& f = file(id);
  const bool shown = f.tail_is_shown(before, size);
  settle(now, f, actions);
  return shown;
}

void Agent::truncation_goes_on(Instant now, FileId id, AgentActions& actions) {
  look_at_time(now, actions);
  FileAgent& f = file(id);
  f.truncation_goes_on();
  settle(now, f, actions);
}

void Agent::truncation_ended(Instant now, FileId id, bool done, uint64_t size,
                             AgentActions& actions) {
  look_at_time(now, actions);
  FileAgent& f = file(id);
  f.truncation_ended(now, done, size, actions);
  settle(now, f, actions);
}

void Agent::size_told(Instant now, FileId id, uint64_t size, AgentActions& actions) {
  if_known(now, id, actions, [&](FileAgent& f) { f.size_told(now, size, actions); });
}

void Agent::interrupt(Instant now, Token token, FileId id, AgentActions& actions, int error) {
  look_at_time(now, actions);
  if_known(now, id, actions, [&](FileAgent& f) { f.interrupt(token, error, actions); });
}

void Agent::forget(Instant now, FileId id, AgentActions& actions) {
  look_at_time(now, actions);
  if_known(now, id, actions, [&](FileAgent& f) { f.forget(now); });
}

void Agent::purge_returned(Instant now, PurgeId purge, FileId id, AgentActions& actions) {
  look_at_time(now, actions);
  FileAgent* f = find(id);
  VR_CHECK(f != nullptr);
  f->purge_returned(now, purge);
  settle(now, *f, actions);
}

void Agent::size_pushed(Instant now, uint64_t push, FileId id, bool there, AgentActions& actions) {
  look_at_time(now, actions);
  if_known(now, id, actions, [&](FileAgent& f) { f.size_pushed(push, there); });
}

void Agent::names_ended(Instant now, uint64_t ending, FileId dir, AgentActions& actions) {
  look_at_time(now, actions);
  if_known(now, dir, actions, [&](FileAgent& f) { f.names_ended(ending); });
}

void Agent::size_settled(Instant now, uint64_t settle_id, FileId id, AgentActions& actions) {
  look_at_time(now, actions);
  if_known(now, id, actions, [&](FileAgent& f) { f.size_settled(settle_id); });
}

void Agent::settle_ended(Instant now, uint64_t settle_id, FileId id, AgentActions& actions) {
  look_at_time(now, actions);
  if_known(now, id, actions, [&](FileAgent& f) { f.settle_ended(settle_id); });
}

void Agent::open_told(Instant now, uint64_t tell, FileId id, bool there, AgentActions& actions) {
  look_at_time(now, actions);
  if_known(now, id, actions, [&](FileAgent& f) { f.open_told(tell, there); });
}

void Agent::receive(Instant now, Grant message, AgentActions& actions) {
  look_at_time(now, actions);
  if (find(message.file) == nullptr) {
    if (offered_.size() >= kOfferedFilesMax) {
      actions.push_back(
          SendToHome{Release{.file = message.file, .seen = message.sequence, .leases = true}});
      return;
    }
    offered_.insert(message.file);
  }
  FileAgent& f = file(message.file);
  f.granted(now, std::move(message), actions);
  settle(now, f, actions);
}

void Agent::receive(Instant now, const Recall& message, AgentActions& actions) {
  look_at_time(now, actions);
  FileAgent& f = file(message.file);
  f.recalled(message);
  settle(now, f, actions);
}

void Agent::receive(Instant now, const FlushAck& message, AgentActions& actions) {
  look_at_time(now, actions);
  if (FileAgent* f = find(message.file)) {
    f->flush_acked(message, actions);
    settle(now, *f, actions);
  }
  // Room in the window and in memory: go on with what waited for it.
  while (!shared_->due.empty() &&
         shared_->flush_bytes_in_flight < shared_->options.flush_window_bytes) {
    FileId id = *shared_->due.begin();
    shared_->due.erase(shared_->due.begin());
    FileAgent* f = find(id);
    if (f != nullptr && !f->send_dirty(PageRange::all(), false, actions)) break;
  }
  share_room(now, actions);
}

// Bytes leave memory not by flushes alone: a truncation drops them, a recall takes them. Who finds
// no room yet stays the first, and whoever comes meanwhile waits behind: many small writes would
// leave none for a large one.
void Agent::share_room(Instant now, AgentActions& actions) {
  std::deque<FileId>& waiting = shared_->want_room;
  while (!waiting.empty() && !shared_->suspended) {
    const FileId id = waiting.front();
    waiting.pop_front();
    FileAgent* f = find(id);
    if (f == nullptr) continue;
    f->looks_for_room();
    shared_->room_turn = id;
    settle_alone(now, *f, actions);
    const bool took = !std::exchange(shared_->room_turn, std::nullopt);
    f = find(id);
    if (took || f == nullptr || !f->wants_room()) continue;
    waiting.pop_back();
    waiting.push_front(id);
    // The bytes may be another file's, whose flush is not due yet.
    if (shared_->flush_bytes_in_flight == 0)
      for (auto& [other, holder] : files_)
        if (!holder->make_room(actions)) break;
    break;
  }
  shared_->give_back_room();
}

void Agent::receive(Instant now, FetchReply message, AgentActions& actions) {
  look_at_time(now, actions);
  if_known(now, message.file, actions,
           [&](FileAgent& f) { f.fetched(std::move(message), actions); });
}

void Agent::receive(Instant now, const ShowSize& message, AgentActions& actions) {
  look_at_time(now, actions);
  FileAgent& f = file(message.file);
  f.show_size(message);
  settle(now, f, actions);
}

void Agent::receive(Instant now, const Announced& message, AgentActions& actions) {
  look_at_time(now, actions);
  if_known(now, message.file, actions, [&](FileAgent& f) { f.announced(message); });
}

template <typename Step>
void Agent::each_file(Instant now, AgentActions& actions, Step step) {
  std::vector<FileId> all;
  for (auto& [id, f] : files_) all.push_back(id);
  for (FileId id : all) {
    FileAgent* f = find(id);
    if (f == nullptr) continue;
    step(*f);
    settle(now, *f, actions);
  }
}

void Agent::reset(Instant now, Dirty dirty, AgentActions& actions, bool disk_has_lost) {
  each_file(now, actions, [&](FileAgent& f) { f.reset(now, dirty, actions, disk_has_lost); });
}

bool Agent::can_be_handed_over() const {
  for (const auto& [id, f] : files_)
    if (!f->can_be_handed_over()) return false;
  return true;
}

std::vector<KeptFile> Agent::kept_files() const {
  std::vector<KeptFile> out;
  out.reserve(files_.size());
  for (const auto& [id, f] : files_) out.push_back(f->kept());
  return out;
}

uint64_t Agent::next_id() const { return shared_->next_id; }

uint64_t Agent::next_sync() const { return shared_->syncs; }

void Agent::take_over_syncs(uint64_t next_sync) {
  shared_->syncs = std::max(shared_->syncs, next_sync);
}

void Agent::take_over(const KeptFile& kept, uint64_t next_id) {
  shared_->next_id = std::max(shared_->next_id, next_id);
  file(kept.file).take_over(kept);
}

void Agent::took_over(Instant now, bool same_session, AgentActions& actions) {
  each_file(now, actions, [&](FileAgent& f) { f.took_over(now, same_session, actions); });
}

bool Agent::brought_back() const {
  for (const auto& [id, f] : files_)
    if (!f->brought_back()) return false;
  return true;
}

bool Agent::must_purge(Instant now) const {
  const bool good = leases_good(now);
  return std::ranges::any_of(files_,
                             [&](const auto& entry) { return entry.second->must_be_purged(good); });
}

void Agent::claim_held_back(Instant now, AgentActions& actions) {
  look_at_time(now, actions);
  for (auto& [id, f] : files_) f->claim_held_back(actions);
}

void Agent::claimed(Instant now, uint64_t claim, FileId id, bool held, AgentActions& actions) {
  look_at_time(now, actions);
  if_known(now, id, actions, [&](FileAgent& f) { f.claimed(claim, held); });
}

std::vector<FileId> Agent::open_files() const {
  std::vector<FileId> out;
  for (const auto& [id, f] : files_)
    if (f->is_open()) out.push_back(id);
  return out;
}

void Agent::settle_all(Instant now, AgentActions& actions) {
  each_file(now, actions, [](FileAgent&) {});
}

// The one place where time takes something away (T3).
void Agent::look_at_time(Instant now, AgentActions& actions) {
  if (shared_->over_at && *shared_->over_at <= now) {
    shared_->over_at.reset();
    shared_->over = true;
    settle_all(now, actions);
  }
  if (!shared_->suspended) {
    if (now < shared_->lease_until || shared_->options.mistakes.has(Mistake::ServeAfterExpiry))
      return;
    shared_->over_at.reset();
    shared_->over = true;
    suspend(now, actions);
  } else {
    look_at_patience(now, actions);
  }
}

void Agent::look_at_patience(Instant now, AgentActions& actions) {
  if (shared_->options.soft_ns == 0 || shared_->failing) return;
  // A daemon that has just started counts from the first who waits.
  if (!shared_->fail_at) shared_->fail_at = now + shared_->options.soft_ns;
  if (now < *shared_->fail_at) return;
  shared_->failing = true;
  settle_all(now, actions);
}

bool Agent::out_of_patience(Instant now, AgentActions& actions) {
  look_at_time(now, actions);
  return shared_->failing;
}

void Agent::suspend(Instant now, AgentActions& actions) {
  shared_->suspended = true;
  ++shared_->statistics.suspensions;
  if (shared_->options.soft_ns > 0) shared_->fail_at = now + shared_->options.soft_ns;
  for (auto& [id, f] : files_) f->suspend(now, actions);
  settle_all(now, actions);
}

void Agent::renew(Instant now, Instant until, AgentActions& actions) {
  const Instant before = std::exchange(shared_->lease_until, until);
  if (now >= until) {
    // The session is over, its time is not: what was held is nobody else's before that.
    const bool early = !shared_->suspended && now < before;
    look_at_time(now, actions);
    if (early) {
      shared_->over = false;
      shared_->over_at = before;
      settle_all(now, actions);
    }
    return;
  }
  if (!std::exchange(shared_->suspended, false)) return;
  shared_->fail_at.reset();
  shared_->failing = false;
  settle_all(now, actions);
}

bool Agent::leases_good(Instant now) const {
  return shared_->options.mistakes.has(Mistake::ServeAfterExpiry) ||
         (!shared_->suspended && now < shared_->lease_until);
}

void Agent::tick(Instant now, AgentActions& actions) {
  look_at_time(now, actions);
  std::vector<FileId> due;
  for (auto it = deadlines_.begin(); it != deadlines_.end() && it->first <= now; ++it)
    due.push_back(it->second);
  for (FileId id : due) {
    FileAgent* f = find(id);
    if (f == nullptr) continue;
    f->flush_if_due(now, actions);
    settle(now, *f, actions);
  }
}

std::optional<Instant> Agent::next_deadline() const {
  std::optional<Instant> next;
  if (!deadlines_.empty()) next = deadlines_.begin()->first;
  const auto also = [&](Instant at) { next = next ? std::min(*next, at) : at; };
  if (!shared_->suspended && shared_->lease_until < kForever &&
      !shared_->options.mistakes.has(Mistake::ServeAfterExpiry))
    also(shared_->lease_until);
  if (shared_->fail_at && !shared_->failing) also(*shared_->fail_at);
  if (shared_->over_at) also(*shared_->over_at);
  return next;
}

void Agent::flush_all(Instant now, AgentActions& actions) {
  look_at_time(now, actions);
  each_file(now, actions, [&](FileAgent& f) { f.send_dirty(PageRange::all(), true, actions); });
}

bool Agent::idle_dirty() const {
  for (const auto& [id, f] : files_)
    if (!f->clean()) return false;
  return true;
}

bool Agent::owes(FileId id) const {
  const FileAgent* f = find(id);
  return f != nullptr && f->owes();
}

AgentCounts Agent::counts() const {
  AgentCounts counts;
  for (const auto& [id, f] : files_) f->add_counts(counts);
  counts.dirty_bytes = shared_->dirty_bytes;
  counts.suspended = shared_->suspended ? 1 : 0;
  return counts;
}

const AgentStatistics& Agent::statistics() const { return shared_->statistics; }

LeaseMode Agent::held(FileId id, Resource resource, uint64_t page) const {
  const FileAgent* f = find(id);
  return f == nullptr ? LeaseMode::None : f->held(resource, page);
}

void Agent::check() const {
  for (const auto& [id, f] : files_) f->check();
}

}  // namespace vremote::coherence
