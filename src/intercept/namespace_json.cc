#include "intercept/namespace_json.h"

#include <fmt/format.h>

#include <cerrno>
#include <nlohmann/json.hpp>

namespace vremote::intercept {
namespace {

using nlohmann::json;

constexpr size_t kExportsMax = 100000;

const std::string* string_of(const json& object, const char* key) {
  auto it = object.find(key);
  return it == object.end() ? nullptr : it->get_ptr<const std::string*>();
}

std::unexpected<Error> refuse(std::string what) {
  return fail(EPROTO, "the node's namespace reply: " + what);
}

bool plain_path(const std::string& path) {
  return path.starts_with('/') && path.find('\0') == std::string::npos;
}

bool single_component(const std::string& name) {
  return !name.empty() && name.size() <= 255 && name != "." && name != ".." &&
         name.find('/') == std::string::npos && name.find('\0') == std::string::npos;
}

}  // namespace

std::string to_json(const Namespace& names) {
  json exports = json::array();
  for (const Export& e : names.exports)
    exports.push_back({{"name", e.name}, {"path", e.path}, {"local", e.local}});
  json object{{"mount", names.mount}, {"exports", std::move(exports)}};
  // A path is bytes, JSON is UTF-8: what cannot be said is replaced rather than thrown at the
  // caller.
  return object.dump(-1, ' ', false, json::error_handler_t::replace);
}

Result<Namespace> namespace_from_json(std::string_view text) {
  json object = json::parse(text, nullptr, false);
  if (!object.is_object()) return refuse("not a JSON object");
  if (auto* error = string_of(object, "error")) return fail(EPROTO, "the node says: " + *error);

  Namespace names;
  auto* mount = string_of(object, "mount");
  if (!mount || !plain_path(*mount)) return refuse("\"mount\" is not an absolute path");
  names.mount = normalise(*mount);
  auto exports = object.find("exports");
  if (exports == object.end() || !exports->is_array()) return refuse("\"exports\" is not an array");
  if (exports->size() > kExportsMax) return refuse("too many exports");
  for (const json& item : *exports) {
    if (!item.is_object()) return refuse("an export is not an object");
    auto* name = string_of(item, "name");
    auto* path = string_of(item, "path");
    auto local = item.find("local");
    if (!name || !single_component(*name)) return refuse("an export's \"name\" is not a file name");
    if (!path || !plain_path(*path))
      return refuse(fmt::format("the \"path\" of export {} is not absolute", *name));
    if (local == item.end() || !local->is_boolean())
      return refuse(fmt::format("\"local\" of export {} is not true or false", *name));
    names.exports.push_back({*name, normalise(*path), local->get<bool>()});
  }
  return names;
}

}  // namespace vremote::intercept
