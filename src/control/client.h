// Asks a running node over its control socket: one JSON line there, one JSON line back.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <string>
#include <string_view>

#include "base/result.h"

namespace vremote::control {

inline constexpr std::chrono::milliseconds kRequestTimeout{5000};

// Sends the line `json` (no newline in it) and returns the reply line. ENOENT or ECONNREFUSED: no
// node runs there.
Result<std::string> control_request(const std::string& socket_path, std::string_view json,
                                    std::chrono::milliseconds timeout = kRequestTimeout);

// The process that listens there; 0: it cannot be seen from here (another PID namespace).
Result<pid_t> control_process(const std::string& socket_path,
                              std::chrono::milliseconds timeout = kRequestTimeout);

// The same for {"request": NAME}; a reply {"error": "sentence"} becomes the Error EREMOTEIO with
// that sentence.
Result<std::string> control_query(const std::string& socket_path, std::string_view name,
                                  std::chrono::milliseconds timeout = kRequestTimeout);

}  // namespace vremote::control
