// A directory of this process's own, gone at its end.
#pragma once

#include <string>

namespace vremote::fuzz {

const std::string& scratch();

}  // namespace vremote::fuzz
