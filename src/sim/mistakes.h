// What --break can switch off: one rule of the protocol (coherence/mistakes.h), or one promise of
// the driver around it.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "coherence/mistakes.h"

namespace vremote::sim {

enum class WorldKind : uint8_t {
  Pages,   // files, their pages and sizes (world.h)
  Names,   // directories and the kernels' dentries (name_world.h)
  Locks,   // locks of processes (lock_world.h)
  Faults,  // pages again, and everything breaks (fault_world.h)
  Power,   // of these, in which the origin loses its power at the worst moments
};
std::string_view name_of(WorldKind kind);
std::optional<WorldKind> world_kind(std::string_view name);

struct Breaks {
  coherence::Mistakes protocol;
  bool fixed_purge_pool = false;  // K5: one purge of a node runs at a time
  bool small_background = false;  // K7: fills, write-backs and RELEASE share few slots
  bool unordered_home =
      false;  // I4: what leaves for a file does not leave in the order of the actions
  bool deaf_to_busy =
      false;  // K8: the home does not hear that a node's own truncation must be served first
  bool early_grant_data = false;  // I4: the bytes of a grant are read when the home decides, not at
                                  // its turn in the queue

  bool claims_given_up = false;     // R2: locks that a node is giving up are claimed, too
  bool forgets_epochs = false;      // R2: who comes back may have had an earlier session alone
  bool done_before_claims = false;  // R3: a node says that all is back before its claims are heard
  bool deaf_to_death = false;  // the home does not hear that a process which held locks has ended

  bool no_guardian = false;  // nobody purges the kernel of a daemon that is stopped or dead
  // What a guardian was given comes to its daemon after the purge that wrote it back has counted.
  bool purges_before_taking_back = false;
  bool forgets_unacknowledged = false;  // what was under way over a connection that broke is lost
  bool doubles_messages = false;        // what had arrived over it comes again, and is taken again
  bool frees_at_once = false;  // T4: what a node has that breaks the protocol is given away at once
  bool wild_clocks = false;    // they go more unlike than the margin of a lease term allows

  // Not a mistake of ours: the kernel's own races around i_size, left in (model_kernel.h).
  bool size_races = false;
  bool tails = false;  // as size_races: programs store behind the ends of files
  // The same for what a node is shown of a name that it is changing itself (name_history.h).
  bool name_races = false;

  bool has(coherence::Mistake m) const { return protocol.has(m); }
};

// False when no such name.
bool add_break(std::string_view name, Breaks& breaks);
std::vector<std::string> break_names();
// In which worlds it can show.
WorldKind world_of(std::string_view break_name);

}  // namespace vremote::sim
