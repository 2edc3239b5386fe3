// What a start of the node would find on this machine, in its words, without starting anything.
#pragma once

#include "node/config/config.h"

namespace vremote::cli {

// Of a configuration that is good in itself (load_config()). A node that runs with it is no
// mistake.
Status check_start(const node::Config& config);

}  // namespace vremote::cli
