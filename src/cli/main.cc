#include <fcntl.h>
#include <unistd.h>

#include <csignal>

#include "cli/commands.h"
#include "node/daemon.h"

namespace {

// Whoever starts us may have closed standard descriptors; then the next socket or file would get
// that number, and be read as input or written to as a log. What stands there instead still fails
// as a closed one does, but for standard error, which nobody checks; and a command that we execute
// finds it closed.
void fill_standard_descriptors() {
  constexpr int kModes[] = {O_WRONLY, O_RDONLY, O_RDWR};
  for (int fd = 0; fd < 3; ++fd)  // open() takes the lowest free number
    if (::fcntl(fd, F_GETFD) < 0 && ::open("/dev/null", kModes[fd] | O_CLOEXEC) != fd) ::_exit(1);
}

}  // namespace

int main(int argc, char** argv) {
  fill_standard_descriptors();
  // A file that may not grow (ulimit -f) is an error, not a death without a word. A program that is
  // executed from here has the usual back: what is ignored would stay so.
  std::signal(SIGXFSZ, [](int) {});
  const vremote::cli::Runners runners{
      .run_node = [](const vremote::node::Config& config, int handover) {
        return vremote::node::run_node(config, {}, handover);
      }};
  return vremote::cli::run_cli(argc, argv, runners);
}
