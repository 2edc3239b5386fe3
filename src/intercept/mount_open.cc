#include "intercept/mount_open.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <limits.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <vector>

namespace vremote::intercept {
namespace {

constexpr int kLinksMax = 40;
constexpr int kRaceRetries = 64;  // openat2 gives EAGAIN when something was renamed during its walk
constexpr uint64_t kBeneath = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV;

Result<Fd> open_at(int directory, const std::string& path, uint64_t flags, uint64_t mode,
                   uint64_t resolve) {
  open_how how{};
  how.flags = flags;
  how.mode = mode;
  how.resolve = resolve;
  for (int i = 0;; ++i) {
    long fd = ::syscall(SYS_openat2, directory, path.c_str(), &how, sizeof how);
    if (fd >= 0) return Fd(static_cast<int>(fd));
    if (errno != EAGAIN || i == kRaceRetries) return fail(errno);
  }
}

Result<Fd> open_mount(const Namespace& names, bool require_mount) {
  Fd fd(::open(names.mount.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!fd.valid() && (errno == EMFILE || errno == ENFILE || errno == ENOMEM)) return fail(errno);
  if (!fd.valid())
    return fail(ENXIO, fmt::format("the mount {} cannot be reached: {}; is the node running?",
                                   names.mount, std::strerror(errno)));
  if (!require_mount) return fd;
  // DONT_SYNC: this must not ask the daemon.
  struct statx st {};
  if (::statx(fd.get(), "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE, &st) < 0)
    return fail(ENXIO, fmt::format("the mount {} does not answer: {}; is the node running?",
                                   names.mount, std::strerror(errno)));
  if (!(st.stx_attributes_mask & st.stx_attributes & STATX_ATTR_MOUNT_ROOT))
    return fail(ENXIO, fmt::format("{} is not mounted; start the node", names.mount));
  return fd;
}

std::optional<std::string> read_link_at(int directory, const std::string& path) {
  std::array<char, PATH_MAX> buffer;
  ssize_t n = ::readlinkat(directory, path.c_str(), buffer.data(), buffer.size());
  if (n < 0) return std::nullopt;
  return std::string(buffer.data(), static_cast<size_t>(n));
}

void push_reversed(std::vector<std::string>& todo, std::string_view path) {
  while (!path.empty()) {
    size_t slash = path.rfind('/');
    std::string_view part = slash == std::string_view::npos ? path : path.substr(slash + 1);
    path = slash == std::string_view::npos ? std::string_view() : path.substr(0, slash);
    if (!part.empty() && part != ".") todo.emplace_back(part);
  }
}

}  // namespace

Result<std::string> follow_inside(
    std::string_view rest, std::string_view origin, bool follow_last,
    const std::function<std::optional<std::string>(const std::string&)>& read_link) {
  std::vector<std::string> todo;  // the last one first
  push_reversed(todo, rest);
  std::string current;
  int links = 0;
  while (!todo.empty()) {
    std::string part = std::move(todo.back());
    todo.pop_back();
    if (part == "..") {
      if (current.empty())
        return fail(ENXIO, "a symbolic link on the path leads out of the export");
      size_t slash = current.rfind('/');
      current.resize(slash == std::string::npos ? 0 : slash);
      continue;
    }
    std::string next = current.empty() ? part : fmt::format("{}/{}", current, part);
    std::optional<std::string> text;
    if (!todo.empty() || follow_last) text = read_link(next);
    if (!text) {
      current = std::move(next);
      continue;
    }
    if (++links > kLinksMax) return fail(ELOOP);
    std::string_view target = *text;
    if (target.starts_with('/')) {
      if (origin.empty() || !has_prefix(target, origin, &target))
        return fail(
            ENXIO, fmt::format("the symbolic link {} leads out of the export, to {}", next, *text));
      current.clear();
    }
    push_reversed(todo, target);
    if (current.size() > PATH_MAX) return fail(ENAMETOOLONG);
  }
  return current;
}

Result<Fd> open_under_mount(const Namespace& names, const Target& target, const MountOpen& how) {
  VR_TRY(mount, open_mount(names, how.require_mount));
  uint64_t mode = interpret_mode(how.flags, how.mode);
  // The serving process leads a session without a terminal: a terminal must not become its own.
  uint64_t flags = how.flags.kernel;
  if (!(flags & O_PATH)) flags |= O_NOCTTY;

  if (target.name.empty()) return open_at(mount.get(), ".", flags, mode, kBeneath);
  auto base = open_at(mount.get(), target.name, O_PATH | O_DIRECTORY | O_CLOEXEC, 0,
                      kBeneath | RESOLVE_NO_SYMLINKS);
  if (!base && base.error().code == ENOENT && !target.origin.empty())
    return fail(ENXIO, fmt::format("{}/{} is not there: its node is not connected", names.mount,
                                   target.name));
  if (!base) return base;
  if (target.rest.empty()) return open_at(base->get(), ".", flags, mode, kBeneath);

  const char* slash = how.slash ? "/" : "";
  auto fd = open_at(base->get(), target.rest + slash, flags, mode, kBeneath);
  if (fd || fd.error().code != EXDEV) return fd;

  // A link by its text leads out of the export.
  VR_TRY(followed,
         follow_inside(target.rest, target.origin, how.flags.follows_last() || how.slash,
                       [&](const std::string& path) { return read_link_at(base->get(), path); }));
  fd = open_at(base->get(), followed.empty() ? "." : followed + slash, flags, mode, kBeneath);
  if (!fd && fd.error().code == EXDEV)
    return fail(ENXIO,
                fmt::format("{} leads out of the mount {}", target.path(names), names.mount));
  return fd;
}

}  // namespace vremote::intercept
