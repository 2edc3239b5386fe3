// Which nodes have a session with a home, and after its restart: who is waited for, and may bring
// back what it had (R1, R2, R5). What to_note() says is noted before anything depends on it.
//
// The simulator's origin goes by it; NodeDaemon does the same with Grace and a list of its own.
//
// Pure, not thread-safe.
#pragma once

#include <algorithm>
#include <map>
#include <optional>
#include <vector>

#include "base/ids.h"
#include "coherence/grace.h"

namespace vremote::coherence {

class Members {
 public:
  using Member = Grace::Member;

  // After a restart: those that were noted, who have until `end`.
  void restarted(std::vector<Member> noted, Instant end) {
    in_grace_ = !noted.empty();
    grace_ = Grace(std::move(noted), end);
  }
  bool in_grace() const { return in_grace_; }
  bool may_reclaim(const Member& member, Instant now) const {
    return grace_.may_reclaim(member, now);
  }

  void began(NodeId session, const Member& member, Instant now) {
    grace_.came(member, now);
    members_[session] = member;
  }
  void ended(NodeId session) { members_.erase(session); }
  // All it had is back, or (`left`) it has nothing any more. True: there is something new to note.
  bool brought_back(NodeId session, bool left) {
    auto it = members_.find(session);
    if (it == members_.end()) return false;
    grace_.settled(it->second.node);
    if (left) members_.erase(it);
    return left;
  }
  // Once, when nobody is waited for any more: those who did not come back.
  std::optional<std::vector<Member>> grace_ended(Instant now) {
    if (!in_grace_ || !grace_.over(now)) return std::nullopt;
    in_grace_ = false;
    std::vector<Member> missing = grace_.expected();
    std::erase_if(missing, [](const Member& m) { return m.epoch == Member::kTooLate; });
    for (auto& [session, member] : members_)
      if (grace_.is_too_late(member)) member.epoch = Member::kTooLate;
    grace_ = Grace();
    return missing;
  }

  // Who has a session, or is waited for: each daemon once, with its oldest session (as
  // with_expected()).
  std::vector<Member> to_note() const {
    std::vector<Member> all;
    for (const auto& [session, member] : members_) all.push_back(member);
    for (const Member& was : grace_.expected()) {
      const auto it =
          std::ranges::find_if(all, [&](const Member& m) { return m.same_daemon(was); });
      if (it == all.end())
        all.push_back(was);
      else
        it->epoch = std::min(it->epoch, was.epoch);
    }
    return all;
  }
  const std::vector<Member>& expected() const { return grace_.expected(); }
  uint64_t incarnation_of(NodeId session) const {
    auto it = members_.find(session);
    return it == members_.end() ? 0 : it->second.incarnation;
  }

 private:
  std::map<NodeId, Member> members_;
  Grace grace_;
  bool in_grace_ = false;
};

}  // namespace vremote::coherence
