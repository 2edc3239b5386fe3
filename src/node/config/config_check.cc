// The part of the configuration check that looks at the machine.
#include <fcntl.h>
#include <fmt/format.h>
#include <grp.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <vector>

#include "base/private_directory.h"
#include "fuse/mount.h"
#include "fuse/mountinfo.h"
#include "node/config/config.h"
#include "node/config/config_paths.h"

namespace vremote::node {
namespace {

struct Resolved {
  std::string key;
  std::string path;  // as written
  std::string real;  // symbolic links resolved
  // Where that is in its file system, whatever mount it is reached through: the device, and the
  // path from the file system's own root. Empty where the kernel does not tell.
  std::string place;
};

std::unexpected<Error> bad(const Config& config, const std::string& key, const std::string& why) {
  std::string line = fmt::format("{}: key '{}': {}", config.file, key, why);
  // One line, whatever is in a path.
  std::ranges::replace_if(
      line, [](unsigned char c) { return c < ' ' || c == 127; }, '?');
  return fail(EINVAL, line);
}

// The mount that `path` is reached through.
std::optional<fuse::MountEntry> mount_of(const std::string& path) {
  struct statx info {};
  if (::statx(AT_FDCWD, path.c_str(), AT_STATX_DONT_SYNC, STATX_MNT_ID, &info) != 0 ||
      (info.stx_mask & STATX_MNT_ID) == 0)
    return std::nullopt;
  auto mounts = fuse::read_mountinfo();
  if (!mounts) return std::nullopt;
  for (fuse::MountEntry& entry : *mounts)
    if (entry.id == info.stx_mnt_id) return std::move(entry);
  return std::nullopt;
}

// What has no files that lie still until somebody writes them: a cache of it is wrong at once. And
// what is VRemote Storage already: its other nodes' writes would not be told to ours.
bool cannot_be_exported(const std::string& type) {
  constexpr std::array kTypes = {
      "proc",       "sysfs",     "cgroup",  "cgroup2",     "devpts",        "debugfs",
      "tracefs",    "configfs",  "fusectl", "bpf",         "pstore",        "efivarfs",
      "securityfs", "selinuxfs", "nsfs",    "binfmt_misc", fuse::kMountType};
  return std::ranges::find(kTypes, type) != kTypes.end();
}

std::string place_of(const fuse::MountEntry& mount, const std::string& real) {
  if (!is_within(real, mount.point)) return {};
  return normal_path(fmt::format("/{}:{}/{}/{}", mount.major, mount.minor, mount.root,
                                 real.substr(mount.point.size())));
}

Result<Resolved> check_export(const Config& config, size_t index) {
  const ExportConfig& entry = config.exports[index];
  Resolved result{fmt::format("export[{}].path", index), entry.path, {}};
  // Before the first stat: a path under our own mount may hang there.
  if (is_within(entry.path, config.mount))
    return bad(config, result.key,
               fmt::format("{} lies inside the mount {}; export a local directory", entry.path,
                           config.mount));
  struct stat info {};
  if (::stat(entry.path.c_str(), &info) != 0) {
    if (errno == ENOENT)
      return bad(config, result.key,
                 fmt::format("{} does not exist; create it or correct the path", entry.path));
    return bad(config, result.key,
               fmt::format("{}: {}; correct the path or its permissions", entry.path,
                           std::strerror(errno)));
  }
  if (!S_ISDIR(info.st_mode))
    return bad(config, result.key,
               fmt::format("{} is not a directory; an export is a whole directory", entry.path));
  char real[PATH_MAX];
  if (::realpath(entry.path.c_str(), real) == nullptr)
    return bad(config, result.key,
               fmt::format("{}: {}; correct the path or its permissions", entry.path,
                           std::strerror(errno)));
  result.real = real;
  if (const auto mount = mount_of(result.real)) {
    if (cannot_be_exported(mount->type))
      return bad(config, result.key,
                 fmt::format("{} lies on a {} file system, whose files change without being "
                             "written; export a directory of a disk",
                             entry.path, mount->type));
    result.place = place_of(*mount, result.real);
  }
  return result;
}

// Two exports over one file would be two files for the protocol, each coherent on its own: stale
// reads.
Status check_nesting(const Config& config, const std::vector<Resolved>& exports) {
  for (size_t i = 0; i < exports.size(); ++i) {
    for (size_t j = 0; j < exports.size(); ++j) {
      if (i == j) continue;
      // By the path, and by the place in the file system: a bind mount gives files a second path.
      const bool mounted_there = !exports[i].place.empty() && !exports[j].place.empty() &&
                                 is_within(exports[i].place, exports[j].place);
      if (!mounted_there && !is_within(exports[i].real, exports[j].real)) continue;
      const bool same = exports[i].real == exports[j].real ||
                        (mounted_there && exports[i].place == exports[j].place);
      if (same && i < j) continue;  // told once, of the later one
      return bad(config, exports[i].key,
                 fmt::format("{} {} export '{}' ({}); every file may belong to one export only",
                             exports[i].path, same ? "is the directory of" : "lies inside",
                             config.exports[j].name, exports[j].path));
    }
  }
  return {};
}

// Where VRemote Storage is mounted, and the path lies there. First by the text of the path: a stat
// may hang there.
std::optional<std::string> vremote_mount_of(const std::string& path) {
  const auto mounts = fuse::read_mountinfo();
  if (!mounts) return std::nullopt;
  const auto at = [&mounts](const std::string& where) -> std::optional<std::string> {
    const fuse::MountEntry* found = nullptr;
    for (const fuse::MountEntry& entry : *mounts)  // a later one covers an earlier one
      if (is_within(where, entry.point) &&
          (found == nullptr || entry.point.size() >= found->point.size()))
        found = &entry;
    if (found == nullptr || found->type != fuse::kMountType) return std::nullopt;
    return found->point;
  };
  if (auto there = at(normal_path(path))) return there;
  return at(resolve_parents(path + "/."));
}

// The library that writes the log would make the directory without a word, also where only a letter
// is wrong.
Status check_log(const Config& config) {
  if (config.log_file.empty()) return {};
  struct stat info {};
  const bool is_there = ::stat(config.log_file.c_str(), &info) == 0;
  if (is_there && S_ISDIR(info.st_mode))
    return bad(config, "log.file",
               fmt::format("{} is a directory; name a file in it", config.log_file));
  if (is_there && S_ISFIFO(info.st_mode))
    return bad(config, "log.file",
               fmt::format("{} is a named pipe: the node would wait for whoever reads it; name a "
                           "file",
                           config.log_file));
  const std::string parent = config.log_file.substr(0, config.log_file.rfind('/'));
  if (is_within(parent, config.state_dir)) return {};  // the node makes that one
  if (!parent.empty() && ::stat(parent.c_str(), &info) != 0)
    return bad(config, "log.file",
               errno == ENOENT
                   ? fmt::format("the directory {} does not exist; create it", parent)
                   : fmt::format("{}: {}; correct the path", parent, std::strerror(errno)));
  if (!parent.empty() && !S_ISDIR(info.st_mode))
    return bad(config, "log.file", fmt::format("{} is not a directory; correct the path", parent));
  return {};
}

}  // namespace

std::string normal_path(std::string_view absolute) {
  std::vector<std::string_view> parts;
  while (!absolute.empty()) {
    const size_t slash = absolute.find('/');
    const std::string_view part = absolute.substr(0, slash);
    if (part == "..") {
      if (!parts.empty()) parts.pop_back();
    } else if (!part.empty() && part != ".") {
      parts.push_back(part);
    }
    absolute = slash == std::string_view::npos ? std::string_view() : absolute.substr(slash + 1);
  }
  std::string result;
  for (std::string_view part : parts) result.append("/").append(part);
  return result.empty() ? "/" : result;
}

bool is_within(std::string_view path, std::string_view directory) {
  if (directory == "/") return true;
  return path.starts_with(directory) &&
         (path.size() == directory.size() || path[directory.size()] == '/');
}

std::string resolve_parents(const std::string& path) {
  for (size_t slash = path.rfind('/'); slash != std::string::npos;
       slash = slash == 0 ? std::string::npos : path.rfind('/', slash - 1)) {
    const std::string parent = slash == 0 ? "/" : path.substr(0, slash);
    char real[PATH_MAX];
    if (::realpath(parent.c_str(), real) == nullptr) continue;
    return normal_path(std::string(real) + path.substr(slash));
  }
  return path;
}

Result<unsigned> group_number(const std::string& name) {
  group entry{};
  group* found = nullptr;
  std::vector<char> buffer(64 << 10);
  const int code = ::getgrnam_r(name.c_str(), &entry, buffer.data(), buffer.size(), &found);
  if (found == nullptr)
    return fail(code != 0 ? code : ENOENT,
                fmt::format("this machine has no group '{}'; make it (groupadd {}) or name another",
                            name, name));
  return entry.gr_gid;
}

Status check_private_places(const Config& config) {
  struct Place {
    const char* key;
    const std::string& path;
  };
  for (const Place& place :
       {Place{"state_dir", config.state_dir}, Place{"state_dir", config.home_dir},
        Place{"recovery_dir", config.recovery_dir}})
    if (auto fit = check_private_directory(place.path); !fit && fit.error().code == EPERM)
      return bad(config, place.key, fit.error().what);
  // File handles and notes of calls, which are believed.
  if (auto fit = check_private_files(config.home_dir); !fit && fit.error().code == EPERM)
    return bad(config, "state_dir", fit.error().what);
  return {};
}

Status check_config(const Config& config) {
  // The node's own files come first: their parents are looked at below, which must not be under the
  // mount.
  static const std::string kNone;
  struct Own {
    const char* key;
    const std::string& path;
  };
  const Own own[] = {{"state_dir", config.state_dir},
                     {"recovery_dir", config.recovery_dir},
                     {"control.socket", config.control_socket},
                     {"log.file", config.log_file},
                     {"cluster.key", config.tls ? config.cluster_key : kNone}};
  for (const Own& file : own) {
    if (file.path.empty() || !is_within(file.path, config.mount)) continue;
    return bad(
        config, file.key,
        fmt::format("{} lies inside the mount {}: the node would wait for itself; move it out",
                    file.path, config.mount));
  }
  // What another node shows may hang, or change, with that node.
  for (const Own& file : own)
    if (const auto there = file.path.empty() ? std::nullopt : vremote_mount_of(file.path))
      return bad(config, file.key,
                 fmt::format("{} lies on {}, where another node shows its files; what a node needs "
                             "for itself must be on a disk of this machine",
                             file.path, *there));
  // The mount itself may be there from before.
  if (const auto there = vremote_mount_of(config.mount.substr(0, config.mount.rfind('/'))))
    return bad(config, "mount",
               fmt::format("{} lies on {}, where another node shows its files; mount beside it",
                           config.mount, *there));
  VR_TRY_VOID(check_log(config));
  if (!config.control_group.empty())
    if (auto found = group_number(config.control_group); !found)
      return bad(config, "control.group", found.error().what);
  std::vector<Resolved> exports;
  for (size_t i = 0; i < config.exports.size(); ++i) {
    VR_TRY(resolved, check_export(config, i));
    exports.push_back(std::move(resolved));
  }
  VR_TRY_VOID(check_nesting(config, exports));
  const std::string mount = resolve_parents(config.mount);
  for (size_t i = 0; i < exports.size(); ++i) {
    if (is_within(exports[i].real, mount))
      return bad(config, exports[i].key,
                 fmt::format("{} lies inside the mount {}; export a local directory",
                             exports[i].path, config.mount));
    if (is_within(mount, exports[i].real))
      return bad(config, "mount",
                 fmt::format("{} lies inside export '{}' ({}); mount outside of every export",
                             config.mount, config.exports[i].name, exports[i].path));
    for (const Own& file : own) {
      if (file.path.empty() || !is_within(resolve_parents(file.path), exports[i].real)) continue;
      return bad(config, file.key,
                 fmt::format(
                     "{} lies inside export '{}' ({}): every node would see it change; move it out",
                     file.path, config.exports[i].name, exports[i].path));
    }
  }
  return {};
}

}  // namespace vremote::node
