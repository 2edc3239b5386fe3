// What a node tells of itself: the reply to the control request "status", and its printed form.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "base/metrics.h"
#include "base/result.h"

namespace vremote::control {

struct PeerStatus {
  std::string name;
  std::string address;
  bool connected = false;  // "state": "connected" or "connecting"
  int64_t since_ms = 0;    // in this state for so long
  uint64_t messages_in = 0, messages_out = 0;
  uint64_t bytes_in = 0, bytes_out = 0;
  std::string last_error;  // empty: none
  bool encrypted = false;  // all that is connected, in both directions
  bool older_key = false;  // some of that by a key that is to be replaced
};

struct ExportStatus {
  std::string name;
  std::string path;
  uint64_t files = 0;   // known to the home now
  uint64_t agents = 0;  // nodes with a session
  bool watched = true;  // what is changed in the directory itself is noticed
  std::string why_not_watched;
};

struct LeaseCount {
  uint64_t ranges = 0;
  uint64_t pages = 0;
};

struct LeaseStatus {
  LeaseCount shared, exclusive;                  // held by this node's agent
  LeaseCount granted_shared, granted_exclusive;  // given by this node's homes
};

struct NodeStatus {
  std::string node;
  std::string cluster;
  uint64_t incarnation = 0;
  std::string version;
  int64_t pid = 0;
  int64_t uptime_ms = 0;
  std::string mount;
  bool tls = false;    // between nodes
  bool ready = false;  // mounted and serving
  std::vector<PeerStatus> peers;
  // Nodes with a session here and no [[peer]]. `since_ms`: not heard of for so long.
  std::vector<PeerStatus> visitors;
  std::vector<ExportStatus> exports;
  LeaseStatus leases;
  uint64_t dirty_bytes = 0;
  uint64_t resident_ranges = 0;
  std::vector<std::pair<std::string, uint64_t>> counters;  // open-ended; printed in this order
  std::vector<std::pair<std::string, LatencySummary>> latencies;
};

// Fills counters and latencies from `metrics`, in the order of their enums.
void add_metrics(const Metrics& metrics, NodeStatus& status);

// One line. Keys are the members' names; "peers": [{"name": …, "state": "connected", …}],
// "counters": {…}.
std::string to_json(const NodeStatus& status);
// Accepts a status of another version: unknown keys are ignored, missing ones keep their defaults.
Result<NodeStatus> status_from_json(const std::string& json);

// For people: several lines, columns aligned, counters and latencies that never moved left out.
std::string status_table(const NodeStatus& status);

}  // namespace vremote::control
