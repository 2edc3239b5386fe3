// The address of a unix socket from its path, for both ends.
#pragma once

#include <sys/socket.h>
#include <sys/un.h>

#include <string>

#include "base/result.h"

namespace vremote::control {

// Fails with ENAMETOOLONG when the path does not fit.
Result<sockaddr_un> socket_address(const std::string& path);

// As ControlServer::start() would find the place, in its words; makes nothing. A node that runs is
// no mistake.
Status check_socket_place(const std::string& path);

}  // namespace vremote::control
