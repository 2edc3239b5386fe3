// A small `vremote run` for the tests: run_tool MOUNT [--io-uring] [--mounted] NAME=PATH|NAME:PATH
// … -- CMD…
// ("=" for an export of this node, ":" for one of another).
#include <fmt/format.h>

#include <cstring>
#include <string>

#include "intercept/supervisor.h"

using namespace vremote::intercept;

int main(int argc, char** argv) {
  RunOptions options;
  options.require_mount = false;
  int i = 1;
  if (i < argc) options.names.mount = argv[i++];
  for (; i < argc && std::strcmp(argv[i], "--") != 0; ++i) {
    std::string word = argv[i];
    if (word == "--io-uring") {
      options.allow_io_uring = true;
    } else if (word == "--mounted") {
      options.require_mount = true;
    } else if (word == "--reload") {
      // A peer that connects after the start.
      options.reload = [names = options.names]() -> vremote::Result<Namespace> {
        Namespace more = names;
        more.exports.push_back({"late", "/late/export", false});
        return more;
      };
    } else if (size_t at = word.find_first_of("=:"); at != std::string::npos) {
      options.names.exports.push_back({word.substr(0, at), word.substr(at + 1), word[at] == '='});
    }
  }
  for (++i; i < argc; ++i) options.argv.push_back(argv[i]);
  auto status = run(options);
  if (status) return *status;
  fmt::print(stderr, "run_tool: {} ({})\n", status.error().what,
             strerrorname_np(status.error().code));
  return 1;
}
