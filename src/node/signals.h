// What a signal means to the thread that waits for a file operation.
#pragma once

#include <cstdint>
#include <string_view>

namespace vremote::node {

// True when a signal is pending that ends the process. `status` is the text of /proc/TID/status.
bool has_fatal_signal(std::string_view status);

// The same of thread `tid`. Also true when nothing is known of it (0: it belongs to a foreign pid
// namespace; or it is gone): better a call that ends early than a process nobody can end.
bool is_being_killed(uint32_t tid);

}  // namespace vremote::node
