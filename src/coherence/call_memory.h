// What a home does with a call that it may have carried out before its restart (R4). It notes of
// each call that must not be done twice that it begins, and how it ended. A note stays until the
// call is made no more: its node says with each such call which of its earlier ones are not.
#pragma once

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <vector>

#include "base/check.h"
#include "coherence/mistakes.h"
#include "coherence/operation_needs.h"

namespace vremote::coherence {

inline bool is_noted(const Operation& operation) { return !is_repeatable(operation); }

struct CallDone {
  bool ended = false;
  int32_t error = 0;
  uint64_t value = 0;
};

// `noted`: by an earlier incarnation. The errno to answer with, 0 when it was done; nothing: it is
// carried out now.
inline std::optional<int32_t> answer_again(const std::optional<CallDone>& noted,
                                           Mistakes mistakes = {}) {
  if (!noted || mistakes.has(Mistake::ForgetCalls)) return std::nullopt;
  // The daemon died in the moment in which it was being carried out.
  if (!noted->ended) return EIO;
  return noted->error;
}

// A node's side: its calls that a home notes and that may be made once more. In the order of their
// numbers: they are taken and told here under one lock, so that no number is passed by that is to
// be used yet.
class UnheardCalls {
 public:
  void made(uint64_t call) {
    VR_CHECK(calls_.empty() || calls_.back() < call);
    calls_.push_back(call);
  }
  // It is answered, or nobody waits for that.
  void heard(uint64_t call) {
    const auto it = std::ranges::lower_bound(calls_, call);
    if (it != calls_.end() && *it == call) calls_.erase(it);
  }
  // What to say with this call (Call::heard_below).
  uint64_t heard_below(uint64_t call) const {
    return calls_.empty() ? call : std::min(call, calls_.front());
  }

 private:
  std::vector<uint64_t> calls_;  // few: what programs have under way at once
};

// The home's: that a call begins, or how it ended.
struct CallNote {
  uint64_t incarnation = 0;  // of the asking node
  uint64_t call = 0;
  CallDone done;
  uint64_t heard_below = 0;  // as it came with the call; not of an end
};

// Of one node; of those that do not say what they have heard, together. Two for each call that may
// wait here at once (kRequestsMax).
inline constexpr size_t kNotesThatStayMax = 2 * 65536;

// Of `notes`, the oldest first, those that must not be forgotten, in the same order. `askers`: who
// has a session or is waited for after a restart; no other makes its calls again.
//
// What a node has heard is found in its notes: the one that says most stays itself, for a call
// never says it of itself.
inline std::vector<CallNote> notes_that_stay(const std::vector<CallNote>& notes,
                                             const std::set<uint64_t>& askers,
                                             Mistakes mistakes = {}) {
  if (mistakes.has(Mistake::ForgetUnheardCalls)) return {};
  std::map<uint64_t, uint64_t> heard_below;
  for (const CallNote& note : notes) {
    if (!askers.contains(note.incarnation)) continue;
    uint64_t& below = heard_below[note.incarnation];
    below = std::max(below, note.heard_below);
  }
  std::map<uint64_t, size_t> kept;  // 0: of those that do not say
  std::vector<CallNote> stay;
  for (auto note = notes.rbegin(); note != notes.rend(); ++note) {
    const auto node = heard_below.find(note->incarnation);
    if (node == heard_below.end() || note->call < node->second) continue;
    if (++kept[node->second == 0 ? 0 : note->incarnation] > kNotesThatStayMax) continue;
    stay.push_back(*note);
  }
  std::ranges::reverse(stay);
  return stay;
}

}  // namespace vremote::coherence
