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
#include "control/client.h"
#include "control/status.h"
#include "net/key_ring.h"
#include "node/config/config.h"

namespace vremote::cli {
namespace {

constexpr size_t kTextMax = 4096;

struct Options {
  std::string config;
  std::string guest;
  bool force = false;
};

int complained(const std::string& sentence, int status = kExitFailed) {
  return complain("cluster", sentence, status);
}

std::string describe(const net::KeyRing& keys) {
  const net::ClusterKey& key = keys.newest();
  std::string out = fmt::format("cluster {}, {}{}key {}", key.cluster(),
                                key.is_guest() ? fmt::format("guest {}, ", key.guest()) : "",
                                keys.keys().size() > 1 ? "new " : "", key.check());
  if (keys.keys().size() > 1) out += fmt::format(", old key {}", keys.keys().back().check());
  return out;
}

// A node that runs goes on with the keys in its file.
int tell_node(const node::Config& config) {
  auto reply = control::control_query(config.control_socket, "keys");
  if (reply) {
    fmt::print("node {} uses it from now on\n", config.node);
    return 0;
  }
  // Told by the node itself: it runs, and has not done it.
  if (reply.error().code == EREMOTEIO) return complained(reply.error().what);
  fmt::print("node {} does not run here ({}): it uses it from its start on\n", config.node,
             reply.error().what);
  return 0;
}

// A step of a change of keys, and what comes next.
int change(const node::Config& config, const net::KeyRing& keys, const char* next = "") {
  if (auto replaced = net::replace_key_file(config.cluster_key, keys); !replaced)
    return complained(replaced.error().what);
  fmt::print("{}: changed; {}\n", config.cluster_key, describe(keys));
  const int status = tell_node(config);
  tell_error(next);
  return status;
}

int init(const node::Config& config) {
  auto key = net::ClusterKey::generate(config.cluster);
  if (!key) return complained(key.error().what);
  if (auto written = net::write_key_file(config.cluster_key, *key); !written)
    return complained(written.error().what);
  fmt::print("{}: made; {}\n", config.cluster_key, describe(*key));
  return 0;
}

// The keys of a member.
Result<net::KeyRing> members_keys(const node::Config& config, const char* to_do) {
  VR_TRY(keys, node::load_key(config));
  if (keys.newest().is_guest())
    return fail(EPERM, fmt::format("{} is a guest's key; {} on a node that has the cluster's",
                                   config.cluster_key, to_do));
  return keys;
}

int invite(const node::Config& config, const std::string& guest) {
  auto keys = members_keys(config, "invite");
  if (!keys) return complained(keys.error().what, kExitUsage);
  if (!guest.empty()) {
    // What no node can be called, nobody could join with.
    const net::KeyRing own = keys->for_guest(guest);
    if (!net::KeyRing::parse(own.text()))
      return complained(fmt::format("'{}' is no valid name of a node", guest), kExitUsage);
    fmt::print("{}", own.text());
  } else {
    fmt::print("{}", keys->text());
  }
  // Not into the pipe to the other node.
  tell_error(fmt::format(
      "vremote cluster: the {} secret; type 'vremote cluster join' on {} and give it {}\n",
      keys->keys().size() > 1 ? "lines are" : "line is", guest.empty() ? "the new node" : guest,
      keys->keys().size() > 1 ? "both" : "this line"));
  return 0;
}

// All of standard input; at a terminal up to an empty line.
Result<std::string> read_text() {
  const bool terminal = ::isatty(STDIN_FILENO) == 1;
  if (terminal) tell_error("Paste what 'vremote cluster invite' printed, then an empty line: ");
  std::string text;
  char c = 0;
  while (text.size() < kTextMax) {
    const ssize_t n = ::read(STDIN_FILENO, &c, 1);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail(errno, fmt::format("standard input: {}", std::strerror(errno)));
    if (n == 0 || (terminal && c == '\n' && (text.empty() || text.back() == '\n'))) break;
    text.push_back(c);
  }
  return text;
}

int join(const node::Config& config) {
  auto text = read_text();
  if (!text) return complained(text.error().what);
  if (text->find_first_not_of(" \t\r\n") == std::string::npos)
    return complained("standard input is empty: has 'vremote cluster invite' failed?", kExitUsage);
  auto keys = net::KeyRing::parse(*text);
  std::string& secret = *text;
  OPENSSL_cleanse(secret.data(), secret.size());
  if (!keys) return complained("standard input " + keys.error().what, kExitUsage);
  const net::ClusterKey& key = keys->newest();
  if (key.cluster() != config.cluster)
    return complained(
        fmt::format("the key is of cluster '{}' and {} says '{}'; write name = \"{}\" below "
                    "[cluster]",
                    key.cluster(), config.file, config.cluster, key.cluster()),
        kExitUsage);
  if (key.is_guest() && key.guest() != config.node)
    return complained(
        fmt::format("the key is for the guest '{}' and {} says node = \"{}\"; ask for "
                    "one for '{}'",
                    key.guest(), config.file, config.node, config.node),
        kExitUsage);
  auto written = net::write_key_file(config.cluster_key, *keys);
  if (written) {
    fmt::print("{}: joined; {}\n", config.cluster_key, describe(*keys));
    return tell_node(config);
  }
  if (written.error().code != EEXIST) return complained(written.error().what);
  auto there = net::read_key_file(config.cluster_key);
  if (there && *there == *keys) {
    fmt::print("{}: has it already; {}\n", config.cluster_key, describe(*keys));
    return tell_node(config);
  }
  // A step of a change of keys: whoever sent these has what this node has, and more or less.
  if (!there || !there->shares_a_key_with(*keys))
    return complained(fmt::format("{}: another key is there{}; remove it first", config.cluster_key,
                                  there ? " (" + describe(*there) + ")" : ""));
  return change(config, *keys);
}

int renew(const node::Config& config) {
  auto keys = members_keys(config, "renew it");
  if (!keys) return complained(keys.error().what, kExitUsage);
  auto next = keys->renewed();
  if (!next)
    return complained(fmt::format("{}: {}", config.cluster_key, next.error().what), kExitUsage);
  return change(
      config, *next,
      "vremote cluster: now 'invite' here and 'join' on every other node, then 'retire' here\n");
}

// Who would be a stranger without the old key, as far as this node knows.
Status ready_to_retire(const node::Config& config) {
  auto reply = control::control_query(config.control_socket, "status");
  if (!reply && (reply.error().code == ENOENT || reply.error().code == ECONNREFUSED))
    return {};  // it does not run, and is nobody's to ask
  if (!reply) return std::unexpected(reply.error());
  VR_TRY(status, control::status_from_json(*reply));
  status.peers.insert(status.peers.end(), status.visitors.begin(), status.visitors.end());
  for (const control::PeerStatus& peer : status.peers) {
    if (!peer.connected)
      return fail(
          EBUSY, fmt::format("node {} is not connected, and may have the old key only", peer.name));
    if (peer.older_key)
      return fail(EBUSY, fmt::format("node {} still speaks by the old key; 'vremote cluster join' "
                                     "there (it is followed within some seconds)",
                                     peer.name));
  }
  return {};
}

int retire(const node::Config& config, bool force) {
  auto keys = members_keys(config, "retire the old one");
  if (!keys) return complained(keys.error().what, kExitUsage);
  if (keys->keys().size() < 2)
    return complained(fmt::format("{}: there is no old key beside {}; 'vremote cluster renew' "
                                  "makes a new one",
                                  config.cluster_key, keys->newest().check()),
                      kExitUsage);
  if (auto ready = ready_to_retire(config); !ready && !force)
    return complained(ready.error().what +
                      "; --force does it all the same, and that node must "
                      "'join' anew");
  return change(config, keys->without_older(),
                "vremote cluster: now 'invite' here and 'join' on every other node\n");
}

int show(const node::Config& config) {
  auto keys = node::load_key(config);
  if (!keys) return complained(keys.error().what, kExitUsage);
  fmt::print("{}\n", describe(*keys));
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
      "Whoever has the line is a member: carry it as you would carry a password.\n"
      "The key is changed while all nodes run: renew, on one node; invite there and join on each\n"
      "other; retire, on the first; invite and join again.");
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
  CLI::App* invitation = add("invite", "Print what 'join' reads: a line for each key", [options] {
    return with_config(*options, [&](const node::Config& c) { return invite(c, options->guest); });
  });
  invitation
      ->add_option(
          "--guest", options->guest,
          "Only the key of the node NAME: it can claim no other name, and speaks only with "
          "nodes that have the cluster's key")
      ->type_name("NAME");
  add("join", "Read that from standard input and keep it as this node's key",
      [options] { return with_config(*options, join); });
  add("renew", "Make a new key beside the old: this node shows the new one and takes both",
      [options] { return with_config(*options, renew); });
  CLI::App* retirement =
      add("retire", "Drop the old of two keys: whoever has only that one is a stranger", [options] {
        return with_config(*options,
                           [&](const node::Config& c) { return retire(c, options->force); });
      });
  retirement->add_flag("--force", options->force,
                       "Also when a node is not connected, or still uses the old key");
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
