// vremote node: the daemon of one node, in the foreground.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>

#include "cli/commands.h"
#include "cli/start_check.h"
#include "node/config/config.h"
#include "node/handover/handover_version.h"

namespace vremote::cli {
namespace {

struct Options {
  std::string config;
  bool example = false;
  bool check = false;
  bool handover_check = false;
  int take_over = -1;
};

int run(const Options& options, const Runners& runners) {
  if (options.example) {
    fmt::print("{}", node::config_example());
    return 0;
  }
  if (options.config.empty())
    return complain("node",
                    "no configuration; name it with --config FILE or VREMOTE_CONFIG "
                    "(--print-config-example shows one)",
                    kExitUsage);
  if (options.check || options.handover_check) {
    const auto who = options.check ? CheckFor::People : CheckFor::Start;
    if (auto fit = check_start(options.config, who); !fit)
      return complain("node", fit.error().what, kExitUsage);
    if (options.check) {
      fmt::print("{}: good\n", options.config);
    } else {
      fmt::print("{} {}\n", node::kHandoverWord, node::kHandoverVersion);
    }
    return 0;
  }
  auto config = node::load_config(options.config);
  if (!config) return complain("node", config.error().what, kExitUsage);
  return runners.run_node(*config, options.take_over);
}

}  // namespace

void add_node_command(CLI::App& app, Context& context) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("node");
  command->description(
      "Run the daemon of one node, in the foreground, until SIGTERM or SIGINT\n"
      "It mounts the shared namespace and serves this machine's exports; at the end it unmounts.");
  command->add_option("--config", options->config, "The node's configuration, node.toml")
      ->envname("VREMOTE_CONFIG")
      ->type_name("FILE");
  command->add_flag("--check", options->check,
                    "Only check the configuration, and whether it could start");
  command->add_flag("--print-config-example", options->example,
                    "Print a commented configuration to start from");
  // How a daemon asks another program whether it can take over, and has it do so (vremote upgrade).
  // Not for people.
  command->add_flag("--handover-check", options->handover_check)->group("");
  command->add_option("--take-over", options->take_over)->check(CLI::Range(3, 1 << 30))->group("");
  command->footer(
      "Examples:\n"
      "  mkdir -p /etc/vremote /vremote\n"
      "  vremote node --print-config-example > /etc/vremote/node.toml\n"
      "  vremote node --config /etc/vremote/node.toml --check\n"
      "  vremote node --config /etc/vremote/node.toml");
  command->callback([options, &context] {
    context.action = [options, &context] { return run(*options, context.runners); };
  });
}

}  // namespace vremote::cli
