#include "cli/playground_plan.h"

#include <fmt/format.h>

namespace vremote::cli {
namespace {

constexpr size_t kSocketPathMax = 107;

}  // namespace

uint64_t hash_of(std::string_view dir) {
  uint64_t hash = 0xCBF29CE484222325u;  // FNV-1a
  for (const char c : dir) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001B3u;
  return hash;
}

PlaygroundPlan plan_playground(const std::string& dir, const std::vector<uint16_t>& ports) {
  const uint64_t hash = hash_of(dir);
  PlaygroundPlan plan{
      .dir = dir,
      .cluster = fmt::format("playground-{:08x}", static_cast<uint32_t>(hash ^ hash >> 32)),
      .ready = dir + "/ready",
      .lock = dir + "/.lock",
      .key = dir + "/cluster.key",
      .short_dir = {},
      .nodes = {}};
  // One rule for all nodes of the playground, judged by the longest name.
  if (fmt::format("{}/node{}/state/control.sock", dir, ports.size()).size() > kSocketPathMax)
    plan.short_dir = fmt::format("/run/vremote/playground-{:016x}", hash);
  for (size_t i = 0; i < ports.size(); ++i) {
    PlannedNode node;
    node.name = fmt::format("node{}", i + 1);
    node.directory = dir + "/" + node.name;
    node.export_dir = node.directory + "/export";
    node.mount = node.directory + "/mnt";
    node.config = node.directory + "/node.toml";
    node.log = node.directory + "/log";
    node.state_dir =
        plan.short_dir.empty() ? node.directory + "/state" : plan.short_dir + "/" + node.name;
    node.control = node.state_dir + "/control.sock";
    node.port = ports[i];
    plan.nodes.push_back(std::move(node));
  }
  return plan;
}

std::string toml_quoted(std::string_view text) {
  std::string result = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      result.append(1, '\\').append(1, c);
    } else if (byte < 0x20 || byte == 0x7f) {
      result += fmt::format("\\u{:04X}", byte);
    } else {
      result += c;
    }
  }
  return result + "\"";
}

std::string node_toml(const PlaygroundPlan& plan, size_t index) {
  const PlannedNode& node = plan.nodes[index];
  std::string text = "# Written by `vremote playground` at each start: changes here are lost.\n";
  auto line = [&](std::string_view key, std::string_view value) {
    text += fmt::format("{} = {}\n", key, toml_quoted(value));
  };
  line("node", node.name);
  line("mount", node.mount);
  line("state_dir", node.state_dir);
  line("listen", fmt::format("127.0.0.1:{}", node.port));
  text += "\n[cluster]\n";
  line("name", plan.cluster);
  line("key", plan.key);
  line("tls", plan.tls ? "on" : "off");
  text += "\n[log]\n";
  line("file", node.log);
  text += "\n[[export]]\n";
  line("name", node.name);
  line("path", node.export_dir);
  for (size_t i = 0; i < plan.nodes.size(); ++i) {
    if (i == index) continue;
    text += "\n[[peer]]\n";
    line("name", plan.nodes[i].name);
    line("address", fmt::format("127.0.0.1:{}", plan.nodes[i].port));
  }
  return text;
}

}  // namespace vremote::cli
