// What can be told about a process that does not come back from the kernel.
#pragma once

#include <string>

namespace vremote::live {

// Its state, kernel stack and pending system call, of all its threads.
std::string where_it_hangs(int pid);

}  // namespace vremote::live
