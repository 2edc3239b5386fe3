// What traces and tests call a lease mode.
#pragma once

#include "coherence/messages.h"

namespace vremote::coherence {

constexpr const char* name_of(LeaseMode mode) {
  switch (mode) {
    case LeaseMode::None:
      return "None";
    case LeaseMode::Shared:
      return "Shared";
    case LeaseMode::Update:
      return "Update";
    case LeaseMode::Exclusive:
      return "Exclusive";
  }
  return "?";
}

}  // namespace vremote::coherence
