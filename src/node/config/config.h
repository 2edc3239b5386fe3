// The configuration of one node: node.toml as values, every one of them checked.
//
// A mistake is one line that names the file, the place in it, the key and the mend:
//   /etc/vremote/node.toml:12:8: key 'export[0].path': /srv/x does not exist; create it or correct
//   the path
// All paths are absolute: a relative one is refused, because the daemon, `vremote run` and
// libvremote read this file from different working directories and must mean the same place.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "net/key_ring.h"
#include "node/config/access.h"

namespace vremote::node {

inline constexpr uint16_t kDefaultPort = 1104;
inline constexpr std::string_view kDefaultStateDir = "/run/vremote";
inline constexpr std::string_view kDefaultHomeDir = "/var/lib/vremote/home";
inline constexpr std::string_view kDefaultRecoveryDir = "/var/lib/vremote/recovery";

// Where to listen or connect: a host name or a literal IPv4 or IPv6 address (without brackets), and
// a port.
struct Endpoint {
  std::string host;
  uint16_t port = kDefaultPort;
  bool operator==(const Endpoint&) const = default;
};
// "host:port", "[v6]:port"
std::string to_string(const Endpoint& endpoint);
// The reverse; the port may be left out. The error says what is wrong, without file and key.
Result<Endpoint> parse_endpoint(std::string_view text);

enum class LogLevel : uint8_t { Trace, Debug, Info, Warn, Error };
std::string_view to_string(LogLevel level);

struct ExportConfig {
  std::string name;  // the directory under the mount on every node
  std::string
      path;  // absolute and normal (no "..", no trailing slash); as written, symbolic links kept
  ExportAccess access;
};

struct PeerConfig {
  std::string name;
  Endpoint address;
};

struct Config {
  std::string file;  // where it was read from
  std::string node;
  std::string cluster = "vremote";
  std::string cluster_key;  // the file; cluster.key beside `file` unless given
  bool tls = true;
  std::string mount = "/vremote";
  bool mount_suid = false;  // set-user-ID programs and file capabilities count on the mount
  std::string state_dir{kDefaultStateDir};
  Endpoint listen{"0.0.0.0", kDefaultPort};
  unsigned loops = 1;          // event loops
  std::string control_socket;  // <state_dir>/control.sock unless given
  std::string control_group;   // the socket's; empty: the node's own
  unsigned control_mode = 0666;
  std::string log_file;  // empty: standard error
  LogLevel log_level = LogLevel::Info;
  uint64_t dirty_max_bytes = uint64_t{256} << 20;
  int64_t flush_after_ms = 1000;
  uint32_t readahead_kib = 1024;
  // Of the homes here: how long a node that is not heard of keeps what others need.
  int64_t lease_term_ms = 10'000;
  int64_t leases_max = 0;  // of this node's exports, for all nodes; 0: by the machine's memory
  int64_t grace_ms = 0;    // after a restart, for nodes to claim what they had; 0: the lease term
  int64_t recall_warn_ms = 5'000, recall_deadline_ms = 60'000;
  // Of the mount: calls that wait for an origin longer than this fail with EIO; 0: they wait.
  int64_t soft_timeout_ms = 0;
  std::string recovery_dir;          // what could not be flushed
  int64_t restart_wait_ms = 60'000;  // of the guardian, for the next daemon
  std::string home_dir;              // what a home here must know after a crash
  std::vector<ExportConfig> exports;
  std::vector<PeerConfig> peers;
  std::vector<std::string> warnings;  // for the log, at start: what is legal and still worth a word
};

// Reads and checks `text`, alone: nothing outside is looked at. `file` is for the error lines.
Result<Config> parse_config(std::string_view text, const std::string& file);
// The number of a group of this machine.
Result<unsigned> group_number(const std::string& name);
// What only the machine can tell: exports exist and are directories, none lies inside another or
// inside the mount or holds it, and the node's own files are in neither. Never touches the mount
// point itself, which may hang or be dead.
Status check_config(const Config& config);
// For a node of this process's user: nobody else has, or could have, a hand in the directories in
// which it keeps what it needs itself (base/private_directory.h). Those that cannot be made are no
// error here.
Status check_private_places(const Config& config);

// parse_config of a file: for programs that only talk to a running node (status, run).
Result<Config> read_config(const std::string& path);
// read_config, check_config, and with TLS the key, for the node.
Result<Config> load_config(const std::string& path);
// The key of the node's cluster (docs/security.md), which must be that of this cluster, and of this
// node when it is a guest's.
Result<net::KeyRing> load_key(const Config& config);

// A commented node.toml to start from; parse_config accepts it.
std::string_view config_example();

}  // namespace vremote::node
