#include "cli/commands.h"
#include "node/daemon.h"

int main(int argc, char** argv) {
  const vremote::cli::Runners runners{.run_node = [](const vremote::node::Config& config) {
    return vremote::node::run_node(config);
  }};
  return vremote::cli::run_cli(argc, argv, runners);
}
