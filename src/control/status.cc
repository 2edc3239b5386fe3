#include "control/status.h"

#include <cerrno>
#include <nlohmann/json.hpp>

namespace vremote::control {
namespace {

// Ordered: people read it too, and the columns of `vremote status` follow the order of the
// counters.
using Json = nlohmann::ordered_json;

// Reads one key when it is there and of the right kind; else `out` keeps its default.
void read(const Json& object, const char* key, std::string& out) {
  if (const auto it = object.find(key); it != object.end() && it->is_string())
    out = it->get<std::string>();
}
void read(const Json& object, const char* key, bool& out) {
  if (const auto it = object.find(key); it != object.end() && it->is_boolean())
    out = it->get<bool>();
}
template <typename Number>
void read_number(const Json& object, const char* key, Number& out) {
  if (const auto it = object.find(key); it != object.end() && it->is_number())
    out = it->get<Number>();
}
template <typename Function>
void each(const Json& object, const char* key, Function function) {
  const auto it = object.find(key);
  if (it == object.end() || !it->is_array()) return;
  for (const Json& element : *it)
    if (element.is_object()) function(element);
}

Json lease_json(const LeaseCount& count) {
  return Json{{"ranges", count.ranges}, {"pages", count.pages}};
}
void read_lease(const Json& leases, const char* key, LeaseCount& out) {
  const auto it = leases.find(key);
  if (it == leases.end() || !it->is_object()) return;
  read_number(*it, "ranges", out.ranges);
  read_number(*it, "pages", out.pages);
}

Json peer_json(const PeerStatus& peer) {
  return Json{{"name", peer.name},
              {"address", peer.address},
              {"state", peer.connected ? "connected" : "connecting"},
              {"since_ms", peer.since_ms},
              {"messages_in", peer.messages_in},
              {"messages_out", peer.messages_out},
              {"bytes_in", peer.bytes_in},
              {"bytes_out", peer.bytes_out},
              {"last_error", peer.last_error},
              {"encrypted", peer.encrypted},
              {"older_key", peer.older_key}};
}
PeerStatus peer_of(const Json& json) {
  PeerStatus peer;
  std::string state;
  read(json, "name", peer.name);
  read(json, "address", peer.address);
  read(json, "state", state);
  peer.connected = state == "connected";
  read_number(json, "since_ms", peer.since_ms);
  read_number(json, "messages_in", peer.messages_in);
  read_number(json, "messages_out", peer.messages_out);
  read_number(json, "bytes_in", peer.bytes_in);
  read_number(json, "bytes_out", peer.bytes_out);
  read(json, "last_error", peer.last_error);
  read(json, "encrypted", peer.encrypted);
  read(json, "older_key", peer.older_key);
  return peer;
}

}  // namespace

void add_metrics(const Metrics& metrics, NodeStatus& status) {
  for (size_t i = 0; i < kCounterCount; ++i)
    status.counters.emplace_back(kCounterNames[i], metrics.get(static_cast<Counter>(i)));
  for (size_t i = 0; i < kLatencyCount; ++i)
    status.latencies.emplace_back(kLatencyNames[i], metrics.summary(static_cast<Latency>(i)));
}

std::string to_json(const NodeStatus& status) {
  Json json{
      {"node", status.node},       {"cluster", status.cluster}, {"incarnation", status.incarnation},
      {"version", status.version}, {"pid", status.pid},         {"uptime_ms", status.uptime_ms},
      {"mount", status.mount},     {"ready", status.ready},     {"tls", status.tls}};
  json["peers"] = Json::array();
  for (const PeerStatus& peer : status.peers) json["peers"].push_back(peer_json(peer));
  json["visitors"] = Json::array();
  for (const PeerStatus& peer : status.visitors) json["visitors"].push_back(peer_json(peer));
  json["exports"] = Json::array();
  for (const ExportStatus& entry : status.exports)
    json["exports"].push_back(Json{{"name", entry.name},
                                   {"path", entry.path},
                                   {"files", entry.files},
                                   {"agents", entry.agents},
                                   {"watched", entry.watched},
                                   {"why_not_watched", entry.why_not_watched}});
  json["leases"] = Json{{"shared", lease_json(status.leases.shared)},
                        {"exclusive", lease_json(status.leases.exclusive)},
                        {"granted_shared", lease_json(status.leases.granted_shared)},
                        {"granted_exclusive", lease_json(status.leases.granted_exclusive)}};
  json["dirty_bytes"] = status.dirty_bytes;
  json["resident_ranges"] = status.resident_ranges;
  json["counters"] = Json::object();
  for (const auto& [name, value] : status.counters) json["counters"][name] = value;
  json["latencies"] = Json::object();
  for (const auto& [name, value] : status.latencies)
    json["latencies"][name] = Json{{"count", value.count},
                                   {"p50_us", value.p50_us},
                                   {"p90_us", value.p90_us},
                                   {"p99_us", value.p99_us},
                                   {"max_us", value.max_us}};
  // A path need not be UTF-8: better one replaced letter than no status.
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

Result<NodeStatus> status_from_json(const std::string& text) {
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return fail(EPROTO, "the node's status is no JSON object");
  NodeStatus status;
  read(json, "node", status.node);
  read(json, "cluster", status.cluster);
  read_number(json, "incarnation", status.incarnation);
  read(json, "version", status.version);
  read_number(json, "pid", status.pid);
  read_number(json, "uptime_ms", status.uptime_ms);
  read(json, "mount", status.mount);
  read(json, "ready", status.ready);
  read(json, "tls", status.tls);
  each(json, "peers", [&](const Json& peer) { status.peers.push_back(peer_of(peer)); });
  each(json, "visitors", [&](const Json& peer) { status.visitors.push_back(peer_of(peer)); });
  each(json, "exports", [&](const Json& element) {
    ExportStatus entry;
    read(element, "name", entry.name);
    read(element, "path", entry.path);
    read_number(element, "files", entry.files);
    read_number(element, "agents", entry.agents);
    read(element, "watched", entry.watched);
    read(element, "why_not_watched", entry.why_not_watched);
    status.exports.push_back(std::move(entry));
  });
  if (const auto leases = json.find("leases"); leases != json.end() && leases->is_object()) {
    read_lease(*leases, "shared", status.leases.shared);
    read_lease(*leases, "exclusive", status.leases.exclusive);
    read_lease(*leases, "granted_shared", status.leases.granted_shared);
    read_lease(*leases, "granted_exclusive", status.leases.granted_exclusive);
  }
  read_number(json, "dirty_bytes", status.dirty_bytes);
  read_number(json, "resident_ranges", status.resident_ranges);
  if (const auto counters = json.find("counters");
      counters != json.end() && counters->is_object()) {
    for (const auto& [name, value] : counters->items())
      if (value.is_number()) status.counters.emplace_back(name, value.get<uint64_t>());
  }
  if (const auto latencies = json.find("latencies");
      latencies != json.end() && latencies->is_object()) {
    for (const auto& [name, value] : latencies->items()) {
      if (!value.is_object()) continue;
      LatencySummary summary;
      read_number(value, "count", summary.count);
      read_number(value, "p50_us", summary.p50_us);
      read_number(value, "p90_us", summary.p90_us);
      read_number(value, "p99_us", summary.p99_us);
      read_number(value, "max_us", summary.max_us);
      status.latencies.emplace_back(name, summary);
    }
  }
  return status;
}

}  // namespace vremote::control
