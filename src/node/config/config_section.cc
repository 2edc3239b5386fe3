#include "node/config/config_section.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "node/config/config_paths.h"

namespace vremote::node {
namespace {

constexpr size_t kNameMax = 63;

bool is_name(std::string_view text) {
  auto legal = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
           c == '_' || c == '-';
  };
  return !text.empty() && text.size() <= kNameMax && text.front() != '.' &&
         std::ranges::all_of(text, legal);
}

// For "did you mean": the number of single-letter changes between two words.
size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = std::exchange(row[0], i);
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t change = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, change});
    }
  }
  return row[b.size()];
}

}  // namespace

std::string one_line(std::string text) {
  std::ranges::replace_if(
      text, [](unsigned char c) { return c < 0x20 || c == 0x7f; }, '?');
  return text;
}

std::unexpected<Error> Section::bad(std::string_view key, std::string_view why) const {
  const toml::node* node = table_.get(key);
  return bad_at(node != nullptr ? *node : static_cast<const toml::node&>(table_),
                prefix_ + std::string(key), why);
}

Status Section::only(std::initializer_list<std::string_view> keys) const {
  for (const auto& [name, value] : table_) {
    const std::string_view key = name.str();
    if (std::ranges::find(keys, key) != keys.end()) continue;
    auto nearest =
        std::ranges::min_element(keys, {}, [key](auto known) { return edit_distance(known, key); });
    // Two changes make most short words of any other.
    const size_t changes = edit_distance(*nearest, key);
    std::string mend = changes <= 2 && changes * 2 < nearest->size()
                           ? fmt::format("did you mean '{}'?", *nearest)
                           : fmt::format("known here: {}", fmt::join(keys, ", "));
    return bad_at(value, prefix_ + std::string(key), "unknown key; " + mend);
  }
  return {};
}

Status Section::string(std::string_view key, std::string& out) const {
  const toml::node* node = table_.get(key);
  if (node == nullptr) return {};
  const auto* value = node->as_string();
  if (value == nullptr) return wrong_type(key, *node, "a string in quotes");
  if (value->get().find('\0') != std::string::npos) return bad(key, "holds a zero byte; remove it");
  out = value->get();
  return {};
}

Status Section::name(std::string_view key, std::string& out) const {
  VR_TRY_VOID(string(key, out));
  if (has(key) && !is_name(out))
    return bad(
        key,
        fmt::format("'{}' is no valid name; use 1 to 63 of A-Z a-z 0-9 . _ - and no leading dot",
                    out));
  return {};
}

Status Section::path(std::string_view key, std::string& out) const {
  VR_TRY_VOID(string(key, out));
  if (!has(key)) return {};
  if (out.empty()) return bad(key, "is empty; write a full path");
  if (out.front() != '/')
    return bad(key, fmt::format("'{}' is a relative path; write the full path, from /", out));
  out = normal_path(out);
  return {};
}

Status Section::endpoint(std::string_view key, Endpoint& out) const {
  std::string text;
  VR_TRY_VOID(string(key, text));
  if (!has(key)) return {};
  auto parsed = parse_endpoint(text);
  if (!parsed) return bad(key, parsed.error().what);
  out = *std::move(parsed);
  return {};
}

Status Section::boolean(std::string_view key, bool& out) const {
  const toml::node* node = table_.get(key);
  if (node == nullptr) return {};
  const auto* value = node->as_boolean();
  if (value == nullptr) return wrong_type(key, *node, "true or false, without quotes");
  out = value->get();
  return {};
}

Status Section::names(std::string_view key, std::optional<std::vector<std::string>>& out) const {
  const toml::node* node = table_.get(key);
  if (node == nullptr) return {};
  const auto* array = node->as_array();
  if (array == nullptr) return wrong_type(key, *node, "a list of names: [\"node2\", \"node3\"]");
  out.emplace();
  for (const toml::node& element : *array) {
    const auto* name = element.as_string();
    if (name == nullptr || !is_name(name->get()))
      return bad(key, "holds something that is no valid name; write [\"node2\", \"node3\"]");
    out->push_back(name->get());
  }
  return {};
}

Result<std::optional<uint64_t>> Section::number(std::string_view key, uint64_t low,
                                                uint64_t high) const {
  const toml::node* node = table_.get(key);
  if (node == nullptr) return std::nullopt;
  const auto* value = node->as_integer();
  if (value == nullptr) return wrong_type(key, *node, "a whole number");
  const int64_t signed_value = value->get();
  const auto result = static_cast<uint64_t>(signed_value);
  if (signed_value < 0 || result < low || result > high)
    return bad(key, fmt::format("{} is out of range; use {} to {}", signed_value, low, high));
  return result;
}

Result<std::optional<Section>> Section::section(std::string_view key) const {
  const toml::node* node = table_.get(key);
  if (node == nullptr) return std::nullopt;
  const auto* table = node->as_table();
  if (table == nullptr) return wrong_type(key, *node, fmt::format("a table: [{}]", key));
  return Section(*table, prefix_ + std::string(key) + ".", file_);
}

Result<std::vector<Section>> Section::sections(std::string_view key) const {
  std::vector<Section> result;
  const toml::node* node = table_.get(key);
  if (node == nullptr) return result;
  const auto* array = node->as_array();
  if (array == nullptr || (!array->empty() && !array->is_array_of_tables()))
    return wrong_type(key, *node, fmt::format("a list of tables: write [[{}]] above each", key));
  for (size_t i = 0; i < array->size(); ++i)
    result.emplace_back(*array->get(i)->as_table(), fmt::format("{}{}[{}].", prefix_, key, i),
                        file_);
  return result;
}

std::unexpected<Error> Section::bad_at(const toml::node& node, const std::string& key,
                                       std::string_view why) const {
  const auto at = node.source().begin;
  std::string place = file_;
  if (at.line > 0) place += fmt::format(":{}:{}", at.line, at.column);
  return fail(EINVAL, one_line(fmt::format("{}: key '{}': {}", place, key, why)));
}
std::unexpected<Error> Section::wrong_type(std::string_view key, const toml::node& node,
                                           std::string_view wanted) const {
  const char* have = node.is_string()           ? "a string"
                     : node.is_integer()        ? "a whole number"
                     : node.is_floating_point() ? "a number with a fraction"
                     : node.is_boolean()        ? "a boolean"
                     : node.is_table()          ? "a table"
                     : node.is_array()          ? "a list"
                                                : "a date or time";
  return bad(key, fmt::format("is {}; it must be {}", have, wanted));
}

}  // namespace vremote::node
