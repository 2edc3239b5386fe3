#include "node/config/config.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <fstream>
#include <iterator>
#include <optional>
#include <set>
#include <sstream>
#include <thread>

#include "node/config/config_section.h"

namespace vremote::node {
namespace {

constexpr size_t kSocketPathMax = 107;    // sun_path less its final 0
constexpr size_t kFileMax = 1024 * 1024;  // a node.toml is a few lines; /dev/zero is not one
// K6: the kernel's window must stay within one request of 256 pages.
constexpr uint64_t kReadaheadMaxKib = 1024;
constexpr int64_t kLeasesLeast = 1000;

Status read_cluster(const Section& cluster, Config& config) {
  VR_TRY_VOID(cluster.only({"name", "key", "tls"}));
  VR_TRY_VOID(cluster.name("name", config.cluster));
  VR_TRY_VOID(cluster.path("key", config.cluster_key));
  std::string tls = "on";
  VR_TRY_VOID(cluster.string("tls", tls));
  if (tls != "on" && tls != "off")
    return cluster.bad("tls",
                       fmt::format("'{}' is neither \"on\" nor \"off\"; write one of them", tls));
  config.tls = tls == "on";
  if (!config.tls)
    config.warnings.push_back(
        "tls = \"off\": traffic between nodes is neither encrypted nor authenticated; whoever "
        "reaches this node's port may read and write what it exports");
  return {};
}

std::string directory_of(const std::string& file) {
  const size_t slash = file.rfind('/');
  return slash == std::string::npos ? "." : file.substr(0, slash);
}

// The socket's mode: read and write, which connecting takes, for the user at least.
Status read_control(const Section& control, Config& config) {
  VR_TRY_VOID(control.only({"socket", "group", "mode"}));
  VR_TRY_VOID(control.path("socket", config.control_socket));
  VR_TRY_VOID(control.name("group", config.control_group));
  std::string mode = control.has("group") ? "0660" : "0666";
  VR_TRY_VOID(control.string("mode", mode));
  const auto [end, error] =
      std::from_chars(mode.data(), mode.data() + mode.size(), config.control_mode, 8);
  if (error != std::errc() || end != mode.data() + mode.size() || mode.size() > 4 ||
      (config.control_mode & ~0666u) != 0 || (config.control_mode & 0600u) != 0600u)
    return control.bad("mode", fmt::format("'{}' is no mode of a socket; write \"0666\" (all may "
                                           "ask), \"0660\" (the group) or \"0600\" (only root)",
                                           mode));
  return {};
}

Status read_log(const Section& log, Config& config) {
  VR_TRY_VOID(log.only({"file", "level"}));
  VR_TRY_VOID(log.path("file", config.log_file));
  std::string level{to_string(config.log_level)};
  VR_TRY_VOID(log.string("level", level));
  constexpr LogLevel kLevels[] = {LogLevel::Trace, LogLevel::Debug, LogLevel::Info, LogLevel::Warn,
                                  LogLevel::Error};
  const auto* found = std::ranges::find(kLevels, level, [](LogLevel l) { return to_string(l); });
  if (found == std::end(kLevels))
    return log.bad("level",
                   fmt::format("'{}' is no level; use trace, debug, info, warn or error", level));
  config.log_level = *found;
  return {};
}

Status read_guardian(const Section& guardian, Config& config) {
  VR_TRY_VOID(guardian.only({"restart_wait_s"}));
  uint64_t seconds = static_cast<uint64_t>(config.restart_wait_ms) / 1000;
  VR_TRY_VOID(guardian.integer("restart_wait_s", seconds, 0, 86400));
  config.restart_wait_ms = static_cast<int64_t>(seconds) * 1000;
  return {};
}

Status read_cache(const Section& cache, Config& config) {
  VR_TRY_VOID(cache.only({"dirty_max_mib", "flush_after_ms", "readahead_kib"}));
  uint64_t dirty_max_mib = config.dirty_max_bytes >> 20;
  VR_TRY_VOID(cache.integer("dirty_max_mib", dirty_max_mib, 1, 1 << 20));
  config.dirty_max_bytes = dirty_max_mib << 20;
  VR_TRY_VOID(cache.integer("flush_after_ms", config.flush_after_ms, 1, 3600 * 1000));
  VR_TRY_VOID(cache.integer("readahead_kib", config.readahead_kib, 4, kReadaheadMaxKib));
  if (config.readahead_kib % 4 != 0)
    return cache.bad(
        "readahead_kib",
        fmt::format("{} is no whole number of pages; use a multiple of 4", config.readahead_kib));
  return {};
}

Status read_lease(const Section& lease, Config& config) {
  VR_TRY_VOID(lease.only(
      {"term_ms", "grace_ms", "recall_warn_ms", "recall_deadline_ms", "soft_timeout_ms", "max"}));
  VR_TRY_VOID(lease.integer("term_ms", config.lease_term_ms, 1000, 600'000));
  VR_TRY_VOID(lease.integer("grace_ms", config.grace_ms, 0, 3600 * 1000));
  VR_TRY_VOID(lease.integer("recall_warn_ms", config.recall_warn_ms, 100, 3600 * 1000));
  VR_TRY_VOID(lease.integer("recall_deadline_ms", config.recall_deadline_ms, 1000, 3600 * 1000));
  VR_TRY_VOID(lease.integer("soft_timeout_ms", config.soft_timeout_ms, 0, 24 * 3600 * 1000));
  VR_TRY_VOID(lease.integer("max", config.leases_max, 0, int64_t{1} << 30));
  if (config.leases_max != 0 && config.leases_max < kLeasesLeast)
    return lease.bad("max",
                     fmt::format("{} is too few to work with; make it at least {}, or 0 for what "
                                 "suits the machine's memory",
                                 config.leases_max, kLeasesLeast));
  if (config.recall_deadline_ms < config.lease_term_ms)
    return lease.bad("recall_deadline_ms",
                     fmt::format("{} is shorter than the lease term of {}: a node that is cut off "
                                 "for a moment would be put out; make it longer",
                                 config.recall_deadline_ms, config.lease_term_ms));
  if (config.grace_ms != 0 && config.grace_ms < config.lease_term_ms)
    return lease.bad(
        "grace_ms", fmt::format("{} is shorter than the lease term of {}; make it longer, or 0 for "
                                "the term itself",
                                config.grace_ms, config.lease_term_ms));
  return {};
}

// Who may do what: access.h.
Status read_access(const Section& section, Config& config, ExportConfig& entry) {
  ExportAccess& access = entry.access;
  VR_TRY_VOID(section.boolean("read_only", access.read_only));
  VR_TRY_VOID(section.names("read", access.readers));
  VR_TRY_VOID(section.names("write", access.writers));
  VR_TRY_VOID(section.boolean("root_squash", access.root_squash));
  constexpr uint64_t kIdMax = 0xFFFFFFFE;  // the last means "leave it" to chown(2)
  VR_TRY_VOID(section.integer("anonymous_uid", access.anonymous_uid, 1, kIdMax));
  VR_TRY_VOID(section.integer("anonymous_gid", access.anonymous_gid, 1, kIdMax));
  for (const char* key : {"anonymous_uid", "anonymous_gid"})
    if (section.has(key) && !access.root_squash)
      return section.bad(key,
                         "says whom root of other nodes becomes, and 'root_squash' is not set; "
                         "add root_squash = true, or remove it");
  if (access.read_only && access.writers && !access.writers->empty())
    return section.bad("write", "names nodes, and 'read_only' is set; remove one of them");
  for (const std::string& writer : access.writers.value_or(std::vector<std::string>()))
    if (!access.may_read(writer))
      return section.bad("write",
                         fmt::format("'{}' may write and not read; add it to 'read'", writer));
  if (!config.tls && (access.readers || access.writers))
    config.warnings.push_back(fmt::format(
        "export {}: 'read' and 'write' name nodes, and without TLS any node may say any name",
        entry.name));
  return {};
}

Status read_exports(const Section& top, Config& config) {
  VR_TRY(sections, top.sections("export"));
  std::set<std::string> names;
  for (const Section& section : sections) {
    ExportConfig entry;
    VR_TRY_VOID(section.only({"name", "path", "read_only", "read", "write", "root_squash",
                              "anonymous_uid", "anonymous_gid"}));
    VR_TRY_VOID(section.name("name", entry.name));
    VR_TRY_VOID(section.path("path", entry.path));
    VR_TRY_VOID(read_access(section, config, entry));
    if (!section.has("name"))
      return section.bad("name", "is missing; it names the directory under the mount");
    if (!section.has("path"))
      return section.bad("path", "is missing; it is the local directory to share");
    if (!names.insert(entry.name).second)
      return section.bad(
          "name", fmt::format("'{}' names an earlier export already; choose another", entry.name));
    config.exports.push_back(std::move(entry));
  }
  return {};
}

Status read_peers(const Section& top, Config& config) {
  VR_TRY(sections, top.sections("peer"));
  std::set<std::string> names;
  std::set<std::string> addresses;
  for (const Section& section : sections) {
    PeerConfig entry;
    VR_TRY_VOID(section.only({"name", "address"}));
    VR_TRY_VOID(section.name("name", entry.name));
    VR_TRY_VOID(section.endpoint("address", entry.address));
    if (!section.has("name")) return section.bad("name", "is missing; it is the peer's `node`");
    if (!section.has("address")) return section.bad("address", "is missing; write \"host:port\"");
    if (entry.name == config.node)
      return section.bad("name",
                         fmt::format("'{}' is this node itself; list only the others", entry.name));
    if (!names.insert(entry.name).second)
      return section.bad("name",
                         fmt::format("'{}' names an earlier peer already; remove one", entry.name));
    if (!addresses.insert(to_string(entry.address)).second)
      return section.bad("address", fmt::format("{} is an earlier peer's already; correct one",
                                                to_string(entry.address)));
    config.peers.push_back(std::move(entry));
  }
  return {};
}

Status read_top(const Section& top, Config& config) {
  if (top.has("tls")) return top.bad("tls", "belongs below [cluster]; move it there");
  VR_TRY_VOID(
      top.only({"node", "cluster", "mount", "mount_suid", "state_dir", "listen", "loops", "control",
                "log", "cache", "guardian", "lease", "recovery_dir", "export", "peer"}));
  if (!top.has("node"))
    return top.bad("node", "is missing; give this node a name of its own: node = \"node1\"");
  VR_TRY_VOID(top.name("node", config.node));
  VR_TRY(cluster, top.section("cluster"));
  config.cluster_key = directory_of(config.file) + "/cluster.key";
  if (cluster) VR_TRY_VOID(read_cluster(*cluster, config));
  VR_TRY_VOID(top.path("mount", config.mount));
  if (config.mount == "/")
    return top.bad("mount", "cannot be /; use a directory of its own, such as /vremote");
  VR_TRY_VOID(top.boolean("mount_suid", config.mount_suid));
  if (config.mount_suid)
    config.warnings.push_back(
        "mount_suid: whoever is root on a node that may write to an export can make programs that "
        "run as root here");
  VR_TRY_VOID(top.path("state_dir", config.state_dir));
  if (config.state_dir == "/")
    return top.bad("state_dir", "cannot be /; use a directory of its own, such as /run/vremote");
  VR_TRY_VOID(top.endpoint("listen", config.listen));
  config.loops = std::clamp(std::thread::hardware_concurrency(), 1u, 4u);
  VR_TRY_VOID(top.integer("loops", config.loops, 1, 64));

  config.control_socket = config.state_dir + "/control.sock";
  VR_TRY(control, top.section("control"));
  if (control) {
    VR_TRY_VOID(read_control(*control, config));
  }
  if (config.control_socket.size() > kSocketPathMax) {
    const std::string why = fmt::format(
        "the socket's path '{}' has {} bytes and a unix socket takes {}; choose a shorter one",
        config.control_socket, config.control_socket.size(), kSocketPathMax);
    return control && control->has("socket") ? Status(control->bad("socket", why))
                                             : Status(top.bad("state_dir", why));
  }
  VR_TRY(log, top.section("log"));
  if (log) VR_TRY_VOID(read_log(*log, config));
  VR_TRY(cache, top.section("cache"));
  if (cache) VR_TRY_VOID(read_cache(*cache, config));
  VR_TRY(lease, top.section("lease"));
  if (lease) VR_TRY_VOID(read_lease(*lease, config));
  // The default state directory does not outlive a reboot; what people may want back must.
  config.recovery_dir = config.state_dir == kDefaultStateDir ? std::string(kDefaultRecoveryDir)
                                                             : config.state_dir + "/recovery";
  VR_TRY_VOID(top.path("recovery_dir", config.recovery_dir));
  VR_TRY(guardian, top.section("guardian"));
  if (guardian) VR_TRY_VOID(read_guardian(*guardian, config));
  config.home_dir = config.state_dir == kDefaultStateDir ? std::string(kDefaultHomeDir)
                                                         : config.state_dir + "/home";
  VR_TRY_VOID(read_exports(top, config));
  return read_peers(top, config);
}

}  // namespace

std::string to_string(const Endpoint& endpoint) {
  const bool v6 = endpoint.host.find(':') != std::string::npos;
  return v6 ? fmt::format("[{}]:{}", endpoint.host, endpoint.port)
            : fmt::format("{}:{}", endpoint.host, endpoint.port);
}

Result<Endpoint> parse_endpoint(std::string_view text) {
  auto wrong = [&](std::string_view why) {
    return fail(EINVAL,
                fmt::format("'{}' {}; write \"host:port\", \"10.0.0.2:1104\" or \"[::1]:1104\"",
                            text, why));
  };
  std::string_view host = text;
  std::optional<std::string_view> port;
  if (text.starts_with('[')) {
    const size_t close = text.find(']');
    if (close == std::string_view::npos) return wrong("lacks the closing ]");
    host = text.substr(1, close - 1);
    std::string_view rest = text.substr(close + 1);
    if (host.find(':') == std::string_view::npos)
      return wrong("has no IPv6 address between [ and ]");
    if (!rest.empty()) {
      if (rest.front() != ':') return wrong("has something other than :port after ]");
      port = rest.substr(1);
    }
  } else if (const size_t colon = text.find(':'); colon != std::string_view::npos) {
    if (text.find(':', colon + 1) != std::string_view::npos)
      return wrong("is an IPv6 address without [ ]");
    host = text.substr(0, colon);
    port = text.substr(colon + 1);
  }
  if (host.empty()) return wrong("has no host");
  // A resolver would take it for an IPv4 address of one number.
  if (host.find_first_not_of("0123456789") == std::string_view::npos)
    return wrong("is a number without an address");
  if (host.size() > 253) return wrong("has a host name longer than 253 letters");
  auto graphic = [](char c) { return c > ' ' && c < 0x7f && c != '/' && c != '[' && c != ']'; };
  if (!std::ranges::all_of(host, graphic)) return wrong("has a letter no host name has");
  Endpoint result{std::string(host), kDefaultPort};
  if (port) {
    unsigned number = 0;
    const auto [end, error] = std::from_chars(port->data(), port->data() + port->size(), number);
    if (error != std::errc() || end != port->data() + port->size() || number < 1 || number > 65535)
      return wrong("has no port from 1 to 65535 after the colon");
    result.port = static_cast<uint16_t>(number);
  }
  return result;
}

std::string_view to_string(LogLevel level) {
  switch (level) {
    case LogLevel::Trace:
      return "trace";
    case LogLevel::Debug:
      return "debug";
    case LogLevel::Info:
      return "info";
    case LogLevel::Warn:
      return "warn";
    case LogLevel::Error:
      return "error";
  }
  return "info";
}

Result<Config> parse_config(std::string_view text, const std::string& file) {
  auto parsed = toml::parse(text, std::string_view(file));
  if (!parsed) {
    const auto at = parsed.error().source().begin;
    return fail(EINVAL,
                one_line(fmt::format("{}:{}:{}: not valid TOML: {}", file, at.line, at.column,
                                     std::string_view(parsed.error().description()))));
  }
  Config config;
  config.file = file;
  VR_TRY_VOID(read_top(Section(parsed.table(), "", file), config));
  return config;
}

Result<Config> read_config(const std::string& path) {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) {
    const int code = errno;
    return fail(
        code,
        fmt::format("{}: {}; name the node's configuration with --config FILE or VREMOTE_CONFIG",
                    path, std::strerror(code)));
  }
  if (!S_ISREG(info.st_mode))
    return fail(EINVAL, fmt::format("{}: not a regular file; name the node's configuration", path));
  if (static_cast<uint64_t>(info.st_size) > kFileMax)
    return fail(EFBIG, fmt::format("{}: larger than 1 MiB; this is no node configuration", path));
  std::ifstream stream(path, std::ios::binary);
  std::ostringstream text;
  if (!stream || (info.st_size > 0 && !(text << stream.rdbuf()))) {
    const int code = errno != 0 ? errno : EIO;
    return fail(code, fmt::format("{}: cannot read it: {}", path, std::strerror(code)));
  }
  return parse_config(text.view(), path);
}

Result<Config> load_config(const std::string& path) {
  VR_TRY(config, read_config(path));
  VR_TRY_VOID(check_config(config));
  if (config.tls)
    if (auto key = load_key(config); !key) return std::unexpected(key.error());
  return std::move(config);
}

}  // namespace vremote::node
