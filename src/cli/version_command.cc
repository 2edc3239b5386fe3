// vremote version
#include <fmt/format.h>
#include <sys/utsname.h>

#include <CLI/CLI.hpp>

#include "cli/commands.h"

namespace vremote::cli {

void add_version_command(CLI::App& app, Context& context) {
  CLI::App* command =
      app.add_subcommand("version", "Print the version of this program and of the kernel");
  command->callback([&context] {
    context.action = [] {
      utsname kernel{};
      ::uname(&kernel);
      fmt::print("vremote {}\nkernel {} {}\n", VREMOTE_VERSION, kernel.sysname, kernel.release);
      return 0;
    };
  });
}

}  // namespace vremote::cli
