// VR_CHECK: a broken rule of our own ends the process, also in release builds.
//
// A stale page spreads to other machines; a stopped node does not. What a peer, the kernel, a disk
// or a user can cause is a Result (result.h), never a check.
#pragma once

namespace vremote {

[[noreturn]] void check_failed(const char* expression, const char* file, int line, const char* why);

}  // namespace vremote

#define VR_CHECK_MSG(expression, why)                                  \
  do {                                                                 \
    if (!(expression)) [[unlikely]]                                    \
      ::vremote::check_failed(#expression, __FILE__, __LINE__, (why)); \
  } while (false)
#define VR_CHECK(expression) VR_CHECK_MSG(expression, "")
