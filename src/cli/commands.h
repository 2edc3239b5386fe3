// The subcommands of `vremote`, one file each.
//
// Exit statuses: 0 done, 1 it failed while running, 2 wrong use or configuration; `run` ends as its
// command ends.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/result.h"

namespace CLI {
class App;
}
namespace vremote::node {
struct Config;
}

namespace vremote::cli {

inline constexpr int kExitFailed = 1;
inline constexpr int kExitUsage = 2;

// What main() hands in, so that tests can start this whole program around another node.
struct Runners {
  // Blocks until SIGTERM or SIGINT; returns the exit status. `handover`: of --take-over, or -1.
  std::function<int(const node::Config&, int handover)> run_node;
};

struct Context {
  const Runners& runners;
  std::vector<std::string> command;  // what follows "--"
  bool has_command = false;          // there was a "--"
  std::function<int()> action;       // set by the subcommand that was named
};

void add_cluster_command(CLI::App& app, Context& context);
void add_node_command(CLI::App& app, Context& context);
void add_playground_command(CLI::App& app, Context& context);
void add_recover_command(CLI::App& app, Context& context);
void add_run_command(CLI::App& app, Context& context);
void add_status_command(CLI::App& app, Context& context);
void add_upgrade_command(CLI::App& app, Context& context);
void add_version_command(CLI::App& app, Context& context);

// The whole command line, for run_cli() and for the test that holds the manual page against it.
void build_app(CLI::App& app, Context& context);

// main(), less the process: parses, runs, returns the exit status.
int run_cli(int argc, const char* const* argv, const Runners& runners);

// For CLI::Option::check: empty when it is a number of seconds from 0.1 to 3600.
std::string check_seconds(const std::string& text);

// To standard error, come what may: where nobody can be told, that cannot be told either.
// (fmt::print throws.)
void tell_error(const std::string& text);

// "vremote SUBCOMMAND: sentence" on stderr; returns `status`.
int complain(const char* subcommand, const std::string& sentence, int status);

// The control socket of the node that `config_file` configures; with an empty name that of
// VREMOTE_CONTROL or the default.
Result<std::string> control_socket_for(const std::string& config_file);

}  // namespace vremote::cli
