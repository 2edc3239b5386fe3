// What `vremote status` and the others ask this node.
#include "control/server.h"
#include "intercept/namespace_json.h"
#include "node/node.h"

namespace vremote::node {

using namespace coherence;

Status NodeDaemon::start_control() {
  control::Access access{.mode = config_.control_mode,
                         .group = {},
                         // What only tells. What changes something, or names files of others
                         // ("blocked"), is for the node's user.
                         .open_requests = {"ping", "status", "namespace"}};
  if (!config_.control_group.empty()) {
    VR_TRY(group, group_number(config_.control_group));
    access.group = group;
  }
  auto server = control::ControlServer::start(
      config_.control_socket, [this](const std::string& request) { return control(request); },
      std::move(access));
  if (!server && server.error().code == EAGAIN)
    return std::unexpected(server.error());  // no thread
  if (!server)
    return bad_key(config_.control_socket == config_.state_dir + "/control.sock" ? "state_dir"
                                                                                 : "control.socket",
                   server.error());
  control_ = std::move(*server);
  return {};
}

std::string NodeDaemon::control(const std::string& request) {
  auto name = control::request_name(request);
  if (!name) return control::error_reply(name.error().what);
  if (*name == "ping") return "{\"pong\":true}";
  if (*name == "upgrade_state") return upgrade_state();
  if (!ready_) {
    if (*name == "status")
      return control::to_json(control::NodeStatus{
          .node = config_.node, .cluster = config_.cluster, .mount = config_.mount});
    return control::error_reply("the node is starting or ending");
  }
  if (*name == "status") return control::to_json(status());
  if (*name == "namespace") return namespace_json();
  if (*name == "blocked") return blocked();
  if (*name == "upgrade") return ask_upgrade(request);
  if (*name == "keys") return reload_keys();
  return control::error_reply(
      "unknown request '" + *name +
      "'; known are status, blocked, namespace, upgrade, upgrade_state, keys and ping");
}

std::string NodeDaemon::namespace_json() const {
  intercept::Namespace names;
  names.mount = config_.mount;
  for (const ExportConfig& e : config_.exports) names.exports.push_back({e.name, e.path, true});
  for (const auto& peer : peers_) {
    std::lock_guard lock(peer->mutex);
    for (const wire::Export& e : peer->exports) names.exports.push_back({e.name, e.path, false});
  }
  return intercept::to_json(names);
}

}  // namespace vremote::node
