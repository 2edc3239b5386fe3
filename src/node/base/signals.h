// What a signal means to the thread that waits for a file operation; and what else /proc tells of
// it.
#pragma once

#include <cstdint>
#include <string_view>

namespace vremote::node {

// True when a signal is pending that ends the process. `status` is the text of /proc/TID/status.
bool has_fatal_signal(std::string_view status);

// True when SIGKILL is pending.
bool is_killed(std::string_view status);

// As has_fatal_signal(), of thread `tid`. Also true when nothing is known of it (0: it belongs to a
// foreign pid namespace; or it is gone): better a call that ends early than a process nobody can
// end.
bool is_being_killed(uint32_t tid);

// What is for a file's owner: to give it away, which others need CAP_CHOWN for, and to change its
// mode or times, for which they need CAP_FOWNER.
struct OwnersWork {
  bool changes_owner = false, changes_other = false;
};
// Whether it may do all of that to files of others, by its capabilities.
bool may_act_as_owner(std::string_view status, OwnersWork work);
// The same of thread `tid`; false when nothing is known of it.
bool may_act_as_owner(uint32_t tid, OwnersWork work);

}  // namespace vremote::node
