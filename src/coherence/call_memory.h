// What a home does with a call that it may have carried out before its restart (R4). It notes of
// each call that must not be done twice that it begins, and how it ended.
#pragma once

#include <cerrno>
#include <cstdint>
#include <optional>

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

}  // namespace vremote::coherence
