// The address of a unix socket from its path, for both ends.
#pragma once

#include <sys/socket.h>
#include <sys/un.h>

#include <string>

#include "base/result.h"

namespace vremote::control {

// Fails with ENAMETOOLONG when the path does not fit.
Result<sockaddr_un> socket_address(const std::string& path);

}  // namespace vremote::control
