// Judges what the processes saw.
#pragma once

#include <optional>
#include <string>

#include "live/shared.h"

namespace vremote::live {

struct Verdict {
  std::optional<std::string> violation;
  uint64_t operations = 0, cells = 0, records = 0;
};

// The registers, the name and the truncated files.
Verdict judge(const Shared& shared);
// The append file as it is now at `path`: each record that was acknowledged is there once and
// sound, in an order that the calls allow.
std::optional<std::string> judge_appends(const Shared& shared, const std::string& path,
                                         uint64_t* records);

}  // namespace vremote::live
