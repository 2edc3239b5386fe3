// The status as people read it.
#include <fmt/format.h>

#include "control/status.h"
#include "control/table.h"

namespace vremote::control {
namespace {

std::string peers_table(const NodeStatus& status) {
  TextTable table(
      {"PEER", "ADDRESS", "STATE", "TLS", "FOR", "MSGS IN", "OUT", "BYTES IN", "OUT", "LAST ERROR"},
      {5, 6, 7, 8});
  const auto add = [&](const PeerStatus& peer, const char* state, const std::string& since) {
    table.add({peer.name, peer.address, state,
               !peer.connected   ? "-"
               : !peer.encrypted ? "PLAIN"
               : peer.older_key  ? "old key"
                                 : "yes",
               since, std::to_string(peer.messages_in), std::to_string(peer.messages_out),
               human_bytes(peer.bytes_in), human_bytes(peer.bytes_out), peer.last_error});
  };
  for (const PeerStatus& peer : status.peers)
    add(peer, peer.connected ? "connected" : "connecting", human_duration(peer.since_ms));
  for (const PeerStatus& peer : status.visitors)
    add(peer, peer.connected ? "visiting" : "away",
        peer.connected ? "-" : human_duration(peer.since_ms));
  return table.print();
}

std::string exports_table(const NodeStatus& status) {
  TextTable table({"EXPORT", "PATH", "FILES", "AGENTS", "OUTSIDE CHANGES"}, {2, 3});
  for (const ExportStatus& entry : status.exports)
    table.add({entry.name, entry.path, std::to_string(entry.files), std::to_string(entry.agents),
               entry.watched ? "seen" : "not seen: " + entry.why_not_watched});
  return table.print();
}

std::string leases_table(const LeaseStatus& leases) {
  TextTable table({"LEASES", "SHARED RANGES", "PAGES", "EXCLUSIVE RANGES", "PAGES"}, {1, 2, 3, 4});
  auto row = [&](const char* name, const LeaseCount& shared, const LeaseCount& exclusive) {
    // The lease of an uncontended file reaches to the end of all files: no number of pages that
    // says anything.
    auto pages = [](uint64_t n) {
      return n >= uint64_t{1} << 50 ? std::string("whole files") : std::to_string(n);
    };
    table.add({name, std::to_string(shared.ranges), pages(shared.pages),
               std::to_string(exclusive.ranges), pages(exclusive.pages)});
  };
  row("held as agent", leases.shared, leases.exclusive);
  row("granted as home", leases.granted_shared, leases.granted_exclusive);
  return table.print();
}

std::string counters_table(const NodeStatus& status) {
  TextTable table({"COUNTER", "VALUE"}, {1});
  bool any = false;
  for (const auto& [name, value] : status.counters) {
    if (value == 0) continue;
    any = true;
    table.add({name, name.ends_with("_bytes") ? human_bytes(value) : std::to_string(value)});
  }
  return any ? table.print() : std::string();
}

std::string latencies_table(const NodeStatus& status) {
  TextTable table({"LATENCY", "COUNT", "P50", "P90", "P99", "MAX"}, {1, 2, 3, 4, 5});
  bool any = false;
  for (const auto& [name, value] : status.latencies) {
    if (value.count == 0) continue;
    any = true;
    table.add({name, std::to_string(value.count), human_microseconds(value.p50_us),
               human_microseconds(value.p90_us), human_microseconds(value.p99_us),
               human_microseconds(value.max_us)});
  }
  return any ? table.print() : std::string();
}

}  // namespace

std::string status_table(const NodeStatus& status) {
  std::string result = fmt::format(
      "node {} of cluster {}: {}, mount {}, up {}, pid {}, version {}, incarnation {}\n",
      status.node, status.cluster, status.ready ? "ready" : "starting", status.mount,
      human_duration(status.uptime_ms), status.pid, status.version, status.incarnation);
  result += fmt::format("dirty {}, resident ranges {}\n", human_bytes(status.dirty_bytes),
                        status.resident_ranges);
  if (status.ready && !status.tls)
    result +=
        "NOT ENCRYPTED: tls = \"off\", so that whoever reaches this node's port may read and write "
        "what it exports\n";
  auto block = [&](const std::string& text) {
    if (!text.empty()) result += "\n" + text;
  };
  if (!status.peers.empty() || !status.visitors.empty()) block(peers_table(status));
  if (!status.exports.empty()) block(exports_table(status));
  block(leases_table(status.leases));
  block(counters_table(status));
  block(latencies_table(status));
  return result;
}

}  // namespace vremote::control
