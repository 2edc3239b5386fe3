// The program that a daemon is about to become.
#pragma once

#include <string>
#include <vector>

#include "base/result.h"
#include "node/config/config.h"

namespace vremote::node {

// Runs `binary` to hear whether it can take over from this program, with this configuration. The
// Error is one line for people. Bounded in time.
Status check_new_program(const std::string& binary, const Config& config);
// What may not change under a mount in use: the keys of the file, as it is now, that differ from
// those this daemon was started with.
Status check_same_config(const Config& running);
// What may, and does nothing, or not all, before the node is restarted: these keys, as text.
std::string keys_of_a_restart(const Config& running);
// Becomes it; returns only when that is not possible, and all is as before. `keep`: descriptors
// that stay open; `memory`: of the record, too.
Error become(const std::string& binary, const Config& config, const std::vector<int>& keep,
             int memory);

}  // namespace vremote::node
