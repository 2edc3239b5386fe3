// vremote cluster: the key that makes nodes members of a cluster.
#include <fmt/format.h>
#include <openssl/crypto.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>

#include "base/fd.h"
#include "cli/commands.h"
#include "net/cluster_key.h"
#include "node/config.h"

namespace vremote::cli {
namespace {

constexpr size_t kLineMax = 4096;

struct Options {
  std::string config;
  std::string guest;
};

int complained(const std::string& sentence, int status = kExitFailed) {
  return complain("cluster", sentence, status);
}

std::string describe(const net::ClusterKey& key) {
  return key.is_guest()
             ? fmt::format("cluster {}, guest {}, key {}", key.cluster(), key.guest(), key.check())
             : fmt::format("cluster {}, key {}", key.cluster(), key.check());
}

int init(const node::Config& config) {
  auto key = net::ClusterKey::generate(config.cluster);
  if (!key) return complained(key.error().what);
  if (auto written = net::write_key_file(config.cluster_key, *key); !written)
    return complained(written.error().what);
  fmt::print("{}: made; {}\n", config.cluster_key, describe(*key));
  return 0;
}

int invite(const node::Config& config, const std::string& guest) {
  auto key = node::load_key(config);
  if (!key) return complained(key.error().what, kExitUsage);
  if (key->is_guest())
    return complained(fmt::format("{} is a guest's key; invite on a node that has the cluster's",
                                  config.cluster_key),
                      kExitUsage);
  if (!guest.empty()) {
    // What no node can be called, nobody could join with.
    const net::ClusterKey own = key->for_guest(guest);
    if (!net::ClusterKey::parse(own.line()))
      return complained(fmt::format("'{}' is no valid name of a node", guest), kExitUsage);
    fmt::print("{}", own.line());
  } else {
    fmt::print("{}", key->line());
  }
  // Not into the pipe to the other node.
  tell_error(fmt::format(
      "vremote cluster: the line is secret; type 'vremote cluster join' on {} and give it "
      "this line\n",
      guest.empty() ? "the new node" : guest));
  return 0;
}

Result<std::string> read_line() {
  if (::isatty(STDIN_FILENO) == 1) tell_error("Paste the line of 'vremote cluster invite': ");
  std::string line;
  char c = 0;
  while (line.size() < kLineMax) {
    const ssize_t n = ::read(STDIN_FILENO, &c, 1);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail(errno, fmt::format("standard input: {}", std::strerror(errno)));
    if (n == 0 || c == '\n') break;
    line.push_back(c);
  }
  return line;
}

int join(const node::Config& config) {
  auto line = read_line();
  if (!line) return complained(line.error().what);
  auto key = net::ClusterKey::parse(*line);
  OPENSSL_cleanse(line->data(), line->size());
  if (!key) return complained("standard input " + key.error().what, kExitUsage);
  if (key->cluster() != config.cluster)
    return complained(
        fmt::format("the key is of cluster '{}' and {} says '{}'; write name = \"{}\" below "
                    "[cluster]",
                    key->cluster(), config.file, config.cluster, key->cluster()),
        kExitUsage);
  if (key->is_guest() && key->guest() != config.node)
    return complained(
        fmt::format("the key is for the guest '{}' and {} says node = \"{}\"; ask for "
                    "one for '{}'",
                    key->guest(), config.file, config.node, config.node),
        kExitUsage);
  auto written = net::write_key_file(config.cluster_key, *key);
  if (!written && written.error().code == EEXIST) {
    auto there = net::read_key_file(config.cluster_key);
    if (there && there->line() == key->line()) {
      fmt::print("{}: has it already; {}\n", config.cluster_key, describe(*key));
      return 0;
    }
    return complained(fmt::format("{}: another key is there{}; remove it first", config.cluster_key,
                                  there ? " (" + describe(*there) + ")" : ""));
  }
  if (!written) return complained(written.error().what);
  fmt::print("{}: joined; {}\n", config.cluster_key, describe(*key));
  return 0;
}

int show(const node::Config& config) {
  auto key = node::load_key(config);
  if (!key) return complained(key.error().what, kExitUsage);
  fmt::print("{}\n", describe(*key));
  return 0;
}

// Everything here needs to know which cluster, and where the key is kept.
int with_config(const Options& options, const std::function<int(const node::Config&)>& run) {
  if (options.config.empty())
    return complained("no configuration; name it with --config FILE or VREMOTE_CONFIG", kExitUsage);
  auto config = node::read_config(options.config);
  if (!config) return complained(config.error().what, kExitUsage);
  return run(*config);
}

}  // namespace

void add_cluster_command(CLI::App& app, Context& context) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("cluster");
  command->description(
      "Make, hand on and show the key of the cluster\n"
      "The first node makes the key (init). Every other gets it by two commands: invite, on a "
      "node\n"
      "that has it, prints a line, and join, on the new one, reads that line from standard input.\n"
      "Whoever has the line is a member: carry it as you would carry a password.");
  command->require_subcommand(1);
  auto add = [&](const char* name, const char* what, std::function<int()> run) {
    CLI::App* sub = command->add_subcommand(name, what);
    sub->add_option("--config", options->config, "The node's configuration, node.toml")
        ->envname("VREMOTE_CONFIG")
        ->type_name("FILE");
    sub->callback([&context, run = std::move(run)] { context.action = run; });
    return sub;
  };
  add("init", "Make a new key, in the file that 'cluster.key' names (mode 0600)",
      [options] { return with_config(*options, init); });
  CLI::App* invitation = add("invite", "Print the line that 'join' reads", [options] {
    return with_config(*options, [&](const node::Config& c) { return invite(c, options->guest); });
  });
  invitation
      ->add_option(
          "--guest", options->guest,
          "Only the key of the node NAME: it can claim no other name, and speaks only with "
          "nodes that have the cluster's key")
      ->type_name("NAME");
  add("join", "Read such a line from standard input and keep it as this node's key",
      [options] { return with_config(*options, join); });
  add("show", "Tell whose key this node has, without showing it; equal checks mean equal keys",
      [options] { return with_config(*options, show); });
  command->footer(
      "Examples:\n"
      "  vremote cluster init --config /etc/vremote/node.toml\n"
      "  ssh node1 vremote cluster invite --config /etc/vremote/node.toml |\n"
      "    vremote cluster join --config /etc/vremote/node.toml\n"
      "  vremote cluster invite --config /etc/vremote/node.toml --guest laptop7\n"
      "  vremote cluster show --config /etc/vremote/node.toml");
}

}  // namespace vremote::cli
