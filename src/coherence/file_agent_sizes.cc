// K16: who makes a file longer waits until the kernels know that have it open for reading. A load
// or store behind the size that a kernel has for the file is SIGBUS, sendfile(2), splice(2) and
// copy_file_range(2) end there, and that kernel asks nobody before.
#include <algorithm>
#include <cerrno>
#include <utility>

#include "coherence/file_agent.h"

namespace vremote::coherence {
namespace {

// Where a mapping of a file of this size ends.
constexpr uint64_t mapped_end(uint64_t size) {
  return (size + kPageSize - 1) / kPageSize * kPageSize;
}

}  // namespace

bool FileAgent::kernel_knows(Instant now, uint64_t size, uint64_t written) const {
  // Who was answered a moment ago has taken it in.
  if (now >= written_until_) written = std::max(written, written_end_);
  const uint64_t told = std::min(told_size_.value_or(0), sure_size_.value_or(UINT64_MAX));
  if (shared_.options.mistakes.has(Mistake::GrowWithinPageUnannounced))
    return mapped_end(std::max(told, written)) >= size;
  return std::max(told, written) >= size;
}

uint64_t FileAgent::push_size(Instant now, uint64_t size, bool open, AgentActions& actions) {
  const uint64_t id = shared_.next_id++;
  ++shared_.statistics.size_pushes;
  kernel_size_.told(size);
  inode_changes(now);
  std::optional<Instant> give_up;
  if (shared_.options.push_patience_ns != 0) give_up = now + shared_.options.push_patience_ns;
  size_pushes_.push_back(
      {.id = id, .size = size, .look_at = now + shared_.options.push_look_ns, .give_up = give_up});
  actions.push_back(PushSize{id, id_, size, open});
  return id;
}

bool FileAgent::pushing(uint64_t push) const {
  return push != 0 && std::any_of(size_pushes_.begin(), size_pushes_.end(),
                                  [&](const SizePush& p) { return p.id == push; });
}

bool FileAgent::awaited_push_ended(uint64_t push, bool there) {
  auto it = std::find_if(size_pushes_.begin(), size_pushes_.end(),
                         [&](const SizePush& p) { return p.id == push; });
  if (it == size_pushes_.end()) return false;
  if (there && !it->overtaken) {
    told_size_ = std::max(told_size_.value_or(0), it->size);
    proved(it->size);
  }
  size_pushes_.erase(it);
  return true;
}

// A push raises the size and then waits for the page with the end in it, if that is locked: by a
// fill, or a purge that writes it back, and either may wait for whoever waits for the push. So
// after a moment it is looked at whether the size is there.
bool FileAgent::look_after_pushes(Instant now, AgentActions& actions) {
  const size_t before = size_pushes_.size();
  std::erase_if(size_pushes_,
                [&](const SizePush& push) { return push.give_up && *push.give_up <= now; });
  for (SizePush& push : size_pushes_) {
    if (!push.looking && push.look_at <= now) {
      push.looking = true;
      actions.push_back(LookAtSize{push.id, id_, push.size});
    }
    if (!push.looking) wake_at(push.look_at);
    if (push.give_up) wake_at(*push.give_up);
  }
  return size_pushes_.size() != before;
}

// The answer to a SETATTR sets the size whatever has come between (fuse_do_setattr), whenever its
// asker takes it in. It holds the inode's lock until then.
void FileAgent::size_told(Instant now, uint64_t size, AgentActions& actions) {
  told_at_most(size);
  kernel_size_.told(size);
  setattr_ = {.settle = 0, .until = now + shared_.options.moment_ns};
  if (reading_opens_ == 0 || shared_.options.settle_ns == 0 || kernel_size_.cutting(now)) return;
  setattr_ = {.settle = shared_.next_id++, .until = now + shared_.options.settle_ns};
  ++shared_.statistics.size_settles;
  actions.push_back(SettleSize{setattr_->settle, id_, size, true, true});
}

bool FileAgent::setattr_under_way(Instant now) {
  if (!setattr_) return false;
  if (setattr_->until <= now) {
    setattr_.reset();
    return false;
  }
  wake_at(setattr_->until);
  return true;
}

void FileAgent::show_size(const ShowSize& message) {
  if (shows_.size() >= kShowsOfFileMax) return;
  shows_.push_back({.show = message.show, .size = message.size});
}

bool FileAgent::advance_show(Instant now, Show& show, AgentActions& actions) {
  if (tail_may_show()) return false;  // the answer that is about to come has another size
  if (pushing(show.push)) return false;
  if (show.push == 0 && reading_opens_ > 0 && !kernel_knows(now, show.size)) {
    if (setattr_under_way(now)) return false;
    show.push = push_size(now, show.size, true, actions);
    return false;
  }
  actions.push_back(SendToHome{SizeShown{.file = id_, .show = show.show}});
  return true;
}

// Whether the answer to a write that has made the file longer must wait, for others or for our own
// kernel: it takes the end of an append to be where it guesses.
bool FileAgent::growth_must_be_known(Instant now, uint64_t before, uint64_t end,
                                     uint64_t kernel_end) const {
  const Mistakes& mistakes = shared_.options.mistakes;
  if (end <= before || mistakes.has(Mistake::GrowUnannounced) ||
      (mistakes.has(Mistake::GrowWithinPageUnannounced) && end <= mapped_end(before)))
    return false;
  return watched_ || (reading_opens_ > 0 && !kernel_knows(now, end, kernel_end));
}

// The bytes are applied; the Attributes stay here until all know, so that the size is still true
// when others are shown it.
bool FileAgent::advance_growth(Instant now, Request& request, AgentActions& actions) {
  if (!std::exchange(request.growth_begun, true)) {
    request.must_announce = watched_;
    // Our own kernel learns it from the answer. Where that has to wait, programs here must not see
    // the bytes in one call and in the next that the file ends before them.
    const uint64_t told = request.must_announce ? 0 : request.kernel_end;
    if (reading_opens_ > 0 && !kernel_knows(now, request.grown, told))
      request.size_push = push_size(now, request.grown, true, actions);
  }
  if (request.announce_again && !shared_.failing) {
    if (shared_.suspended) return false;
    // Where the file is gone, or shorter by now, nobody is to know the size that it had.
    if (request.error == 0 && !need_attributes(request, LeaseMode::Exclusive, actions))
      return false;
    request.announce_again = false;
    if (std::exchange(request.error, 0) == 0 && attributes_.size > 0) {
      request.grown = std::min(request.grown, attributes_.size);
      request.must_announce = watched_;
    }
  }
  if (request.must_announce && announcing_ == 0) {
    request.must_announce = false;
    request.asked_message = true;
    announcing_ = request.announcement = shared_.next_id++;
    ++shared_.statistics.announcements;
    actions.push_back(SendToHome{
        Announce{.file = id_, .announcement = request.announcement, .size = request.grown}});
  }
  // Nobody is heard of, and programs are not to wait for that (soft_ns).
  if (shared_.failing) {
    if (shared_.options.mistakes.has(Mistake::FailAppliedWrites))
      actions.push_back(ReplyError{request.token, EIO});
    else
      answer_write(request, actions);
    return true;
  }
  if (request.must_announce || (request.announcement != 0 && request.announcement == announcing_) ||
      pushing(request.size_push))
    return false;
  // Filled while others were told: with our answer the kernel takes them for the file's.
  request.active = kernel_.resident().overlaps(guessed_behind(request));
  if (request.active) {
    some_active_ = true;
    return false;
  }
  if (turn_) turn_->until = std::min(turn_->last, now + shared_.options.append_gap_ns);
  write_is_answered(now, request.kernel_end);
  answer_write(request, actions);
  return true;
}

void FileAgent::announced(const Announced& message) {
  if (message.announcement != announcing_) return;  // from before a reset
  announcing_ = 0;
  watched_ = message.watched;
}

// Files that are open for reading are watched again as soon as the home gives their Attributes.
// Whoever was to be told, and has not heard of the reset yet, may go on with the old size until its
// leases are over: who waits for it has the new session told, which begins behind its grace.
void FileAgent::forget_announcements() {
  for (Request& request : requests_) {
    const bool unanswered = request.announcement != 0 && request.announcement == announcing_;
    if (std::exchange(request.must_announce, false) || unanswered) request.announce_again = true;
  }
  announcing_ = 0;
  watched_ = false;
  shows_.clear();
  const bool asks = std::any_of(requests_.begin(), requests_.end(), [](const Request& r) {
    return r.kind == Kind::Open && r.opening.reads;
  });
  if (reading_opens_ == 0 || asks) return;
  Request request;
  request.kind = Kind::Open;
  request.opening = {};
  requests_.push_back(std::move(request));
}

}  // namespace vremote::coherence
