#include "control/blocked.h"

#include <fmt/format.h>

#include <cerrno>
#include <nlohmann/json.hpp>

#include "control/table.h"

namespace vremote::control {
namespace {

using Json = nlohmann::ordered_json;

Json party_json(const Party& party) {
  return Json{{"node", party.node}, {"pid", party.pid}, {"process", party.process}};
}

std::string text(const Json& object, const char* key) {
  const auto it = object.find(key);
  return it != object.end() && it->is_string() ? it->get<std::string>() : std::string();
}
template <typename Number>
Number number(const Json& object, const char* key) {
  const auto it = object.find(key);
  return it != object.end() && it->is_number() ? it->get<Number>() : Number{};
}

Party party_of(const Json& json) {
  return {text(json, "node"), number<uint32_t>(json, "pid"), text(json, "process")};
}

BlockedEntry entry_of(const Json& json) {
  BlockedEntry entry;
  entry.side = text(json, "side");
  entry.what = text(json, "what");
  entry.export_name = text(json, "export");
  entry.path = text(json, "path");
  entry.inode = number<uint64_t>(json, "inode");
  if (json.contains("from"))
    entry.range = BlockedEntry::Range{number<uint64_t>(json, "from"), number<uint64_t>(json, "to")};
  if (const auto who = json.find("who"); who != json.end() && who->is_object())
    entry.who = party_of(*who);
  if (const auto parties = json.find("waits_for"); parties != json.end() && parties->is_array())
    for (const Json& party : *parties)
      if (party.is_object()) entry.waits_for.push_back(party_of(party));
  entry.why = text(json, "why");
  entry.for_ms = number<int64_t>(json, "for_ms");
  return entry;
}

std::string words(const Party& party) {
  if (party.pid == 0) return party.node;
  if (party.process.empty()) return fmt::format("{} pid {}", party.node, party.pid);
  return fmt::format("{} pid {} ({})", party.node, party.pid, party.process);
}

std::string words(const std::optional<BlockedEntry::Range>& range) {
  if (!range) return "";
  constexpr uint64_t kFar = uint64_t{1} << 62;
  return range->last >= kFar ? fmt::format("{}-end", range->first)
                             : fmt::format("{}-{}", range->first, range->last);
}

}  // namespace

std::string to_json(const Blocked& blocked) {
  Json json{{"node", blocked.node}, {"more", blocked.more}};
  json["blocked"] = Json::array();
  for (const BlockedEntry& entry : blocked.entries) {
    Json e{{"side", entry.side},
           {"what", entry.what},
           {"export", entry.export_name},
           {"path", entry.path},
           {"inode", entry.inode}};
    if (entry.range) {
      e["from"] = entry.range->first;
      e["to"] = entry.range->last;
    }
    e["who"] = party_json(entry.who);
    e["waits_for"] = Json::array();
    for (const Party& party : entry.waits_for) e["waits_for"].push_back(party_json(party));
    e["why"] = entry.why;
    e["for_ms"] = entry.for_ms;
    json["blocked"].push_back(std::move(e));
  }
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

Result<Blocked> blocked_from_json(const std::string& line) {
  const Json json = Json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return fail(EPROTO, "the node's answer is no JSON object");
  Blocked blocked{.node = text(json, "node"), .entries = {}, .more = json.value("more", false)};
  if (const auto it = json.find("blocked"); it != json.end() && it->is_array())
    for (const Json& entry : *it)
      if (entry.is_object()) blocked.entries.push_back(entry_of(entry));
  return blocked;
}

std::string blocked_table(const Blocked& blocked) {
  if (blocked.entries.empty()) return fmt::format("nobody waits at {}\n", blocked.node);
  TextTable table({"WHAT", "FILE", "BYTES", "WHO WAITS", "FOR WHOM", "SINCE", ""}, {5});
  for (const BlockedEntry& entry : blocked.entries) {
    std::string whom;
    for (const Party& party : entry.waits_for) whom += (whom.empty() ? "" : ", ") + words(party);
    table.add({entry.what,
               entry.path.empty() ? fmt::format("{}: inode {}", entry.export_name, entry.inode)
                                  : entry.path,
               words(entry.range), words(entry.who), whom, human_duration(entry.for_ms),
               entry.why});
  }
  std::string result = table.print();
  if (blocked.more) result += fmt::format("and more: the {} longest are shown\n", kBlockedMax);
  return result;
}

}  // namespace vremote::control
