// vremote run -- CMD: a program whose open() calls with O_REMOTE mean the shared namespace.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>

#include "cli/commands.h"
#include "control/client.h"
#include "intercept/namespace_json.h"
#include "intercept/supervisor.h"

namespace vremote::cli {
namespace {

struct Options {
  std::string config;
  bool allow_io_uring = false;
};

// The parser does not know of the command: it is cut off before (app.cc).
class UsageWithCommand : public CLI::Formatter {
 public:
  std::string make_usage(const CLI::App*, std::string) const override {
    return "Usage: vremote run [OPTIONS] -- CMD [ARG...]\n";
  }
};

Result<intercept::Namespace> ask_node(const std::string& socket) {
  VR_TRY(reply, control::control_query(socket, "namespace"));
  return intercept::namespace_from_json(reply);
}

int run(const Options& options, const std::vector<std::string>& argv) {
  auto socket = control_socket_for(options.config);
  if (!socket) return complain("run", socket.error().what, kExitUsage);
  auto names = ask_node(*socket);
  if (!names) return complain("run", names.error().what, kExitFailed);
  intercept::RunOptions request;
  request.argv = argv;
  request.names = *std::move(names);
  request.reload = [path = *socket] { return ask_node(path); };
  request.allow_io_uring = options.allow_io_uring;
  auto status = intercept::run(request);
  if (!status) return complain("run", status.error().what, kExitFailed);
  return *status;
}

}  // namespace

void add_run_command(CLI::App& app, Context& context) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("run");
  command->description(
      "Run CMD so that its open(2) calls with O_REMOTE open files of the shared namespace\n"
      "Everything else runs at full speed; threads, children and exec included.\n"
      "  O_REMOTE             the same path as on the file's origin, or a path under the mount\n"
      "  O_REMOTE | O_ORIGIN  a file of this machine's own exports");
  command->formatter(std::make_shared<UsageWithCommand>());
  command->add_option("--config", options->config, "The configuration of the running node")
      ->envname("VREMOTE_CONFIG")
      ->type_name("FILE");
  command->add_flag(
      "--allow-io-uring", options->allow_io_uring,
      "Let CMD use io_uring, whose opens are not seen: O_REMOTE is silently ignored there");
  command->footer(
      "Examples:\n"
      "  vremote run --config /etc/vremote/node.toml -- ./reader hello.txt\n"
      "  VREMOTE_CONFIG=/etc/vremote/node.toml vremote run -- make test\n\n"
      "Exit status: that of CMD; 126 when it cannot be executed, 127 when it is not found.");
  // So that a forgotten "--" is told as such.
  command->allow_extras();
  command->callback([options, command, &context] {
    context.action = [options, command, &context] {
      if (const auto extras = command->remaining(); !extras.empty())
        return complain(
            "run",
            fmt::format("put `--` before the command: vremote run -- {}", fmt::join(extras, " ")),
            kExitUsage);
      if (context.command.empty())
        return complain("run", "no command; write it after --: vremote run -- CMD [ARG...]",
                        kExitUsage);
      return run(*options, context.command);
    };
  });
}

}  // namespace vremote::cli
