#include "intercept/resolve.h"

#include <fmt/format.h>

#include <cerrno>

namespace vremote::intercept {
namespace {

constexpr size_t kListedMax = 6;  // exports named in an error line

std::string known_exports(const Namespace& names) {
  if (names.exports.empty()) return "no node exports anything";
  std::string list = "exports: ";
  for (size_t i = 0; i < names.exports.size() && i < kListedMax; ++i) {
    const Export& e = names.exports[i];
    list +=
        fmt::format("{}{} = {}{}", i ? ", " : "", e.name, e.path, e.local ? " (this node)" : "");
  }
  if (names.exports.size() > kListedMax) list += ", …";
  return list;
}

const Export* find_by_name(const Namespace& names, std::string_view name) {
  for (const Export& e : names.exports)
    if (e.name == name) return &e;
  return nullptr;
}

struct Match {
  const Export* best = nullptr;
  const Export* rival = nullptr;  // as long a prefix, another name
  std::string rest;
};

Match longest_match(const Namespace& names, std::string_view path, bool local) {
  Match match;
  size_t best_length = 0;
  for (const Export& e : names.exports) {
    std::string_view rest;
    if (e.local != local || !has_prefix(path, e.path, &rest)) continue;
    size_t length = path.size() - rest.size();
    if (!match.best || length > best_length) {
      match = {&e, nullptr, std::string(rest)};
      best_length = length;
    } else if (length == best_length && e.name != match.best->name) {
      match.rival = &e;
    }
  }
  return match;
}

Result<Target> resolve_under_mount(const Namespace& names, std::string_view below, bool origin) {
  size_t slash = below.find('/');
  Target target;
  target.name = below.substr(0, slash);
  if (slash != std::string_view::npos) target.rest = below.substr(slash + 1);
  const Export* e = find_by_name(names, target.name);
  if (e) target.origin = e->path;
  if (!origin || (e && e->local)) return target;
  if (e)
    return fail(EINVAL,
                fmt::format("O_ORIGIN, but {}/{} is exported by another node; leave out O_ORIGIN",
                            names.mount, target.name));
  return fail(ENXIO,
              fmt::format("O_ORIGIN, but the path is not inside any export of this node ({})",
                          known_exports(names)));
}

}  // namespace

std::string Target::path(const Namespace& names) const {
  std::string result = names.mount == "/" ? "" : names.mount;
  if (!name.empty()) result += "/" + name;
  if (!rest.empty()) result += "/" + rest;
  return result.empty() ? "/" : result;
}

std::string normalise(std::string_view path) {
  std::string result;
  while (!path.empty()) {
    size_t slash = path.find('/');
    std::string_view part = path.substr(0, slash);
    path = slash == std::string_view::npos ? std::string_view() : path.substr(slash + 1);
    if (part.empty() || part == ".") continue;
    if (part == "..") {
      size_t last = result.rfind('/');
      result.resize(last == std::string::npos ? 0 : last);
    } else {
      result += '/';
      result += part;
    }
  }
  return result.empty() ? "/" : result;
}

bool has_prefix(std::string_view path, std::string_view prefix, std::string_view* rest) {
  while (!prefix.empty() && prefix.back() == '/') prefix.remove_suffix(1);
  if (!path.starts_with(prefix)) return false;
  path.remove_prefix(prefix.size());
  if (!path.empty() && path.front() != '/') return false;
  while (!path.empty() && path.front() == '/') path.remove_prefix(1);
  *rest = path;
  return true;
}

Result<Target> resolve(const Namespace& names, std::string_view path, bool origin) {
  std::string_view below;
  if (has_prefix(path, names.mount, &below)) return resolve_under_mount(names, below, origin);

  Match match = longest_match(names, path, origin);
  if (match.rival)
    return fail(
        EINVAL,
        fmt::format(
            "the path lies in the exports {0} and {1}; say which: {2}/{0}/{3} or {2}/{1}/{3}",
            match.best->name, match.rival->name, names.mount, match.rest));
  if (match.best) return Target{match.best->name, match.rest, match.best->path};

  Match other = longest_match(names, path, !origin);
  if (other.best && origin)
    return fail(EINVAL,
                fmt::format("O_ORIGIN, but {} is the export {} of another node; leave out O_ORIGIN",
                            other.best->path, other.best->name));
  if (other.best)
    return fail(EINVAL,
                fmt::format("{} is the export {} of this very node; add O_ORIGIN, or open {}",
                            other.best->path, other.best->name,
                            Target{other.best->name, other.rest, {}}.path(names)));
  return fail(
      ENXIO,
      fmt::format(
          "not inside any export {}; export its directory on its node, or correct the path ({})",
          origin ? "of this node" : "of a connected node", known_exports(names)));
}

}  // namespace vremote::intercept
