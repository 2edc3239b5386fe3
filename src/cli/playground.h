// vremote playground: a whole cluster on this machine, in one foreground command.
#pragma once

#include <cstdint>
#include <string>

namespace vremote::cli {

struct PlaygroundOptions {
  std::string dir;
  unsigned nodes = 2;
  uint16_t base_port = 0;    // 0: whichever ports are free
  bool plain = false;        // no TLS between the nodes
  double wait_seconds = 60;  // until all nodes must be ready
};

// Starts the nodes, waits until every one is ready and knows all the others, says so, and stays
// until SIGINT, SIGTERM or SIGHUP (returns 0) or until a node ends by itself (returns 1). In every
// case, all nodes are ended and their mounts gone on return.
int run_playground(const PlaygroundOptions& options);

}  // namespace vremote::cli
