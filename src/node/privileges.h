// What root's daemon keeps of root.
//
// It acts in the names of others, on files of all owners, and mounts: it needs much. It does not
// need the rest, and nothing that it or a child of it executes can get it back.
#pragma once

#include <string>
#include <vector>

namespace vremote::node {

struct KeptCapability {
  int number = 0;
  const char* name = nullptr;
  const char* why = nullptr;
};
const std::vector<KeptCapability>& kept_capabilities();

// Gives up all other capabilities, for good (bounding set, no_new_privs), as far as the process has
// them. Before the first thread: capabilities are a thread's. Empty, or what could not be given up.
// Does nothing for others than root, who have nothing to give up, and may need a set-user-ID helper
// to mount.
std::string drop_privileges();

}  // namespace vremote::node
