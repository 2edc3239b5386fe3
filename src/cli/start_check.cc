#include "cli/start_check.h"

#include <cerrno>

#include "control/socket_path.h"
#include "fuse/mount_point.h"
#include "net/address.h"
#include "node/config/config_error.h"

namespace vremote::cli {
namespace {

// `runs`: it may be the node itself that listens.
Status check_listen(const node::Endpoint& endpoint, bool runs) {
  VR_TRY(address, net::parse_address(to_string(endpoint)));
  VR_TRY(candidates, net::resolve(address, true, true));
  const auto listener = net::listen_on(candidates.front());
  if (listener || (runs && listener.error().code == EADDRINUSE)) return {};
  return std::unexpected(listener.error());
}

}  // namespace

Status check_start(const node::Config& config) {
  const bool own_socket = config.control_socket != config.state_dir + "/control.sock";
  if (auto place = control::check_socket_place(config.control_socket); !place)
    return bad_key(config, own_socket ? "control.socket" : "state_dir", place.error());
  if (own_socket)
    if (auto place = control::check_socket_place(config.state_dir + "/guard.sock"); !place)
      return bad_key(config, "state_dir", place.error());
  auto mounted = fuse::check_mount_point(config.mount);
  if (!mounted) return bad_key(config, "mount", mounted.error());
  if (auto listen = check_listen(config.listen, *mounted); !listen)
    return bad_key(config, "listen", listen.error());
  return {};
}

}  // namespace vremote::cli
