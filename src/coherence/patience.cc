#include "coherence/patience.h"

#include <algorithm>
#include <optional>
#include <set>
#include <utility>

namespace vremote::coherence {
namespace {

// Judgements come several times a second: after such a gap we have been stopped ourselves.
constexpr int64_t kStopped = 1'500'000'000;
// The part of it that counts all the same. A home that stumbles on and on would never get to the
// end of any term otherwise.
constexpr int64_t kCounts = 3;
// What takes longer than this part of the deadline is no ordinary wait: several in a row may excuse
// one node without costing it its own time.
constexpr int64_t kLong = 64;

}  // namespace

int64_t Patience::silent(Instant now, Instant heard) const {
  const Instant since = std::max(heard, begun_);
  int64_t silence = now - since;
  for (const Stop& stop : stops_)
    if (stop.end > since) silence -= std::min(stop.lost_ns, stop.end - since);
  return silence;
}

void Patience::look_for_a_stop(Instant now) {
  const Instant before = std::exchange(judged_, now);
  if (before == Instant{}) begun_ = now;
  const int64_t longest = std::min(kStopped, options_.term_ns / 2);
  if (before == Instant{} || now - before <= longest) return;
  const int64_t lost = now - before - longest / kCounts;
  stops_.push_back({now, lost});
  while (silent(now, stops_.front().end) > options_.term_ns) stops_.erase(stops_.begin());
  for (auto& [id, known] : recalls_) {
    known.since = std::min(known.since + lost, now);
    known.moved = std::min(known.moved + lost, now);
  }
}

bool Patience::expired(Instant now, Instant heard) const {
  return silent(now, heard) > (options_.hasty ? options_.term_ns / 8 : options_.term_ns);
}

void Patience::progress(NodeId node, FileId file, Instant now) {
  for (auto& [id, known] : recalls_)
    if (known.node == node && known.file == file) known.moved = now;
}

void Patience::give_up(NodeId node, Instant now, std::string why) {
  silenced_.try_emplace(
      node, Known{.node = node, .file = {}, .since = now, .moved = now, .why = std::move(why)});
}

// Otherwise one that owes an answer for so long would have others put out with it.
bool Patience::waits_itself(Instant now, const Blocker& blocker) const {
  return std::ranges::any_of(blocker.behind, [&](uint64_t other) {
    const auto it = recalls_.find(other);
    return it != recalls_.end() && it->second.node != blocker.node &&
           now - it->second.since > options_.deadline_ns / kLong;
  });
}

std::vector<Patience::Verdict> Patience::judge(Instant now, const std::vector<Blocker>& blockers,
                                               const Heard& heard) {
  const int64_t passed = judged_ == Instant{} ? 0 : now - judged_;
  look_for_a_stop(now);
  std::vector<Verdict> verdicts;
  std::set<NodeId> fenced;
  for (auto& [id, known] : recalls_) known.present = false;
  for (const Blocker& blocker : blockers)
    if (blocker.recall != 0)
      recalls_
          .try_emplace(
              blocker.recall,
              Known{.node = blocker.node, .file = blocker.file, .since = now, .moved = now})
          .first->second.present = true;
  for (const Blocker& blocker : blockers) {
    Known* known = blocker.recall == 0 ? nullptr : &recalls_.at(blocker.recall);
    const std::optional<Instant> last = heard(blocker.node);
    if (!last || fenced.contains(blocker.node) || silenced_.contains(blocker.node)) continue;
    if (expired(now, *last)) {
      verdicts.push_back(
          {.node = blocker.node,
           .file = blocker.file,
           .fence = true,
           .waited_ns = now - *last,
           .why = "it was not heard of for the lease term and others need what it holds"});
      fenced.insert(blocker.node);
      continue;
    }
    if (known == nullptr) continue;
    const bool excused = !blocker.held_here && waits_itself(now, blocker) &&
                         known->excused_ns < options_.deadline_ns + options_.term_ns;
    if (excused) known->excused_ns += passed;
    if (blocker.held_here || excused) {
      known->moved = std::min(known->moved + passed, now);
      continue;
    }
    if (now - known->moved > options_.deadline_ns) {
      silenced_.emplace(blocker.node, *known);
      verdicts.push_back({.node = blocker.node,
                          .file = blocker.file,
                          .silence = true,
                          .waited_ns = now - known->since,
                          .why = "it does not answer a recall"});
    } else if (!known->reported && now - known->since > options_.warn_ns) {
      known->reported = true;
      verdicts.push_back({.node = blocker.node,
                          .file = blocker.file,
                          .waited_ns = now - known->since,
                          .why = "it has not answered a recall yet"});
    }
  }
  // Also when nobody waits any more: whoever is not answered would not come back.
  for (auto it = silenced_.begin(); it != silenced_.end();) {
    const std::optional<Instant> last = heard(it->first);
    if (last && expired(now, *last))
      verdicts.push_back({.node = it->first,
                          .file = it->second.file,
                          .fence = true,
                          .waited_ns = now - it->second.since,
                          .why = it->second.why + ", and its leases are over"});
    it = !last || expired(now, *last) ? silenced_.erase(it) : std::next(it);
  }
  std::erase_if(recalls_, [](const auto& entry) { return !entry.second.present; });
  return verdicts;
}

}  // namespace vremote::coherence
