// What it costs a home to keep a call that waits, beside what each costs: what its sender may make
// long.
#pragma once

#include <cstdint>
#include <variant>

#include "coherence/messages.h"

namespace vremote::coherence {

inline uint64_t bytes_of(const Call& call) {
  uint64_t bytes = call.caller.groups.size() * sizeof(uint32_t);
  if (const auto* c = std::get_if<SetXattrCall>(&call.operation)) bytes += c->value.size();
  if (const auto* c = std::get_if<SymlinkCall>(&call.operation)) bytes += c->target.size();
  if (const auto* c = std::get_if<ReclaimCall>(&call.operation))
    bytes += c->pages.size() * sizeof(PageRange);
  return bytes;
}

}  // namespace vremote::coherence
