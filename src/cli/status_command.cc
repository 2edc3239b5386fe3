// vremote status: what a running node tells of itself.
#include <fmt/format.h>
#include <poll.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <memory>

#include "cli/commands.h"
#include "control/blocked.h"
#include "control/client.h"
#include "control/status.h"

namespace vremote::cli {
namespace {

struct Options {
  std::string config;
  bool json = false;
  bool blocked = false;
  bool watch = false;
  double interval = 1;
};

Result<std::string> one_status(const std::string& socket, bool json, bool blocked) {
  if (blocked) {
    VR_TRY(reply, control::control_query(socket, "blocked"));
    if (json) return reply + "\n";
    VR_TRY(waits, control::blocked_from_json(reply));
    return control::blocked_table(waits);
  }
  VR_TRY(reply, control::control_query(socket, "status"));
  if (json) return reply + "\n";
  VR_TRY(status, control::status_from_json(reply));
  return control::status_table(status);
}

int watch(const Options& options, const std::string& socket) {
  const bool screen = ::isatty(STDOUT_FILENO) == 1 && !options.json;
  for (;;) {
    auto text = one_status(socket, options.json, options.blocked);
    if (screen) fmt::print("\033[H\033[2J");
    if (text) {
      fmt::print("{}", *text);
    } else {
      complain("status", text.error().what, kExitFailed);  // and goes on: nodes come back
    }
    if (!screen && !options.json) fmt::print("\n");
    if (std::fflush(stdout) != 0) return kExitFailed;
    ::poll(nullptr, 0, static_cast<int>(options.interval * 1000));
  }
}

int run(const Options& options) {
  auto socket = control_socket_for(options.config);
  if (!socket) return complain("status", socket.error().what, kExitUsage);
  if (options.watch) return watch(options, *socket);
  auto text = one_status(*socket, options.json, options.blocked);
  if (!text) return complain("status", text.error().what, kExitFailed);
  fmt::print("{}", *text);
  return 0;
}

}  // namespace

void add_status_command(CLI::App& app, Context& context) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("status");
  command->description(
      "Show what a running node is doing: peers, exports, leases, counters, latencies\n"
      "Asks the node's control socket; it answers also when its mount is stuck.");
  command->add_option("--config", options->config, "The configuration of the running node")
      ->envname("VREMOTE_CONFIG")
      ->type_name("FILE");
  command->add_flag("--blocked", options->blocked,
                    "Show only who waits: file, range, node and process waited for, how long");
  command->add_flag("--json", options->json, "Print one line of JSON");
  command->add_flag("--watch", options->watch, "Repeat until interrupted");
  command->add_option("--interval", options->interval, "Seconds between two looks of --watch")
      ->check(check_seconds)
      ->capture_default_str()
      ->type_name("SECONDS");
  command->footer(
      "Examples:\n"
      "  vremote status --config /etc/vremote/node.toml\n"
      "  vremote status --watch\n"
      "  vremote status --blocked\n"
      "  vremote status --json | python3 -m json.tool");
  command->callback([options, &context] { context.action = [options] { return run(*options); }; });
}

}  // namespace vremote::cli
