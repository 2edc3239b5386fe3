// Where everything of a playground lies, and the configurations of its nodes. Pure.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace vremote::cli {

inline constexpr unsigned kPlaygroundNodesMax = 64;

// One node; every path is absolute.
struct PlannedNode {
  std::string name;       // node1, node2, …
  std::string directory;  // DIR/node1
  std::string export_dir;
  std::string mount;
  std::string config;
  std::string log;
  std::string state_dir;
  std::string control;
  uint16_t port = 0;
};

struct PlaygroundPlan {
  std::string dir;
  std::string cluster;  // its own for each DIR, so that clusters never mix
  std::string ready;    // exists while the playground is ready
  std::string lock;     // held while it runs
  std::string key;      // of the cluster; made once and kept
  bool tls = true;
  std::string short_dir;  // the state directories lie here when DIR is too deep for a socket's
                          // path; else empty
  std::vector<PlannedNode> nodes;
};

// `dir` is absolute; one node for each port.
PlaygroundPlan plan_playground(const std::string& dir, const std::vector<uint16_t>& ports);

// The node.toml of plan.nodes[index].
std::string node_toml(const PlaygroundPlan& plan, size_t index);

// A TOML string in double quotes.
std::string toml_quoted(std::string_view text);

// What begins the search for free ports and names the cluster: the same for the same DIR.
uint64_t hash_of(std::string_view dir);

}  // namespace vremote::cli
