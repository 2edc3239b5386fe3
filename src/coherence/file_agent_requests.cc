// What each kind of request waits for, and its answer.
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "coherence/file_agent.h"

namespace vremote::coherence {

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
  // It would be bounced again and again while we cannot let go. A growth that is being announced
  // waits for nothing that we hold, and so not for this.
  if (request.bounced && recall_pending(Resource::Attributes, kUnit) &&
      std::ranges::any_of(requests_, [](const Request& other) { return other.grown != 0; }))
    return;
  request.bounced = false;
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
bool FileAgent::advance_attributes(Instant now, Request& request, AgentActions& actions) {
  if (request.push != 0) return false;
  if (!request.pushed) {
    if (!need_attributes(request, LeaseMode::Shared, actions)) return false;
    if (shared_.options.settle_ns != 0 && !size_is_settled(now, actions)) return false;
    if (!access_is_settled(now, actions)) return false;
    request.told = attributes_;
    request.told_order = ++last_told_;
    request.told.blocks = blocks_with(dirty_.bytes());
    // What a write of our own has told the kernel counts only when nothing can come between: its
    // caller may not have taken in the answer.
    if (told_size_ &&
        request.told.size >
            std::max(*told_size_, answers_at_once(now, request) ? written_end_ : uint64_t{0})) {
      // The answer was true when the question was there; the lease need not wait for the push.
      request.pinned = false;
      request.push = shared_.next_id++;
      ++shared_.statistics.size_pushes;
      kernel_size_.told(request.told.size);
      inode_changes(now);
      request.push_size = request.told.size;
      actions.push_back(PushSize{request.push, id_, request.told.size, false});
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
  told_at_most(request.told.size);
  // A larger size counts as taken in only when nothing can have come between, or by its push.
  if (!told_size_ || answers_at_once(now, request)) {
    if (request.told.size > told_size_.value_or(0))
      unproved_ = {now + shared_.options.moment_ns, told_size_.value_or(0)};
    told_size_ = request.told.size;
  }
  kernel_size_.told(request.told.size);
  const bool lasting = covers(attributes_mode_, LeaseMode::Shared) &&
                       !recall_pending(Resource::Attributes, kUnit) && truncations_ == 0;
  kernel_has_attributes_ = kernel_has_attributes_ || lasting;
  told_blocks_ = request.told.blocks;
  actions.push_back(ReplyAttributes{request.token, request.told, lasting});
  return true;
}

// Whether nothing can have come between the question and this answer.
bool FileAgent::answers_at_once(Instant now, const Request& request) const {
  return request.arrived == now && kernel_.purges_in_flight() == 0 &&
         now >= changed_ + shared_.options.moment_ns;
}

// Never waits: its asker holds nothing but is waited for.
void FileAgent::own_attributes(Token token, AgentActions& actions) {
  if (attributes_mode_ == LeaseMode::None || shared_.suspended) {
    actions.push_back(ReplyError{token, EAGAIN});
    return;
  }
  if (told_size_) told_at_most(attributes_.size);
  kernel_size_.told(attributes_.size);
  actions.push_back(ReplyAttributes{token, attributes_});
}

// Z2. The caller keeps the Attributes lease here.
bool FileAgent::size_is_settled(Instant now, AgentActions& actions) {
  std::optional<KernelSize::Settle> start;
  if (shared_.options.mistakes.has(Mistake::UnsettledSizes) ||
      kernel_size_.settled(now, attributes_.size, &shared_.next_id, &start))
    return true;
  if (start) {
    ++shared_.statistics.size_settles;
    actions.push_back(SettleSize{start->id, id_, start->size, false, false});
  }
  wake_at(kernel_size_.settling_until());
  return false;
}

// K19: as with sizes (K16), an answer with a new mode or owner is thrown away when something
// crosses it, and the kernel goes on to judge by what it had: it would refuse, or allow, what was
// changed before. Nothing tells how long a kernel thread takes to take an answer in, so the kernel
// is made to ask, and looked at, before anybody is told.
bool FileAgent::access_is_settled(Instant now, AgentActions& actions) {
  const Access access = attributes_.access();
  if (shared_.options.settle_ns == 0 || !told_access_ || *told_access_ == access) {
    access_is_told(access);
    return true;
  }
  if (!access_settle_ || access_settle_->access != access) {
    access_settle_ = AccessSettle{shared_.next_id++, access, now + shared_.options.settle_ns};
    ++shared_.statistics.size_settles;
    actions.push_back(SettleSize{
        .settle = access_settle_->id, .file = id_, .size = UINT64_MAX, .access = access});
  } else if (now >= access_settle_->until) {
    access_is_told(access);  // as with Z4
    return true;
  }
  wake_at(access_settle_->until);
  return false;
}

bool FileAgent::advance_read(Instant now, Request& request, AgentActions& actions) {
  const bool fill = request.kind == Kind::Fill;
  const Mistakes& mistakes = shared_.options.mistakes;
  if (fill) {
    // K3: while this fill stands for the absence of its pages, it is not answered.
    if (!mistakes.has(Mistake::FillFromRecalled) && recall_pending(Resource::Data, request.range))
      return false;
    if (some_active_) {
      for (const Request& other : requests_) {
        if (!other.active || (!other.range.overlaps(request.range) &&
                              !guessed_behind(other).overlaps(request.range)))
          continue;
        if (other.kind == Kind::Write || (other.kind == Kind::Truncate && !may_write()))
          return false;
      }
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
      // (A recall that waits for the kernel to cut pages waits for this fill, too: Z3. So does one
      // that waits for the page behind a file's old end: K20.)
      if (!request.pinned && recall_pending(Resource::Attributes, kUnit) &&
          !holds_up_tail(request) &&
          (!fill || !kernel_size_.cutting(now) || attributes_mode_ == LeaseMode::None))
        return false;
      request.pinned = true;
      available = request.offset < attributes_.size ? attributes_.size - request.offset : 0;
    }
  }
  // The kernel may ignore that a short answer is the end, and the reader would take the rest of the
  // page, which is zero, for bytes of the file. Before the data is asked for: a grant is used at
  // once (K10).
  if (fill && available < request.size && !size_is_settled(now, actions)) return false;
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
  if (fill && available < request.size) {
    changed_ = now;
    inode_changes(now);
    told_at_most(request.offset + available);  // the kernel takes a short answer for the end
  }
  if (fill) kernel_.fill_answered(request.fill, request.range, now + shared_.options.residency_ns);
  actions.push_back(ReplyData{
      request.token, dirty_.compose(request.offset, available, request.data_offset, request.data),
      available});
  return true;
}

// Before anything else, for it may take long: nothing is held meanwhile, and what the kernel will
// make of the answer is not true yet. One that is larger than all the memory goes alone.
bool FileAgent::finds_room(Request& request, AgentActions& actions) {
  if (request.has_room) return true;
  const auto is_first = [&] {
    for (const Request& other : requests_) {
      if (&other == &request) break;
      if (other.wants_room && !other.has_room) return false;
    }
    return true;
  };
  const bool may_take = shared_.want_room.empty() || (shared_.room_turn == id_ && is_first());
  if (may_take && (shared_.has_room(request.size) || shared_.dirty_bytes == 0)) {
    shared_.room_turn.reset();
    request.has_room = true;
    return true;
  }
  request.wants_room = true;
  // The kernel cannot go on with the next piece before our answer to this one.
  if (request.append && continues(request.handle, request.kernel_end - request.size))
    turn_->until = turn_->last;
  if (!std::exchange(wants_room_, true)) shared_.want_room.push_back(id_);
  (void)make_room(actions);
  return false;
}

bool FileAgent::advance_write(Instant now, Request& request, AgentActions& actions) {
  if (!request.active) {
    if (!finds_room(request, actions)) return false;
    // An append behind another write that is being carried out starts where that one ends.
    if (request.append)
      for (const Request& other : requests_)
        if (other.kind == Kind::Write && other.active) return false;
    const uint64_t end = request.offset + request.size;
    const uint64_t known_size =
        attributes_mode_ != LeaseMode::None ? attributes_.size : size_floor_;
    const bool extends = request.append || end > known_size;
    // K15: a piece goes right behind the one before it, whoever else has asked meanwhile.
    if (request.append && continues(request.handle, request.kernel_end - request.size) &&
        now < turn_->last && covers(attributes_mode_, LeaseMode::Exclusive))
      request.pinned = true;
    if (!need_attributes(request, extends ? LeaseMode::Exclusive : LeaseMode::Update, actions))
      return false;
    if (request.append) {
      request.offset = attributes_.size;
      request.range = PageRange::of_bytes(request.offset, request.size);
    }
    if (request.offset + request.size > shared_.options.file_max_bytes) {
      actions.push_back(ReplyError{request.token, EFBIG});
      return true;
    }
    if (extends && request.offset + request.size > attributes_.size) {
      if (const auto until = kernel_size_.cutting_until(now)) {  // Z3
        wake_at(*until);
        return false;
      }
    }
    if (recall_pending(Resource::Data, request.range)) return false;
    if (!leases_.covers(request.range, LeaseMode::Exclusive)) {
      ask_data(request, LeaseMode::Exclusive, false, actions);
      return false;
    }
    request.active = some_active_ = true;
  }
  // Purge before apply: the purge may write back an older mapped page, which must not land on top
  // of these bytes (K12).
  if (!shared_.options.mistakes.has(Mistake::ApplyBeforePurge) &&
      (kernel_.resident().overlaps(request.range) ||
       kernel_.resident().overlaps(guessed_behind(request)) ||
       kernel_.resident().overlaps(tail_shown_by(request.offset + request.size))))
    return false;
  // A fill that met the old end left zeroes behind it in its page. A reader that was woken by it
  // looks at the size only now: it must not find the new one and take those zeroes for bytes of the
  // file. As with recalls (K13), it gets a moment.
  if (const uint64_t end = request.offset + request.size; end > attributes_.size) {
    if (auto until = kernel_.keep_until(
            {attributes_.size >> kPageShift, ((end - 1) >> kPageShift) + 1}, now)) {
      wake_at(*until);
      return false;
    }
  }
  // Readers here see the bytes from now on, and the size they ask for must not be the kernel's own
  // from before.
  if (request.offset + request.size > attributes_.size) drop_attributes(actions);
  const bool told = growth_must_be_known(now, attributes_.size, request.offset + request.size,
                                         request.kernel_end);
  apply_write(now, request.offset, request.bytes, request.wall, request.kernel_end);
  if (request.append)
    appended(now, request.handle, request.kernel_end - request.size, request.size);
  if (told) {
    request.active = false;
    request.bytes = {};
    request.grown = request.offset + request.size;
    return advance_growth(now, request, actions);
  }
  write_is_answered(now, request.kernel_end);
  answer_write(request, actions);
  return true;
}

void FileAgent::write_is_answered(Instant now, uint64_t kernel_end) {
  written_end_ = std::max(written_end_, kernel_end);
  written_until_ = now + shared_.options.moment_ns;
}

void FileAgent::answer_write(const Request& request, AgentActions& actions) {
  // Of an append the kernel takes its guess for the size, and says that what it keeps of the
  // attributes is old a moment after that. It may have asked while all others were told.
  if (request.grown != 0) drop_attributes(actions);
  if (!request.asked_message) ++shared_.statistics.hits_without_message;
  actions.push_back(
      ReplyWritten{request.token, request.offset, static_cast<uint32_t>(request.size)});
}

// What write() and step() would do at once with the same event, without their bookkeeping: most
// writes are these.
std::optional<uint64_t> FileAgent::write_now(Instant now, const WriteNowEvent& event) {
  inode_lock_is_held(event.append && continues(event.handle, event.offset));
  if (!requests_.empty() || !recalls_.empty() || truncations_ > 0 || going_on_ > 0 || cut_untold_)
    return std::nullopt;
  if (attributes_mode_ == LeaseMode::None) return std::nullopt;
  const uint64_t size = attributes_.size;
  const uint64_t offset = event.append ? size : event.offset;
  const uint64_t end = offset + event.bytes.size();
  if (end > shared_.options.file_max_bytes || end < offset) return std::nullopt;
  const bool extends = event.append || end > size;
  const PageRange range = PageRange::of_bytes(offset, event.bytes.size());
  if (!covers(attributes_mode_, extends ? LeaseMode::Exclusive : LeaseMode::Update) ||
      !leases_.covers(range, LeaseMode::Exclusive) || kernel_.resident().overlaps(range) ||
      !shared_.want_room.empty() || !shared_.has_room(event.bytes.size()))
    return std::nullopt;
  if (end > size && (kernel_.keep_until({size >> kPageShift, ((end - 1) >> kPageShift) + 1}, now) ||
                     kernel_size_.cutting(now) || kernel_has_attributes_ ||
                     kernel_.resident().overlaps(tail_shown_by(end)) ||
                     (event.append && kernel_.resident().overlaps(guessed_behind(
                                          end, event.offset + event.bytes.size()))) ||
                     growth_must_be_known(now, size, end, event.offset + event.bytes.size())))
    return std::nullopt;
  known_to_kernel();
  ++shared_.statistics.direct_writes;
  ++shared_.statistics.hits_without_message;
  apply_write(now, offset, event.bytes, event.now_wall, event.offset + event.bytes.size());
  write_is_answered(now, event.offset + event.bytes.size());
  if (event.append) {
    appended(now, event.handle, event.offset, event.bytes.size());
  } else {
    turn_.reset();
  }
  return offset;
}

// K15: a piece as long as a request can be may be followed by another of the same record.
void FileAgent::appended(Instant now, uint64_t handle, uint64_t kernel_offset, uint64_t length) {
  const Instant last =
      continues(handle, kernel_offset) ? turn_->last : now + shared_.options.append_turn_ns;
  turn_.reset();
  if (length + kPageSize <= shared_.options.max_write || now >= last ||
      shared_.options.mistakes.has(Mistake::LetGoBetweenPieces))
    return;
  turn_ = {.handle = handle,
           .kernel_end = kernel_offset + length,
           .until = std::min(last, now + shared_.options.append_gap_ns),
           .last = last};
}

bool FileAgent::has_no_name() const { return attributes_.nlink == 0 && S_ISREG(attributes_.mode); }

// It lost its last name before the home had heard that somebody here opens it. The home keeps such
// a file for a moment, since it may just have been looked up; if that is over, only its attributes
// are left. Who has it open already, or has told so in time, may open it again.
bool FileAgent::may_be_gone() const {
  if (attributes_mode_ == LeaseMode::None || told_in_use_ || !has_no_name()) return false;
  const auto begun = std::ranges::count_if(
      requests_, [](const Request& r) { return r.kind == Kind::Open && r.token != 0; });
  return opens_ <= static_cast<uint32_t>(begun) + gone_opens_;
}

void FileAgent::open_told(uint64_t tell, bool there) {
  for (Request& request : requests_) {
    if (request.tell != tell) continue;
    request.tell = 0;
    told_in_use_ = told_in_use_ || there;
    request.refused = !there;
    return;
  }
}

bool FileAgent::advance_open(Instant now, Request& request, AgentActions& actions) {
  // Any mode will do: at its recall the home hears that the file is in use.
  if (request.size_push == 0 && attributes_mode_ == LeaseMode::None &&
      !need_attributes(request, LeaseMode::Shared, actions))
    return false;
  if (request.refused) {
    ++gone_opens_;
    actions.push_back(ReplyError{request.token, ESTALE});  // the kernel looks the name up again
    return true;
  }
  if (request.token != 0 && request.tell == 0 && may_be_gone()) {
    request.tell = shared_.next_id++;
    actions.push_back(TellOpen{request.tell, id_});
  }
  if (request.tell != 0) {
    request.pinned = false;
    return false;
  }
  // K16: from the OPEN on the kernel is told of each page more. What it was not told before comes
  // first.
  if (request.opening.reads && request.size_push == 0 && !kernel_knows(now, attributes_.size) &&
      !shared_.options.mistakes.has(Mistake::OpenUnshown)) {
    if (setattr_under_way(now)) return false;
    request.size_push = push_size(now, attributes_.size, false, actions);
  }
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
  if (pushing(request.size_push)) {
    request.pinned = false;
    return false;
  }
  if (request.token != 0) actions.push_back(ReplyOpened{request.token});
  return true;
}

}  // namespace vremote::coherence
