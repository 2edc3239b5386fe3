// What a signal means to the thread that waits for a file operation; and what else /proc tells of
// it.
#pragma once

#include <cstdint>
#include <string_view>

namespace vremote::node {

// True when a signal is pending that ends the process. `status` is the text of /proc/TID/status.
bool has_fatal_signal(std::string_view status);

// The same of thread `tid`. Also true when nothing is known of it (0: it belongs to a foreign pid
// namespace; or it is gone): better a call that ends early than a process nobody can end.
bool is_being_killed(uint32_t tid);

// Whether it has CAP_FOWNER or CAP_CHOWN, in whatever user namespace. Also true when nothing is
// known of it: its own kernel has let it.
bool may_act_as_owner(std::string_view status);
bool may_act_as_owner(uint32_t tid);

}  // namespace vremote::node
