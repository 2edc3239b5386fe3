#include "intercept/remote_open.h"

#include <fmt/format.h>

#include <cerrno>
#include <filesystem>
#include <system_error>
#include <utility>

#include "intercept/mount_open.h"

namespace vremote::intercept {
namespace {

constexpr auto kRenewInterval = std::chrono::seconds(1);
constexpr size_t kShownMax = 200;  // of a path, in an error line

std::string real_path(const std::string& path) {
  std::error_code error;
  auto real = std::filesystem::canonical(path, error);
  return error ? path : real.string();
}

// Of two refusals the one that found the path, on the wrong side, says more.
Result<Target> resolve_either(const Namespace& names, const CallerPath& path, bool origin) {
  if (origin || path.lexical.empty() || path.lexical == path.resolved)
    return resolve(names, path.resolved, origin);
  auto lexical = resolve(names, path.lexical, origin);
  if (lexical) return lexical;
  auto resolved = resolve(names, path.resolved, origin);
  if (resolved || lexical.error().code == ENXIO) return resolved;
  return lexical;
}

}  // namespace

Namespace with_real_paths(Namespace names) {
  names.mount = real_path(names.mount);
  for (size_t i = 0, n = names.exports.size(); i < n; ++i) {
    if (!names.exports[i].local) continue;
    std::string real = real_path(names.exports[i].path);
    if (real != names.exports[i].path)
      names.exports.push_back({names.exports[i].name, std::move(real), true});
  }
  return names;
}

NamespaceCache::NamespaceCache(Namespace initial, Reload reload)
    : names_(std::make_shared<const Namespace>(with_real_paths(std::move(initial)))),
      reload_(std::move(reload)) {}

NamespaceCache::NamespaceCache(Reload reload) : reload_(std::move(reload)) {}

Result<std::shared_ptr<const Namespace>> NamespaceCache::get() {
  std::lock_guard lock(mutex_);
  if (!names_) {
    auto fresh = reload_();
    if (!fresh) return std::unexpected(std::move(fresh).error());
    names_ = std::make_shared<const Namespace>(with_real_paths(std::move(*fresh)));
    asked_ = std::chrono::steady_clock::now();
  }
  return names_;
}

std::shared_ptr<const Namespace> NamespaceCache::renew(std::shared_ptr<const Namespace> used) {
  std::lock_guard lock(mutex_);
  if (names_ != used) return names_;  // another thread has just asked
  auto now = std::chrono::steady_clock::now();
  bool too_soon = asked_ != decltype(asked_){} && now - asked_ < kRenewInterval;
  if (!reload_ || too_soon) return used;
  asked_ = now;
  if (auto fresh = reload_())
    names_ = std::make_shared<const Namespace>(with_real_paths(std::move(*fresh)));
  return names_;
}

Result<Place> find_remote(NamespaceCache& cache, const View& view, const RemoteOpen& open) {
  VR_TRY(path,
         caller_path(view, open.path, open.flags.follows_last(), open.flags.origin, read_link));
  VR_TRY(names, cache.get());
  auto target = resolve_either(*names, path, open.flags.origin);
  if (!target) {
    // A peer may have connected since, or the node may have restarted with another configuration.
    auto renewed = cache.renew(names);
    if (renewed == names) return std::unexpected(std::move(target).error());
    names = std::move(renewed);
    target = resolve_either(*names, path, open.flags.origin);
    if (!target) return std::unexpected(std::move(target).error());
  }
  return Place{std::move(names), std::move(*target), path.slash};
}

Result<Fd> open_remote(NamespaceCache& cache, const View& view, const RemoteOpen& open) {
  VR_TRY(place, find_remote(cache, view, open));
  MountOpen how{.flags = open.flags,
                .mode = open.mode,
                .slash = place.slash,
                .require_mount = open.require_mount};
  auto fd = open_under_mount(*place.names, place.target, how);
  if (fd || fd.error().code != ENXIO || fd.error().what.empty()) return fd;
  // The node may have restarted with its mount elsewhere.
  auto renewed = cache.renew(place.names);
  if (renewed == place.names) return fd;
  return open_remote(cache, view, open);
}

std::string refusal_line(const char* function, const RemoteOpen& open,
                         const std::string& sentence) {
  std::string shown;
  for (unsigned char c : open.path.substr(0, kShownMax)) {
    if (c == '"' || c == '\\')
      shown += fmt::format("\\{}", static_cast<char>(c));
    else if (c < 0x20 || c == 0x7f)
      shown += fmt::format("\\x{:02x}", c);
    else
      shown += static_cast<char>(c);
  }
  if (open.path.size() > kShownMax) shown += "…";
  return fmt::format("{}(\"{}\", O_REMOTE{}): {}", function, shown,
                     open.flags.origin ? "|O_ORIGIN" : "", sentence);
}

}  // namespace vremote::intercept
