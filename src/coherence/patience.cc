#include "coherence/patience.h"

#include <algorithm>
#include <optional>
#include <set>

namespace vremote::coherence {
namespace {

// Judgements come several times a second: after such a gap we have been stopped ourselves.
constexpr int64_t kStopped = 1'500'000'000;

}  // namespace

bool Patience::expired(Instant now, Instant heard) const {
  return silent(now, heard) > (options_.hasty ? options_.term_ns / 8 : options_.term_ns);
}

void Patience::progress(NodeId node, FileId file, Instant now) {
  for (auto& [id, known] : recalls_)
    if (known.node == node && known.file == file) known.moved = now;
}

std::vector<Patience::Verdict> Patience::judge(Instant now, const std::vector<Blocker>& blockers,
                                               const Heard& heard) {
  if (judged_ == Instant{} || now - judged_ > std::min(kStopped, options_.term_ns / 2)) {
    awake_since_ = now;
    for (auto& [id, known] : recalls_) known.since = known.moved = now;
  }
  judged_ = now;
  std::vector<Verdict> verdicts;
  std::set<NodeId> fenced;
  for (auto& [id, known] : recalls_) known.present = false;
  for (const Blocker& blocker : blockers) {
    Known* known = nullptr;
    if (blocker.recall != 0) {
      known = &recalls_
                   .try_emplace(blocker.recall,
                                Known{blocker.node, blocker.file, now, now, false, false})
                   .first->second;
      known->present = true;
    }
    const std::optional<Instant> last = heard(blocker.node);
    if (!last || fenced.contains(blocker.node)) continue;
    if (expired(now, *last)) {
      verdicts.push_back({blocker.node, blocker.file, true, now - *last,
                          "it was not heard of for the lease term and others need what it holds"});
      fenced.insert(blocker.node);
      continue;
    }
    if (known == nullptr) continue;
    if (now - known->moved > options_.deadline_ns) {
      verdicts.push_back(
          {blocker.node, blocker.file, true, now - known->since, "it does not answer a recall"});
      fenced.insert(blocker.node);
    } else if (!known->reported && now - known->since > options_.warn_ns) {
      known->reported = true;
      verdicts.push_back({blocker.node, blocker.file, false, now - known->since,
                          "it has not answered a recall yet"});
    }
  }
  std::erase_if(recalls_, [](const auto& entry) { return !entry.second.present; });
  return verdicts;
}

}  // namespace vremote::coherence
