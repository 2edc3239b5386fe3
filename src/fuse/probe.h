// Whether the daemon behind a FUSE mount is still there.
#pragma once

#include <cstdint>
#include <string>

namespace vremote::fuse {

enum class Liveness : uint8_t {
  Alive,   // it answered
  Dead,    // the kernel says that the connection has ended
  Silent,  // no answer in time: alive and stuck, or not yet started
};

// Asks in a process of its own: a request that was read and is never answered holds its caller for
// good, SIGKILL or not.
Liveness probe(const std::string& mount_point, int timeout_ms);

}  // namespace vremote::fuse
