// Asks the running node for its Namespace over its control socket.
//
// The protocol: connect to a unix stream socket, send {"request":"namespace"} and a newline, read
// one line of JSON.
#pragma once

#include <string>

#include "base/result.h"
#include "intercept/resolve.h"

namespace vremote::intercept {

inline constexpr const char* kDefaultStateDir = "/run/vremote";

// The control socket a configuration file names: `control.socket`, else `state_dir`/control.sock,
// else /run/vremote/control.sock. A relative path is meant from the file's directory.
Result<std::string> control_socket_of_config(const std::string& config_file);

// For this process: $VREMOTE_CONTROL, else control_socket_of_config($VREMOTE_CONFIG), else
// /run/vremote/control.sock.
Result<std::string> find_control_socket();

// Bounded in time (5 s unless told) and in size. ENXIO with a sentence when no node answers there.
Result<Namespace> fetch_namespace(const std::string& socket_path, int timeout_ms = 5000);

}  // namespace vremote::intercept
