#include "cli/start_check.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <utility>
#include <vector>

#include "base/fd.h"
#include "control/client.h"
#include "control/socket_path.h"
#include "fuse/mount_point.h"
#include "net/address.h"
#include "node/config/config.h"
#include "node/config/config_error.h"

namespace vremote::cli {
namespace {

constexpr int64_t kPatienceMs = 5000;
constexpr int64_t kPathMs = 1000;
constexpr size_t kSaidMax = 64 << 10;

// `runs`: it may be the node itself that listens.
Status check_listen(const node::Endpoint& endpoint, bool runs) {
  VR_TRY(address, net::parse_address(to_string(endpoint)));
  VR_TRY(candidates, net::resolve(address, true, true));
  const auto listener = net::listen_on(candidates.front());
  if (listener || (runs && listener.error().code == EADDRINUSE)) return {};
  return std::unexpected(listener.error());
}

// Whether a directory is there to be written to, or can be made.
Status check_directory(const std::string& path) {
  std::filesystem::path there = path;
  struct stat info {};
  while (::stat(there.c_str(), &info) != 0) {
    if (errno != ENOENT) return fail(errno, fmt::format("{}: {}", path, std::strerror(errno)));
    there = there.parent_path();
  }
  if (!S_ISDIR(info.st_mode))
    return fail(ENOTDIR, fmt::format("{} is not a directory; name another place", there.c_str()));
  if (::access(there.c_str(), W_OK | X_OK) != 0)
    return fail(errno, fmt::format("{} may not be written to: {}; run the node as root, or name a "
                                   "place its user may write to",
                                   there.c_str(), std::strerror(errno)));
  return {};
}

Status check_places(const node::Config& config, CheckFor who) {
  const bool own_socket = config.control_socket != config.state_dir + "/control.sock";
  if (auto place = control::check_socket_place(config.control_socket); !place)
    return bad_key(config, own_socket ? "control.socket" : "state_dir", place.error());
  if (own_socket)
    if (auto place = control::check_socket_place(config.state_dir + "/guard.sock"); !place)
      return bad_key(config, "state_dir", place.error());
  VR_TRY_VOID(node::check_private_places(config));
  if (who == CheckFor::People) {
    if (auto place = check_directory(config.recovery_dir); !place)
      return bad_key(config, "recovery_dir", place.error());
    if (auto place = check_directory(config.home_dir); !place)
      return bad_key(config, "state_dir", place.error());
  }
  if (auto mounted = fuse::check_mount_point(config.mount); !mounted)
    return bad_key(config, "mount", mounted.error());
  return {};
}

bool hangs(const std::function<Status()>& check, int64_t patience_ms) {
  const Status status = check_in_time(check, patience_ms);
  return !status && status.error().code == ETIMEDOUT;
}

// Which path of the configuration does not answer.
Status who_hangs(const std::string& file) {
  const auto told = [&](const std::string& what) {
    return fail(ETIMEDOUT,
                fmt::format("{}: {} leads to a file system that does not answer; mend that, or "
                            "name another place",
                            file, what));
  };
  const auto read = [&]() -> Status {
    VR_TRY_VOID(node::read_config(file));
    return {};
  };
  if (hangs(read, kPathMs)) return told("this path");
  VR_TRY(config, node::read_config(file));
  std::vector<std::pair<std::string, std::string>> paths{
      {"state_dir", config.state_dir},
      {"state_dir", config.home_dir},
      {"recovery_dir", config.recovery_dir},
      {"control.socket", config.control_socket},
      {"log.file", config.log_file},
      {"cluster.key", config.cluster_key},
      {"mount", std::filesystem::path(config.mount).parent_path()}};
  for (size_t i = 0; i < config.exports.size(); ++i)
    paths.emplace_back(fmt::format("export[{}].path", i), config.exports[i].path);
  for (const auto& [key, path] : paths) {
    const auto look = [&path = path]() -> Status {
      struct stat info {};
      (void)::stat(path.c_str(), &info);
      return {};
    };
    if (hangs(look, kPathMs)) return told(fmt::format("key '{}': {}", key, path));
  }
  return told("one of its paths");
}

}  // namespace

Status check_in_time(const std::function<Status()>& check, int64_t patience_ms) {
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) return fail(errno, std::strerror(errno));
  Fd out(ends[0]), in(ends[1]);
  const pid_t pid = ::fork();
  if (pid < 0) return fail(errno, std::strerror(errno));
  if (pid == 0) {
    // Whoever waits for the end of what the caller says does not wait for this one.
    const Fd nothing(::open("/dev/null", O_RDWR | O_CLOEXEC));
    for (int fd : {0, 1, 2}) (void)::dup2(nothing.get(), fd);
    const Status fit = check();
    const std::string said = fit ? "0" : fmt::format("{} {}", fit.error().code, fit.error().what);
    (void)!::write(in.get(), said.data(), std::min(said.size(), kSaidMax));
    ::_exit(0);
  }
  in.reset();
  pollfd wait{out.get(), POLLIN, 0};
  std::string said(kSaidMax, '\0');
  const bool answers = ::poll(&wait, 1, static_cast<int>(patience_ms)) == 1;
  const ssize_t length = answers ? ::read(out.get(), said.data(), said.size()) : 0;
  if (!answers) {
    ::kill(pid, SIGKILL);  // and it ends when it can
    return fail(ETIMEDOUT, "no answer in time");
  }
  (void)::waitpid(pid, nullptr, 0);
  said.resize(std::max<ssize_t>(length, 0));
  int code = 0;
  const char* const last = said.data() + said.size();
  const auto [end, error] = std::from_chars(said.data(), last, code);
  if (error != std::errc()) return fail(EIO, "the check ended without an answer");
  if (code == 0) return {};
  return fail(code, std::string(std::min(end + 1, last), last));
}

Status check_start(const std::string& file, CheckFor who) {
  const auto places = [&]() -> Status {
    VR_TRY(config, node::load_config(file));
    return check_places(config, who);
  };
  if (auto fit = check_in_time(places, kPatienceMs); !fit)
    return fit.error().code == ETIMEDOUT ? who_hangs(file) : fit;
  VR_TRY(config, node::read_config(file));
  auto mounted = fuse::check_mount_point(config.mount);
  if (!mounted) return bad_key(config, "mount", mounted.error());
  // A dead daemon's mount may be there, and its port somebody else's.
  const bool runs = *mounted && control::control_process(config.control_socket).has_value();
  if (auto listen = check_listen(config.listen, runs); !listen)
    return bad_key(config, "listen", listen.error());
  if (*mounted) return {};
  if (auto may = fuse::check_may_mount(); !may) return bad_key(config, "mount", may.error());
  return {};
}

}  // namespace vremote::cli
