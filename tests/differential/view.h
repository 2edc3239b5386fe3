// What a tree looks like from outside: names, kinds, attributes, links, content.
#pragma once

#include <string>

#include "differential/step.h"

namespace vremote::differential {

// One line for a name: its attributes, or why there are none.
std::string view_of_name(const Side& side, const std::string& name);
// A line for each descriptor, and for each name below the side's root with content and inode
// numbers (as the order in which they come).
std::string view_of_all(const Side& side);

}  // namespace vremote::differential
