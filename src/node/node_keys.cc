// The keys by which a node speaks with others, and their change while it runs.
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <nlohmann/json.hpp>

#include "control/server.h"
#include "net/tls.h"
#include "node/node.h"

namespace vremote::node {
namespace {

std::string describe(const net::KeyRing& keys) {
  const net::ClusterKey& key = keys.newest();
  std::string out = fmt::format("cluster {}, {} {}", key.cluster(),
                                key.is_guest() ? "guest key" : "key", key.check());
  if (keys.keys().size() > 1)
    out += fmt::format(", and {} until 'vremote cluster retire'", keys.keys().back().check());
  return out;
}

}  // namespace

Status NodeDaemon::start_tls() {
  if (!config_.tls) return {};
  VR_TRY(keys, load_key(config_));
  spdlog::info("connections are encrypted: {}", describe(keys));
  VR_TRY(tls, net::Tls::make(std::move(keys), config_.node));
  tls_ = std::move(tls);
  return {};
}

// Connections that are not of the newest key are made anew within a moment; sessions go on.
std::string NodeDaemon::reload_keys() {
  if (!tls_) return control::error_reply("the node runs with tls = \"off\" and has no keys");
  auto keys = load_key(config_);
  if (!keys) return control::error_reply(keys.error().what);
  spdlog::info("keys read again: {}", describe(*keys));
  const nlohmann::json reply{{"keys", keys->keys().size()}, {"check", keys->newest().check()}};
  tls_->set_keys(std::move(*keys));
  for (const auto& peer : peers_) peer->session->hurry();
  return reply.dump();
}

}  // namespace vremote::node
