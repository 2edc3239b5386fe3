// The control request "status": what the node is, has, and has done.
#include <unistd.h>

#include <algorithm>
#include <array>

#include "control/status.h"
#include "node/node.h"

namespace vremote::node {

using namespace coherence;

namespace {

using Messages = std::array<uint64_t, wire::kFrameTypes>;

// Of the protocol; pings and acknowledgements of the transport count as bytes only.
template <class Each>
void each_message(Each each) {
  for (size_t type = 0; type < wire::kFrameTypes; ++type) {
    const auto frame = static_cast<wire::FrameType>(type);
    if (wire::is_to_home(frame) || wire::is_to_agent(frame)) each(type, frame);
  }
}

void set(control::NodeStatus& s, std::string_view name, uint64_t value) {
  for (auto& [key, counter] : s.counters) {
    if (key != name) continue;
    counter = value;
    return;
  }
  s.counters.emplace_back(name, value);
}

void add_agents(control::NodeStatus& s, const AgentCounts& counts,
                const AgentStatistics& statistics, const Metrics& metrics) {
  s.leases.shared = {counts.shared_ranges, counts.shared_pages};
  s.leases.exclusive = {counts.exclusive_ranges, counts.exclusive_pages};
  s.dirty_bytes += counts.dirty_bytes;
  s.resident_ranges = counts.resident_pages;
  set(s, "fills", statistics.fills);
  set(s, "direct_reads", statistics.direct_reads);
  set(s, "direct_writes", statistics.direct_writes);
  set(s, "write_backs", statistics.write_backs);
  set(s, "hits_without_message",
      statistics.hits_without_message + metrics.get(Counter::HitsWithoutMessage));
  set(s, "recalls_received", statistics.recalls);
  set(s, "purges", statistics.purges);
  set(s, "size_pushes", statistics.size_pushes);
  set(s, "size_announcements", statistics.announcements);
  set(s, "fetches", statistics.fetches);
  set(s, "flushes", statistics.flushes);
  set(s, "flush_bytes", statistics.flush_bytes);
  set(s, "lease_requests", statistics.lease_requests);
  set(s, "void_fetches", statistics.void_fetches);
  set(s, "write_backs_without_exclusive", statistics.write_backs_without_exclusive);
  set(s, "resident_pages", counts.resident_pages);
  set(s, "requests_waiting", counts.waiting);
  set(s, "leases_suspended", counts.suspended);
  set(s, "lease_suspensions", statistics.suspensions);
}

void add_home(control::NodeStatus& s, const HomeCounts& home,
              const HomeService::LockCounts& locks) {
  s.leases.granted_shared = {home.shared_ranges, home.shared_pages};
  s.leases.granted_exclusive = {home.exclusive_ranges, home.exclusive_pages};
  set(s, "home_files", home.files);
  set(s, "home_leases", home.leases);
  set(s, "home_leases_taken_back", home.taken_back);
  set(s, "home_open_files", home.open);
  set(s, "home_opens_refused", home.opens_refused);
  set(s, "home_requests_waiting", home.waiting);
  set(s, "home_recalls_pending", home.recalls);
  set(s, "home_locks", locks.held);
  set(s, "home_locks_waiting", locks.waiting);
}

void add_messages(control::NodeStatus& s, const Messages& in, const Messages& out) {
  each_message([&](size_t type, wire::FrameType frame) {
    std::string name = wire::to_string(frame);
    std::replace(name.begin(), name.end(), ' ', '_');
    std::replace(name.begin(), name.end(), '-', '_');
    set(s, "messages_in_" + name, in[type]);
    set(s, "messages_out_" + name, out[type]);
  });
}

}  // namespace

net::LaneStats NodeDaemon::lanes_of(const net::SessionInfo& session) const {
  net::LaneStats sum;
  for (const net::LaneStats& lane : server_->stats(session.id)) sum += lane;
  return sum;
}

// Both ways: as an agent of its home, and as the home of its agent.
net::LaneStats NodeDaemon::lanes_with(const Peer& peer,
                                      const std::vector<net::SessionInfo>& sessions) const {
  net::LaneStats sum;
  for (const net::LaneStats& lane : peer.session->stats()) sum += lane;
  for (const net::SessionInfo& session : sessions)
    if (session.node_name == peer.config.name) sum += lanes_of(session);
  return sum;
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
  Messages messages_in{}, messages_out{};
  const auto add_lanes = [&](control::PeerStatus& p, const net::LaneStats& sum) {
    p.encrypted = sum.encrypted;
    p.older_key = sum.older_key;
    p.bytes_in = sum.bytes_in;
    p.bytes_out = sum.bytes_out;
    each_message([&](size_t type, wire::FrameType) {
      p.messages_in += sum.messages_in[type];
      p.messages_out += sum.messages_out[type];
      messages_in[type] += sum.messages_in[type];
      messages_out[type] += sum.messages_out[type];
    });
  };
  for (const auto& peer : peers_) {
    control::PeerStatus& p = s.peers.emplace_back();
    p.name = peer->config.name;
    p.address = to_string(peer->config.address);
    {
      std::lock_guard lock(peer->mutex);
      p.connected = peer->connected;
      p.since_ms = (now - peer->since) / 1'000'000;
      p.last_error = peer->last_error;
    }
    add_lanes(p, lanes_with(*peer, sessions));
  }
  for (const net::SessionInfo& session : sessions) {
    if (is_peer(session.node_name)) continue;
    control::PeerStatus& p = s.visitors.emplace_back();
    p.name = session.node_name;
    p.address = session.address;
    if (const auto heard = server_->last_heard(session.id)) p.since_ms = (now - *heard) / 1'000'000;
    const net::LaneStats sum = lanes_of(session);
    p.connected = sum.connected;
    add_lanes(p, sum);
  }
  for (size_t i = 0; i < config_.exports.size(); ++i)
    s.exports.push_back({config_.exports[i].name, config_.exports[i].path,
                         home_->store_counts(i).known, sessions.size(),
                         outside_->why_not(i).empty(), outside_->why_not(i)});
  control::add_metrics(metrics_, s);
  AgentStatistics statistics;
  AgentCounts counts;
  for (AgentService* agent : agents()) {
    counts += agent->counts();
    statistics += agent->statistics();
  }
  add_agents(s, counts, statistics, metrics_);
  set(s, "guarded", guardian_ != nullptr && guardian_->guarded() ? 1 : 0);
  set(s, "recovery_files", recovery_->files());
  set(s, "rescued_bytes", recovery_->kept());
  set(s, "lost_bytes", recovery_->lost());
  set(s, "outside_overflows", outside_->overflows());
  add_home(s, home_->counts(), home_->lock_counts());
  set(s, "kernel_inodes", inodes_.size());
  set(s, "purge_threads", purge_threads_->threads());
  const KernelNames::Counts names = kernel_names_->counts();
  set(s, "kernel_names", names.names);
  set(s, "kernel_name_expiries", names.expiries);
  set(s, "kernel_name_epochs", names.epochs);
  add_messages(s, messages_in, messages_out);
  return s;
}

}  // namespace vremote::node
