#include "cli/playground_print.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "control/table.h"

namespace vremote::cli {
namespace {

// For the shell: as it is when that is safe, else in single quotes.
std::string shell_quoted(const std::string& text) {
  const bool plain =
      text.find_first_not_of(
          "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+=@%:,") ==
      std::string::npos;
  if (plain && !text.empty()) return text;
  std::string result = "'";
  for (const char c : text) c == '\'' ? result += "'\\''" : result += c;
  return result + "'";
}

}  // namespace

std::string playground_banner(const PlaygroundPlan& plan, double seconds) {
  control::TextTable table({"NODE", "EXPORT", "MOUNT", "CONTROL", "LOG"});
  for (const PlannedNode& node : plan.nodes)
    table.add({node.name, node.export_dir, node.mount, node.control, node.log});
  std::string text =
      fmt::format("playground ready: {} node{} in {:.1f} s; ^C ends it\n\n{}\nTry:\n",
                  plan.nodes.size(), plan.nodes.size() == 1 ? "" : "s", seconds, table.print());
  const PlannedNode& first = plan.nodes.front();
  const PlannedNode& last = plan.nodes.back();
  text += fmt::format("  echo hello > {}\n",
                      shell_quoted(first.mount + "/" + first.name + "/hello.txt"));
  text += fmt::format("  cat {}\n", shell_quoted(last.mount + "/" + first.name + "/hello.txt"));
  text += fmt::format("  vremote status --config {}\n", shell_quoted(first.config));
  text += fmt::format("  vremote run --config {} -- CMD\n", shell_quoted(last.config));
  return text;
}

std::string playground_ready_json(const PlaygroundPlan& plan, int64_t pid) {
  using Json = nlohmann::ordered_json;
  Json nodes = Json::array();
  for (const PlannedNode& node : plan.nodes)
    nodes.push_back(Json{{"name", node.name},
                         {"export", node.export_dir},
                         {"mount", node.mount},
                         {"config", node.config},
                         {"control", node.control},
                         {"log", node.log},
                         {"address", fmt::format("127.0.0.1:{}", node.port)}});
  return Json{{"pid", pid}, {"nodes", nodes}}.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace vremote::cli
