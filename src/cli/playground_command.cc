// vremote playground: the command line of playground.h.
#include <CLI/CLI.hpp>
#include <memory>

#include "cli/commands.h"
#include "cli/playground.h"
#include "cli/playground_plan.h"

namespace vremote::cli {

void add_playground_command(CLI::App& app, Context& context) {
  auto options = std::make_shared<PlaygroundOptions>();
  CLI::App* command = app.add_subcommand("playground");
  command->description(
      "Run a whole cluster on this machine, in the foreground, until ^C or SIGTERM\n"
      "Node i keeps everything in DIR/node<i>: the directory it shares in export, the namespace "
      "of\n"
      "all nodes in mnt, its configuration in node.toml, its log in log. DIR is made when "
      "missing;\n"
      "an existing one keeps its data. When every node is ready and connected, DIR/ready appears\n"
      "(one line of JSON); it goes at the end.");
  command->add_option("--nodes", options->nodes, "How many nodes")
      ->check(CLI::Range(1u, kPlaygroundNodesMax))
      ->capture_default_str()
      ->type_name("N");
  command->add_option("--dir", options->dir, "Where everything is kept")
      ->required()
      ->check([](const std::string& dir) {
        return dir.empty() ? std::string("the name is empty: give a directory") : std::string();
      })
      ->type_name("DIR");
  command
      ->add_option("--base-port", options->base_port,
                   "Node i listens on 127.0.0.1, port P + i - 1; by default free ports are found")
      ->check(CLI::Range(1, 65535))
      ->type_name("P");
  command->add_flag(
      "--plain", options->plain,
      "No TLS between the nodes; by default they have a key, kept in DIR/cluster.key");
  command->add_option("--wait", options->wait_seconds, "How long the nodes may take to get ready")
      ->check(check_seconds)
      ->capture_default_str()
      ->type_name("SECONDS");
  command->footer(
      "Examples:\n"
      "  vremote playground --nodes 2 --dir /tmp/play\n"
      "  echo hello > /tmp/play/node1/mnt/node1/hello.txt   # in another terminal\n"
      "  cat /tmp/play/node2/mnt/node1/hello.txt\n"
      "  cd /tmp/play/node1/export && vremote run --config /tmp/play/node2/node.toml -- ./program");
  command->callback(
      [options, &context] { context.action = [options] { return run_playground(*options); }; });
}

}  // namespace vremote::cli
