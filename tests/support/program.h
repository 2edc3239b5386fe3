// Programs that a test runs to their end.
#pragma once

#include <string>
#include <vector>

namespace vremote::live {

struct Ended {
  int status = 0;    // exit status; -1: a signal ended it
  std::string text;  // standard output and error
};

// `arguments`: what main() gets, the name first. Everything in `input` must fit into a pipe.
Ended run_program(const std::string& path, std::vector<std::string> arguments,
                  const std::string& input = {});

}  // namespace vremote::live
