// A node's bond with one home over its sessions: until when the leases may be used, and what
// becomes of them and of what is dirty when a session ends (T1, T5, R2, R5 of docs/protocol.md).
//
// In this order, or leases of an old session are good again for a moment: broken() as soon as the
// session is known to be over; connected() when the next one stands; the agent is reset if that
// says so; begun(). Renewals of a session count only from begun() on.
//
// Pure, not thread-safe: told what happened, asked.
#pragma once

#include <cstdint>
#include <optional>

#include "base/time.h"
#include "coherence/agent.h"

namespace vremote::coherence {

class Bond {
 public:
  struct Session {
    uint32_t generation = 0;        // counts this node's sessions with the home; never 0
    uint64_t home_incarnation = 0;  // of the home's daemon
    bool may_reclaim = false;       // the home has restarted, and knows this node from before
    int64_t term_ns = 0;            // of its leases
    // Another one than before: what was written to the home's disk and not synced may be lost; 0:
    // the home does not tell.
    uint64_t disk_life = 0;
  };

  explicit Bond(Mistakes mistakes = {}) : mistakes_(mistakes) {}

  // T1: leases given by a home that has answered what was sent at `sent`. The home counts the whole
  // term from when it heard that, which is later. What is left is for the purges, and for clocks
  // that do not run alike.
  static Instant leases_end(Instant sent, int64_t term_ns) { return sent + term_ns / 10 * 7; }

  void broken() {
    begun_ = 0;
    was_broken_ = true;
  }
  // What the agent must be told (Agent::reset); nothing when this session goes on, or is the first.
  std::optional<Agent::Dirty> connected(const Session& session) {
    const bool same_home = session_.home_incarnation == session.home_incarnation;
    const uint64_t disk_life = session_.disk_life;
    session_ = session;
    if (session.disk_life == 0) session_.disk_life = disk_life;
    disk_has_lost_ = disk_life != 0 && session_.disk_life != disk_life;
    if (!was_broken_) return std::nullopt;
    was_broken_ = false;
    // Others may have been given what we had, unless the home has restarted and waits for us.
    const bool fenced = same_home || !session.may_reclaim;
    bringing_back_ = !fenced;
    return fenced ? Agent::Dirty::Fenced : Agent::Dirty::Kept;
  }
  // S1, of the session that connected() was last told of.
  bool disk_has_lost() const { return disk_has_lost_; }
  void begun() { begun_ = session_.generation; }

  // All lanes of the session `generation` have had an answer to what was sent at `sent` or later.
  // Until when the leases are good; nothing when they are those of another session, or of none.
  std::optional<Instant> renewed(uint32_t generation, Instant sent, Instant now) const {
    if (generation == 0 || generation != begun_ || sent.ns == 0) return std::nullopt;
    return leases_end(mistakes_.has(Mistake::CountFromAnswer) ? now : sent, session_.term_ns);
  }
  int64_t term_ns() const { return session_.term_ns; }

  // R3: the home waits to hear that nothing of before is left here.
  bool bringing_back() const { return bringing_back_; }
  void brought_back() { bringing_back_ = false; }

  // For the next daemon of this node. Its leases are void until its begun().
  struct Kept {
    uint64_t home_incarnation = 0;
    bool was_broken = false, bringing_back = false;
    uint64_t disk_life = 0;
  };
  Kept kept() const {
    return {session_.home_incarnation, was_broken_, bringing_back_, session_.disk_life};
  }
  void take_over(const Kept& kept) {
    session_.home_incarnation = kept.home_incarnation;
    session_.disk_life = kept.disk_life;
    was_broken_ = kept.was_broken;
    bringing_back_ = kept.bringing_back;
  }

 private:
  Mistakes mistakes_;
  Session session_;
  uint32_t begun_ = 0;  // the session whose leases the agent has; 0: those it has are void
  bool was_broken_ = false;
  bool bringing_back_ = false;
  bool disk_has_lost_ = false;
};

}  // namespace vremote::coherence
