#include "sim/home_driver.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/check.h"
#include "base/overload.h"
#include "coherence/lease_mode_name.h"
#include "sim/process.h"

namespace vremote::sim {

using namespace coherence;

namespace {

int number(FileId file) { return static_cast<int>(file.inode) - 1; }

FileId file_of_action(const HomeAction& action) {
  return std::visit(
      Overload{[](const SendGrant& a) { return a.grant.file; },
               [](const SendRecall& a) { return a.recall.file; },
               [](const ApplyFlush& a) { return a.flush.file; },
               [](const ApplyAttributes& a) { return a.file; },
               [](const ServeFetch& a) { return a.fetch.file; },
               [](const OperationReady& a) { return a.file; },
               [](const SendShowSize& a) { return a.show.file; },
               [](const SendAnnounced& a) { return a.announced.file; },
               [](const SizesShown& a) { return a.file; }, [](const PinFile& a) { return a.file; },
               [](const UnpinFile& a) { return a.file; }, [](const FileIdle& a) { return a.file; },
               [](const CloseSession&) { return FileId{}; }},
      action);
}

}  // namespace

HomeDriver::HomeDriver(Scheduler& scheduler, const Breaks& breaks, Send send, Calls calls,
                       const HomeLimits& limits)
    : scheduler_(scheduler),
      breaks_(breaks),
      send_(std::move(send)),
      home_(breaks.protocol, limits),
      calls_(std::move(calls)) {}

void HomeDriver::create(FileId file, std::vector<std::byte> content) {
  files_[file].platter.synced(content);
  files_[file].disk = std::move(content);
  files_[file].mtime = scheduler_.wall();
}

Attributes HomeDriver::stat(FileId id, const File& file) const {
  Attributes a;
  a.inode = id.inode;
  a.size = file.disk.size();
  a.blocks = (file.disk.size() + 511) / 512;
  a.mtime = a.ctime = file.mtime;
  a.mode = 0100644;
  a.nlink = 1;
  return a;
}

void HomeDriver::receive(NodeId node, ToHome message) {
  HomeActions actions;
  scheduler_.trace(-1, number(file_of(message)), "home    from n{}: {}", node.value,
                   describe(message));
  if (const auto* ack = std::get_if<RecallAck>(&message);
      ack != nullptr && ack->busy && breaks_.deaf_to_busy)
    return;
  std::visit(Overload{[&](const Call& call) {
                        if (std::holds_alternative<SyncCall>(call.operation))
                          return sync(node, call);
                        const OperationId id = next_operation_++;
                        Truncation& t = truncations_[id];
                        t.node = node;
                        t.call = call.call;
                        t.heard_below = call.heard_below;
                        t.file = coherence::file_of(call.operation);
                        t.asked = 1;
                        t.needs = first_needs(node, call.operation);
                        if (const auto* set = std::get_if<SetAttributesCall>(&call.operation)) {
                          VR_CHECK(set->has_size && t.needs.empty());
                          t.size = set->size;
                          t.needs = second_needs(node, call.operation, {});
                          if (breaks_.has(Mistake::ShrinkBelowHolders))
                            std::erase_if(t.needs, [](const OperationNeed& need) {
                              return need.resource == Resource::Data;
                            });
                        } else if (const auto* remove = std::get_if<RemoveCall>(&call.operation)) {
                          t.name = remove->name;
                          t.removes = true;
                        } else {
                          t.name = std::get<CreateCall>(call.operation).name;
                        }
                        VR_CHECK(!t.needs.empty());
                        home_.acquire(id, t.needs.front(), actions);
                      },
                      [&](Flush& flush) { home_.receive(node, std::move(flush), actions); },
                      [](const FollowWait&) {},  // tried in wait_circles_test.cc
                      [&](const auto& other) { home_.receive(node, other, actions); }},
             message);
  take(actions);
}

void HomeDriver::offer(NodeId node, FileId file, Resource resource, LeaseMode mode) {
  HomeActions actions;
  home_.offer(node, file, resource, mode, actions);
  take(actions);
}

void HomeDriver::changed_outside(FileId file, const OutsideChange& change) {
  if (!home_.knows(file)) return;
  for (const auto& [id, other] : truncations_)
    if (other.of_nobody && other.file == file) return;  // the daemon tells it later
  const OperationId id = next_operation_++;
  std::vector<OperationNeed> needs = outside_needs(file, change);
  scheduler_.trace(-1, number(file), "home    changed from outside, operation {}", id);
  truncations_[id] = Truncation{
      .node = {}, .call = 0, .file = file, .of_nobody = true, .needs = needs, .asked = 1};
  HomeActions actions;
  home_.acquire(id, needs.front(), actions);
  take(actions);
}

void HomeDriver::take(HomeActions& actions) {
  for (HomeAction& action : actions) {
    if (const auto* close = std::get_if<CloseSession>(&action)) {
      scheduler_.fail(fmt::format("the protocol is kept: the home closes the session of n{}: {}",
                                  close->node.value, close->reason));
      continue;
    }
    const FileId file = file_of_action(action);
    if (scheduler_.tracing()) {
      if (const auto* g = std::get_if<SendGrant>(&action))
        scheduler_.trace(-1, number(file), "home    decides for n{}: {}", g->node.value,
                         describe(g->grant));
      if (const auto* o = std::get_if<OperationReady>(&action))
        scheduler_.trace(-1, number(file), "home    operation {} has {}, error {}", o->operation,
                         o->resource == Resource::Data ? "data" : "attr", o->error);
      if (const auto* r = std::get_if<SendRecall>(&action))
        scheduler_.trace(-1, number(file), "home    decides for n{}: {}", r->node.value,
                         describe(r->recall));
    }
    if (breaks_.unordered_home) {
      scheduler_.after(Delay::HomeQueue,
                       [this, file, late = std::move(action)]() mutable { perform(file, late); });
      continue;
    }
    if (auto* grant = std::get_if<SendGrant>(&action);
        grant != nullptr && breaks_.early_grant_data && !grant->data.empty()) {
      fill_data(files_[file], grant->data, grant->grant.data_offset, grant->grant.data);
      grant->data = {};
    }
    files_[file].queue.push_back(std::move(action));
    pump(file);
  }
  actions.clear();
}

void HomeDriver::pump(FileId id) {
  File& file = files_[id];
  if (file.busy || file.queue.empty()) return;
  file.busy = true;
  scheduler_.after(Delay::HomeQueue, [this, id] {
    if (dead_) return;
    File& f = files_[id];
    HomeAction action = std::move(f.queue.front());
    f.queue.pop_front();
    perform(id, action);
    f.busy = false;
    pump(id);
  });
}

void HomeDriver::fill_data(File& file, PageRange range, uint64_t& offset, Bytes& data) const {
  offset = range.byte_offset();
  const uint64_t size = file.disk.size();
  const uint64_t length = offset >= size ? 0 : std::min(range.byte_length(), size - offset);
  data = length == 0
             ? Bytes()
             : Bytes::copy_of(std::span<const std::byte>(file.disk).subspan(offset, length));
}

// As HomeService::changed().
void HomeDriver::changed(FileId id, File& file, uint64_t first_byte, uint64_t end_byte) {
  unsynced_.changed(id);
  file.platter.changed(file.disk, first_byte >> kPageShift,
                       (end_byte + kPageSize - 1) >> kPageShift);
}

void HomeDriver::sync_now(FileId id) {
  File& file = files_[id];
  const uint64_t begun = unsynced_.sync_begins();
  file.platter.synced(file.disk);
  if (id == directory_id()) earlier_names_.clear();
  unsynced_.synced(id, begun);
  scheduler_.trace(-1, number(id), "disk    is synced");
}

void HomeDriver::sync_everything() {
  if (dead_) return;
  const uint64_t begun = unsynced_.sync_begins();
  for (auto& [id, file] : files_) sync_now(id);
  unsynced_.all_synced(begun);
}

void HomeDriver::sync(NodeId node, const Call& call) {
  scheduler_.after(Delay::HomeQueue,
                   [this, node, id = coherence::file_of(call.operation), number = call.call] {
                     if (dead_) return;
                     sync_now(id);
                     scheduler_.after(Delay::HomeQueue, [this, node, id, number] {
                       if (!dead_)
                         send_(node, id, Reply{.call = number, .error = 0, .outcome = {}});
                     });
                   });
}

void HomeDriver::write_attributes(FileId id, File& file, const DirtyAttributes& attributes) {
  if (attributes.has_size && attributes.size > file.disk.size()) file.disk.resize(attributes.size);
  changed(id, file, 0, 0);
  if (attributes.has_mtime && file.mtime < attributes.mtime) file.mtime = attributes.mtime;
}

void HomeDriver::perform(FileId id, HomeAction& action) {
  File& file = files_[id];
  std::visit(
      Overload{[&](SendGrant& a) {
                 if (!a.data.empty()) fill_data(file, a.data, a.grant.data_offset, a.grant.data);
                 a.grant.size_floor = file.disk.size();
                 a.grant.unsynced = unsynced_.has(id);
                 if (a.grant.resource == Resource::Attributes) a.grant.attributes = stat(id, file);
                 send_(a.node, id, std::move(a.grant));
               },
               [&](SendRecall& a) { send_(a.node, id, a.recall); },
               [&](ApplyFlush& a) {
                 write_attributes(id, file, a.flush.attributes);
                 for (const Extent& extent : a.flush.extents) {
                   // A flush that makes the file longer says so. Bytes beyond are those of a
                   // mapping older than a truncation.
                   if (extent.offset >= file.disk.size()) continue;
                   const uint64_t length =
                       std::min<uint64_t>(extent.bytes.size(), file.disk.size() - extent.offset);
                   std::memcpy(file.disk.data() + extent.offset, extent.bytes.data(), length);
                   changed(id, file, extent.offset, extent.offset + length);
                   scheduler_.trace(-1, number(id), "disk    {}+{} of {} from n{}", extent.offset,
                                    length, extent.bytes.size(), a.node.value);
                 }
                 send_(
                     a.node, id,
                     FlushAck{.file = id, .flush = a.flush.flush, .blocks = stat(id, file).blocks});
               },
               [&](ApplyAttributes& a) { write_attributes(id, file, a.attributes); },
               [&](ServeFetch& a) {
                 FetchReply reply;
                 reply.file = id;
                 reply.fetch = a.fetch.fetch;
                 fill_data(file, a.fetch.range, reply.data_offset, reply.data);
                 send_(a.node, id, std::move(reply));
               },
               [&](OperationReady& a) { operation_ready(a); },
               [&](SendShowSize& a) { send_(a.node, id, a.show); },
               [&](SendAnnounced& a) { send_(a.node, id, a.announced); },
               [&](SizesShown& a) {
                 if (auto it = truncations_.find(a.operation); it != truncations_.end())
                   end(a.operation, it->second);
               },
               [&](PinFile&) {
                 if (file.pinned) scheduler_.fail("PinFile twice");
                 file.pinned = true;
               },
               [&](UnpinFile&) {
                 if (!file.pinned) scheduler_.fail("UnpinFile without PinFile");
                 file.pinned = false;
               },
               [&](FileIdle&) {}, [&](CloseSession&) {}},
      action);
}

void HomeDriver::operation_ready(const OperationReady& ready) {
  auto it = truncations_.find(ready.operation);
  if (it == truncations_.end()) {
    scheduler_.fail("OperationReady for an operation that is over");
    return;
  }
  const Truncation t = it->second;
  HomeActions actions;
  if (t.of_nobody && (ready.error != 0 || t.asked == t.needs.size())) {
    if (ready.error == 0 &&
        home_.announce(ready.operation, t.file, files_[t.file].disk.size(), {}, actions)) {
      take(actions);
      return;
    }
    end(ready.operation, t);
    return;
  }
  if (ready.error != 0) {
    scheduler_.trace(-1, number(t.file), "home    truncation of n{} fails with {}", t.node.value,
                     ready.error);
    truncations_.erase(it);
    home_.finish(ready.operation, t.file, actions);
    Reply refusal;
    refusal.call = t.call;
    refusal.error = ready.error;
    send_(t.node, t.file, std::move(refusal));
    take(actions);
    return;
  }
  if (t.asked < t.needs.size()) {
    ++it->second.asked;
    home_.acquire(ready.operation, t.needs[t.asked], actions);
    take(actions);
    return;
  }
  // Whoever asked for it may have asked again since, in another session, and gone on.
  if (t.abandoned) {
    end(ready.operation, t, ECONNRESET);
    return;
  }
  if (const auto answer = done_before(t)) {
    scheduler_.trace(-1, number(t.file), "disk    call {} of n{} was made before: {}", t.call,
                     t.node.value, *answer);
    end(ready.operation, t, *answer);
    return;
  }
  if (t.name) {
    const int32_t error = change_names(t);
    note_done(t, error);
    end(ready.operation, t, error);
    return;
  }
  scheduler_.trace(-1, number(t.file), "disk    truncated to {} for n{}", t.size, t.node.value);
  File& file = files_[t.file];
  const bool grows = file.disk.size() < t.size;
  truncations_.at(ready.operation).size_before = file.disk.size();
  const uint64_t longest = std::max<uint64_t>(file.disk.size(), t.size);
  file.disk.resize(t.size);
  changed(t.file, file, t.size, longest);
  file.mtime = scheduler_.wall();
  note_done(t, 0);
  if (grows && home_.announce(ready.operation, t.file, t.size, t.node, actions)) {
    take(actions);
    return;
  }
  const Truncation done = truncations_.at(ready.operation);
  end(ready.operation, done);
}

// As HomeService::carry_out().
std::optional<int32_t> HomeDriver::done_before(const Truncation& t) {
  if (calls_.log == nullptr) return std::nullopt;
  const uint64_t incarnation = calls_.incarnation(t.node);
  const auto is_this = [&](const CallNote& note) {
    return note.incarnation == incarnation && note.call == t.call;
  };
  if (std::ranges::none_of(calls_.log->notes, is_this)) return std::nullopt;
  auto it = calls_.log->done.find({incarnation, t.call});
  if (it == calls_.log->done.end()) return std::nullopt;
  return answer_again(it->second, breaks_.protocol);
}

void HomeDriver::note_done(const Truncation& t, int32_t error) {
  if (calls_.log == nullptr) return;
  const uint64_t incarnation = calls_.incarnation(t.node);
  const CallDone done{.ended = true, .error = error};
  std::vector<CallNote>& notes = calls_.log->notes;
  notes = notes_that_stay(notes, calls_.askers(), breaks_.protocol);
  notes.push_back({incarnation, t.call, done, t.heard_below});
  calls_.log->done[{incarnation, t.call}] = done;
}

int32_t HomeDriver::change_names(const Truncation& t) {
  scheduler_.trace(-1, number(t.file), "disk    {} {} for n{}", t.removes ? "removes" : "makes",
                   *t.name, t.node.value);
  earlier_names_.push_back(names_);
  unsynced_.changed(t.file);
  if (t.removes) return names_.erase(*t.name) > 0 ? 0 : ENOENT;
  return names_.insert(*t.name).second ? 0 : EEXIST;
}

void HomeDriver::opened(NodeId node, FileId file) {
  HomeActions actions;
  home_.opened(node, file, actions);
  take(actions);
}

bool HomeDriver::reclaimed(NodeId node, FileId file, const std::vector<PageRange>& pages) {
  HomeActions actions;
  const bool held = home_.reclaimed(node, file, pages, actions);
  take(actions);
  return held;
}

void HomeDriver::node_gone(NodeId node) {
  for (auto& [id, t] : truncations_)
    if (t.node == node && !t.of_nobody) t.abandoned = true;
  HomeActions actions;
  home_.node_gone(node, actions);
  take(actions);
}

HomeDriver::Durable HomeDriver::killed() {
  dead_ = true;
  Durable durable;
  for (auto& [id, file] : files_)
    durable.files[id] = {std::move(file.disk), file.mtime, std::move(file.platter)};
  durable.names = std::move(names_);
  durable.earlier_names = std::move(earlier_names_);
  return durable;
}

void HomeDriver::restored(Durable durable) {
  for (auto& [id, disk] : durable.files) {
    files_[id].disk = std::move(disk.bytes);
    files_[id].mtime = disk.mtime;
    files_[id].platter = std::move(disk.platter);
  }
  names_ = std::move(durable.names);
  earlier_names_ = std::move(durable.earlier_names);
  unsynced_.all_changed();
}

// The changes of a directory are in the order of a journal.
void HomeDriver::Durable::lose_power(Prng& random) {
  const uint64_t kept = random.chance(30) ? 0 : random.below(11);
  for (auto& [id, disk] : files) {
    disk.bytes = disk.platter.after_power_loss(random, kept);
    disk.platter.synced(disk.bytes);
  }
  if (const uint64_t which = random.below(earlier_names.size() + 1); which < earlier_names.size())
    names = earlier_names[which];
  earlier_names.clear();
}

void HomeDriver::end(OperationId id, const Truncation& operation, int32_t error) {
  const Truncation t = operation;
  HomeActions actions;
  truncations_.erase(id);
  home_.finish(id, t.file, actions);
  if (t.of_nobody) {
    take(actions);
    return;
  }
  File& file = files_[t.file];
  Reply reply;
  reply.call = t.call;
  reply.error = error;
  reply.outcome = coherence::Node{t.file, stat(t.file, file), t.size_before};
  send_(t.node, t.file, std::move(reply));
  take(actions);
}

bool HomeDriver::idle() const {
  for (const auto& [id, file] : files_) {
    if (file.busy || !file.queue.empty()) return false;
  }
  return truncations_.empty();
}

std::string HomeDriver::dump() const {
  std::string out;
  for (const auto& r : home_.pending_recalls(100)) {
    out += fmt::format("  home waits for the ack of n{}: f{} {} {}-{}\n", r.node.value,
                       number(r.file), r.resource == Resource::Data ? "data" : "attributes",
                       r.range.first, r.range.end);
  }
  for (const auto& [id, t] : truncations_)
    out +=
        fmt::format("  home truncates f{} to {} for n{}\n", number(t.file), t.size, t.node.value);
  const HomeCounts counts = home_.counts();
  out +=
      fmt::format("  home: {} files, {} ranges, {} waiting, {} recalls\n", counts.files,
                  counts.shared_ranges + counts.exclusive_ranges, counts.waiting, counts.recalls);
  return out;
}

namespace {

std::string text(PageRange r) {
  return r.end >= kPageEnd ? fmt::format("{}-end", r.first) : fmt::format("{}-{}", r.first, r.end);
}
const char* text(Resource r) {
  return r == Resource::Data ? "data" : r == Resource::Attributes ? "attr" : "entries";
}

}  // namespace

std::string describe(const ToHome& message) {
  return std::visit(
      Overload{
          [](const LeaseRequest& m) {
            return fmt::format("request {} {} {} {}{}", m.request, text(m.resource),
                               name_of(m.mode), text(m.range), m.want_data ? " with data" : "");
          },
          [](const RecallAck& m) {
            return fmt::format("ack {} gives {} seen {}{}", m.recall, text(m.given), m.seen,
                               m.attributes.has_size ? fmt::format(" size {}", m.attributes.size)
                                                     : std::string()) +
                   (m.watches ? " watches" : "") + (m.busy ? " BUSY" : "");
          },
          [](const Flush& m) {
            std::string out = fmt::format("flush {}", m.flush);
            for (const Extent& e : m.extents)
              out += fmt::format(" {}+{}", e.offset, e.bytes.size());
            if (m.attributes.has_size) out += fmt::format(" size {}", m.attributes.size);
            return out;
          },
          [](const Fetch& m) { return fmt::format("fetch {} {}", m.fetch, text(m.range)); },
          [](const Release& m) { return fmt::format("release seen {}", m.seen); },
          [](const Announce& m) {
            return fmt::format("announce {} size {}", m.announcement, m.size);
          },
          [](const SizeShown& m) { return fmt::format("size shown {}", m.show); },
          [](const FollowWait& m) { return fmt::format("follow wait {}", m.call); },
          [](const Call& m) {
            if (const auto* set = std::get_if<SetAttributesCall>(&m.operation))
              return fmt::format("call {} set size {}", m.call, set->size);
            if (const auto* make = std::get_if<CreateCall>(&m.operation))
              return fmt::format("call {} make {}", m.call, make->name);
            if (const auto* remove = std::get_if<RemoveCall>(&m.operation))
              return fmt::format("call {} remove {}", m.call, remove->name);
            if (const auto* reclaim = std::get_if<ReclaimCall>(&m.operation))
              return fmt::format("call {} {}", m.call,
                                 reclaim->done            ? "all is brought back"
                                 : reclaim->pages.empty() ? "it is open here"
                                                          : "pages held back");
            return fmt::format("call {}", m.call);
          }},
      message);
}

std::string describe(const ToAgent& message) {
  return std::visit(
      Overload{
          [](const Grant& m) {
            return fmt::format(
                "grant #{} for {} {} {} {} floor {}{}{}", m.sequence, m.request, text(m.resource),
                name_of(m.mode), text(m.range), m.size_floor,
                m.data.empty() ? std::string()
                               : fmt::format(" bytes {}+{}", m.data_offset, m.data.size()),
                m.resource == Resource::Attributes ? fmt::format(" size {}", m.attributes.size)
                                                   : std::string());
          },
          [](const Recall& m) {
            return fmt::format("recall {} {} to {} {}", m.recall, text(m.resource), name_of(m.to),
                               text(m.range));
          },
          [](const ShowSize& m) { return fmt::format("show size {} {}", m.show, m.size); },
          [](const Announced& m) {
            return fmt::format("announced {}{}", m.announcement, m.watched ? " watched" : "");
          },
          [](const FollowOwner& m) { return fmt::format("follow owner {}", m.owner); },
          [](const FlushAck& m) { return fmt::format("flushed {} error {}", m.flush, m.error); },
          [](const FetchReply& m) {
            return fmt::format("fetched {} bytes {}+{}", m.fetch, m.data_offset, m.data.size());
          },
          [](const Reply& m) { return fmt::format("reply {} error {}", m.call, m.error); }},
      message);
}

}  // namespace vremote::sim
