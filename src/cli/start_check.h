// What a start of the node would find on this machine, in its words, without starting anything.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "base/result.h"

namespace vremote::cli {

enum class CheckFor : uint8_t {
  Start,   // what the start would refuse
  People,  // and what it would do without, and warn of
};

// Of a configuration file. A node that runs with it is no mistake. Takes seconds at most, whatever
// its paths lead to.
Status check_start(const std::string& file, CheckFor who);

// What `check` says, from a process of its own; ETIMEDOUT when it says nothing in time. That
// process may then hang for as long as a dead file system makes it. Only one thread may be there.
Status check_in_time(const std::function<Status()>& check, int64_t patience_ms);

}  // namespace vremote::cli
