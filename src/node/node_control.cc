// What `vremote status` and the others ask this node.
#include <unistd.h>

#include <algorithm>
#include <array>

#include "control/server.h"
#include "intercept/namespace_json.h"
#include "node/node.h"
#include "node/process_setup.h"

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

control::NodeStatus NodeDaemon::status() const {
  control::NodeStatus s;
  const Instant now = net::EventLoop::now();
  s.node = config_.node;
  s.cluster = config_.cluster;
  s.incarnation = incarnation_;
  s.version = VREMOTE_VERSION;
  s.pid = getpid();
  s.uptime_ms = (now - started_) / 1'000'000;
  s.mount = config_.mount;
  s.tls = config_.tls;
  s.ready = true;
  const auto sessions = server_->sessions();
  std::array<uint64_t, wire::kFrameTypes> messages_in{}, messages_out{};
  for (const auto& peer : peers_) {
    control::PeerStatus p;
    p.name = peer->config.name;
    p.address = to_string(peer->config.address);
    {
      std::lock_guard lock(peer->mutex);
      p.connected = peer->connected;
      p.since_ms = (now - peer->since) / 1'000'000;
      p.last_error = peer->last_error;
    }
    net::LaneStats sum;
    for (const net::LaneStats& lane : peer->session->stats()) sum += lane;
    for (const net::SessionInfo& session : sessions)
      if (session.node_name == p.name)
        for (const net::LaneStats& lane : server_->stats(session.id)) sum += lane;
    p.encrypted = sum.encrypted;
    p.older_key = sum.older_key;
    p.bytes_in = sum.bytes_in;
    p.bytes_out = sum.bytes_out;
    // Messages of the protocol; pings and acknowledgements of the transport count as bytes only.
    for (size_t type = 0; type < wire::kFrameTypes; ++type) {
      const auto frame = static_cast<wire::FrameType>(type);
      if (!wire::is_to_home(frame) && !wire::is_to_agent(frame)) continue;
      p.messages_in += sum.messages_in[type];
      p.messages_out += sum.messages_out[type];
      messages_in[type] += sum.messages_in[type];
      messages_out[type] += sum.messages_out[type];
    }
    s.peers.push_back(std::move(p));
  }
  const HomeCounts home = home_->counts();
  for (size_t i = 0; i < config_.exports.size(); ++i)
    s.exports.push_back({config_.exports[i].name, config_.exports[i].path,
                         home_->store_counts(i).known, sessions.size(),
                         outside_->why_not(i).empty(), outside_->why_not(i)});
  AgentStatistics statistics;
  AgentCounts counts;
  for (AgentService* agent : agents()) {
    counts += agent->counts();
    statistics += agent->statistics();
  }
  s.leases.shared = {counts.shared_ranges, counts.shared_pages};
  s.leases.exclusive = {counts.exclusive_ranges, counts.exclusive_pages};
  s.dirty_bytes += counts.dirty_bytes;
  s.leases.granted_shared = {home.shared_ranges, home.shared_pages};
  s.leases.granted_exclusive = {home.exclusive_ranges, home.exclusive_pages};
  s.resident_ranges = counts.resident_pages;
  control::add_metrics(metrics_, s);
  auto set = [&](std::string_view name, uint64_t value) {
    for (auto& [key, counter] : s.counters) {
      if (key != name) continue;
      counter = value;
      return;
    }
    s.counters.emplace_back(name, value);
  };
  set("fills", statistics.fills);
  set("direct_reads", statistics.direct_reads);
  set("direct_writes", statistics.direct_writes);
  set("write_backs", statistics.write_backs);
  set("hits_without_message",
      statistics.hits_without_message + metrics_.get(Counter::HitsWithoutMessage));
  set("recalls_received", statistics.recalls);
  set("purges", statistics.purges);
  set("size_pushes", statistics.size_pushes);
  set("size_announcements", statistics.announcements);
  set("fetches", statistics.fetches);
  set("flushes", statistics.flushes);
  set("flush_bytes", statistics.flush_bytes);
  set("lease_requests", statistics.lease_requests);
  set("void_fetches", statistics.void_fetches);
  set("write_backs_without_exclusive", statistics.write_backs_without_exclusive);
  set("resident_pages", counts.resident_pages);
  set("requests_waiting", counts.waiting);
  set("leases_suspended", counts.suspended);
  set("lease_suspensions", statistics.suspensions);
  set("rescued_bytes", statistics.rescued_bytes);
  set("guarded", guardian_ != nullptr && guardian_->guarded() ? 1 : 0);
  set("recovery_files", recovery_->files());
  set("outside_overflows", outside_->overflows());
  set("home_files", home.files);
  set("home_leases", home.leases);
  set("home_leases_taken_back", home.taken_back);
  set("home_open_files", home.open);
  set("home_opens_refused", home.opens_refused);
  set("home_requests_waiting", home.waiting);
  set("home_recalls_pending", home.recalls);
  const HomeService::LockCounts locks = home_->lock_counts();
  set("home_locks", locks.held);
  set("home_locks_waiting", locks.waiting);
  set("kernel_inodes", inodes_.size());
  set("purge_threads", purge_threads_->threads());
  const KernelNames::Counts names = kernel_names_->counts();
  set("kernel_names", names.names);
  set("kernel_name_expiries", names.expiries);
  set("kernel_name_epochs", names.epochs);
  for (size_t type = 0; type < wire::kFrameTypes; ++type) {
    const auto frame = static_cast<wire::FrameType>(type);
    if (!wire::is_to_home(frame) && !wire::is_to_agent(frame)) continue;
    std::string name = wire::to_string(frame);
    std::replace(name.begin(), name.end(), ' ', '_');
    std::replace(name.begin(), name.end(), '-', '_');
    set("messages_in_" + name, messages_in[type]);
    set("messages_out_" + name, messages_out[type]);
  }
  return s;
}

}  // namespace vremote::node
