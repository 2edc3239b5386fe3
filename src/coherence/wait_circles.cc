#include "coherence/wait_circles.h"

#include <algorithm>

namespace vremote::coherence {

namespace {

// C5: how many of `wanted` messages may be sent, and what each may still pass on.
struct Share {
  size_t messages;
  uint32_t each;
};
Share share(uint32_t budget, size_t wanted) {
  const size_t messages = std::min<size_t>(budget, wanted);
  if (messages == 0) return {0, 0};
  return {messages, static_cast<uint32_t>((budget - messages) / messages)};
}

}  // namespace

std::vector<std::pair<NodeId, FollowOwner>> follow(const LockTable& locks, uint64_t home,
                                                   NodeId node, const FollowWait& asked) {
  const Trail& before = asked.trail;
  if (before.budget == 0 || before.waits.size() >= kTrailMax) return {};
  const auto name_of = [&](const LockTable::Ticket& ticket) {
    return WaitName{.home = home, .node = ticket.node.value, .call = ticket.call};
  };
  const auto on_the_trail = [&](const LockTable::Ticket& ticket) {
    return std::ranges::find(before.waits, name_of(ticket)) != before.waits.end();
  };
  LockTable::Ways ways =
      locks.in_the_way(asked.file, {node, asked.call}, before.since,
                       std::min(before.budget, kTrailBudget), kTrailMax - before.waits.size());
  if (ways.since == 0) return {};  // C2: its node was of a version without searches when it came
  // A circle without the request that is searched for: one of its own finds it.
  std::erase_if(ways.owners, [&](const LockTable::InTheWay& way) {
    return std::ranges::any_of(way.through, on_the_trail);
  });
  const Share part = share(before.budget, ways.owners.size());
  std::vector<std::pair<NodeId, FollowOwner>> out;
  for (size_t i = 0; i < part.messages; ++i) {
    const LockTable::InTheWay& way = ways.owners[i];
    FollowOwner& message =
        out.emplace_back(way.owner.node,
                         FollowOwner{.file = way.file, .owner = way.owner.id, .trail = before})
            .second;
    message.trail.since = ways.since;
    message.trail.budget = part.each;
    for (const LockTable::Ticket& ticket : way.through)
      message.trail.waits.push_back(name_of(ticket));
  }
  return out;
}

void WaitCircles::begins(Instant now, const Wait& wait) {
  const Key key{wait.home, wait.call};
  ends(wait.home, wait.call);  // a request that was delivered again
  const Instant next = now + kFirstSearchNs;
  waits_.emplace(key, Waiting{.wait = wait, .began = now, .next = next, .trail = {}});
  due_.emplace(next, key);
  of_owner_[wait.owner].insert(key);
}

void WaitCircles::ends(uint32_t home, uint64_t call) {
  const auto at = waits_.find({home, call});
  if (at == waits_.end()) return;
  due_.erase({at->second.next, at->first});
  searched_.erase(at->second.search);
  const auto owner = of_owner_.find(at->second.wait.owner);
  owner->second.erase(at->first);
  if (owner->second.empty()) of_owner_.erase(owner);
  waits_.erase(at);
}

std::optional<Instant> WaitCircles::next_deadline() const {
  if (due_.empty()) return std::nullopt;
  return due_.begin()->first;
}

void WaitCircles::tick(Instant now, const std::function<bool(uint64_t owner)>& holds,
                       Actions& actions) {
  followed_.clear();
  while (!due_.empty() && due_.begin()->first <= now) {
    const Key key = due_.begin()->second;
    due_.erase(due_.begin());
    Waiting& waiting = waits_.at(key);
    waiting.next = now + std::clamp(now - waiting.began, kFirstSearchNs, kSearchesApartMaxNs);
    due_.emplace(waiting.next, key);
    if (waiting.refused || !holds(waiting.wait.owner)) continue;  // C1
    waiting.trail.clear();
    search(waiting, actions);
  }
}

void WaitCircles::search(Waiting& waiting, Actions& actions) {
  searched_.erase(waiting.search);
  waiting.search = options_.draw ? options_.draw() : ++searches_;
  searched_.emplace(waiting.search, Key{waiting.wait.home, waiting.wait.call});
  actions.push_back(Ask{.home = waiting.wait.home,
                        .follow = {.file = waiting.wait.file,
                                   .call = waiting.wait.call,
                                   .trail = {.searcher = self_,
                                             .search = waiting.search,
                                             .since = 0,
                                             .budget = kTrailBudget,
                                             .waits = {}}}});
}

void WaitCircles::receive(uint32_t home, const FollowOwner& message, Actions& actions) {
  if (idle()) return;
  size_t& followed = followed_[home];
  if (++followed > kFollowedMax) return;
  const size_t before = actions.size();
  follow(home, message, actions);
  followed += actions.size() - before;
}

void WaitCircles::follow(uint32_t home, const FollowOwner& message, Actions& actions) {
  const Trail& trail = message.trail;
  if (trail.searcher == self_) {
    if (const auto at = searched_.find(trail.search); at != searched_.end()) {
      Waiting& waiting = waits_.at(at->second);
      if (waiting.wait.owner == message.owner) return came_back(waiting, trail, actions);
    }
  }
  if (trail.budget == 0 || trail.waits.size() >= kTrailMax) return;
  const auto owner = of_owner_.find(message.owner);
  if (owner == of_owner_.end()) return;
  std::vector<const Wait*> next;
  // Where it waits at the home that asks, the home has looked itself.
  for (const Key& key : owner->second)
    if (key.first != home) next.push_back(&waits_.at(key).wait);
  const Share part = share(std::min(trail.budget, kTrailBudget), next.size());
  for (size_t i = 0; i < part.messages; ++i) {
    Ask& ask = std::get<Ask>(actions.emplace_back(
        Ask{.home = next[i]->home,
            .follow = {.file = next[i]->file, .call = next[i]->call, .trail = trail}}));
    ask.follow.trail.budget = part.each;
  }
}

void WaitCircles::came_back(Waiting& waiting, const Trail& trail, Actions& actions) {
  if (waiting.refused || trail.waits.empty() || trail.waits.front().call != waiting.wait.call)
    return;
  if (waiting.trail.empty() && !options_.believe_at_once) {
    waiting.trail = trail.waits;
    return search(waiting, actions);
  }
  if (waiting.trail != trail.waits && !options_.believe_at_once) return;
  waiting.refused = true;
  actions.push_back(
      Refuse{.home = waiting.wait.home, .file = waiting.wait.file, .call = waiting.wait.call});
}

}  // namespace vremote::coherence
