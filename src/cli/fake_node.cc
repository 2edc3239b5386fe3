#include "cli/fake_node.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/mount.h>
#include <unistd.h>

#include <cstdlib>
#include <string>

#include "base/fd.h"
#include "control/server.h"
#include "control/status.h"
#include "node/config/config.h"

namespace vremote::cli {
namespace {

std::string reply_to(const node::Config& config, const std::string& behaviour,
                     const std::string& request) {
  auto name = control::request_name(request);
  if (!name) return control::error_reply(name.error().what);
  if (*name != "status") return control::error_reply("unknown request '" + *name + "'");
  control::NodeStatus status;
  status.node = config.node;
  status.pid = ::getpid();
  status.mount = config.mount;
  status.ready = behaviour != "never_ready";
  for (const node::PeerConfig& peer : config.peers) {
    control::PeerStatus entry;
    entry.name = peer.name;
    entry.address = node::to_string(peer.address);
    entry.connected = behaviour != "disconnected";
    status.peers.push_back(entry);
  }
  return control::to_json(status);
}

}  // namespace

int run_fake_node(const node::Config& config) {
  const char* value = std::getenv(("VREMOTE_FAKE_" + config.node).c_str());
  const std::string behaviour = value != nullptr ? value : "";
  if (behaviour == "die") {
    fmt::print(stderr, "first line\nthe disk caught fire\n");
    return 3;
  }
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  ::sigprocmask(SIG_BLOCK, &set, nullptr);
  Fd device;
  if (behaviour == "leave_mount" || behaviour == "stubborn") {
    device = Fd(::open("/dev/fuse", O_RDWR | O_CLOEXEC));
    const std::string options =
        fmt::format("fd={},rootmode=40000,user_id=0,group_id=0", device.get());
    if (::mount("vremote-test", config.mount.c_str(), "fuse", MS_NOSUID | MS_NODEV,
                options.c_str()) != 0)
      return 5;
  }
  auto server = control::ControlServer::start(
      config.control_socket,
      [&](const std::string& request) { return reply_to(config, behaviour, request); });
  if (!server) {
    fmt::print(stderr, "{}\n", server.error().what);
    return 1;
  }
  for (;;) {
    int signal = 0;
    ::sigwait(&set, &signal);
    if (behaviour != "stubborn") return behaviour == "bad_end" ? 4 : 0;
  }
}

}  // namespace vremote::cli
