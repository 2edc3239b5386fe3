#include "node/daemon.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <pthread.h>
#include <signal.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <exception>

#include "base/start_thread.h"
#include "node/config/config_error.h"
#include "node/guardian/guardian_door.h"
#include "node/guardian/guardian_link.h"
#include "node/handover/handover.h"
#include "node/handover/salvage.h"
#include "node/node.h"
#include "node/process_setup.h"

namespace vremote::node {
namespace {

constexpr int kExitFailed = 1;
constexpr int kExitConfig = 2;
constexpr int64_t kStopPatienceMs = 8000;

// Ends what the last daemon has left, its mount with it. An error: that one lives.
Status retire(const Config& config, const GuardianOptions& options) {
  auto retired = retire_guardian(options.socket);
  if (!retired) {
    spdlog::error("{}", retired.error().what);
    return {};
  }
  if (*retired == Retired::Guardian)
    spdlog::info("the guardian of the last daemon has ended its connection");
  if (*retired != Retired::DaemonLives) return {};
  return bad_key(config, "state_dir",
                 {EADDRINUSE, fmt::format("another node runs with {}, or the program that it has "
                                          "become hangs; stop it or give this one a state_dir of "
                                          "its own",
                                          config.state_dir)});
}

int refuse_start(const Config& config, const Error& why) {
  spdlog::error("{}", why.what);
  if (!config.log_file.empty())
    std::fputs(fmt::format("vremote node: {}\n", why.what).c_str(), stderr);
  return kExitConfig;
}

std::unique_ptr<GuardianLink> start_guardian(const GuardianOptions& options) {
  auto guardian = GuardianLink::start(options);
  if (guardian) return std::move(*guardian);
  spdlog::error("no guardian: {}; were this daemon to die, its kernel would go on serving",
                guardian.error().what);
  return nullptr;
}

Result<Handover> take_what_was_left(const Config& config, const Fd& memory) {
  VR_TRY(left, read_handover(memory));
  for (int fd : left.descriptors())
    if (::fcntl(fd, F_SETFD, FD_CLOEXEC) != 0)
      return fail(EBADF, fmt::format("descriptor {} of the daemon before is not open", fd));
  if (left.node != config.node || left.cluster != config.cluster)
    return fail(EINVAL, fmt::format("the daemon before was node {} of cluster {}", left.node,
                                    left.cluster));
  return std::move(left);
}

// What a library throws is one reason more not to start: unwound, it would take apart a mount that
// the guardian can keep for the next start.
Status start(NodeDaemon& node) {
  try {
    return node.start([] { kill(getpid(), SIGUSR1); });
  } catch (const std::exception& error) {
    spdlog::error("cannot start: {}", error.what());
    ::_exit(kExitFailed);
  }
}

// Null: there was none.
Result<std::unique_ptr<GuardianLink>> inherit_guardian(const Handover& left) {
  if (!left.guardian) return std::unique_ptr<GuardianLink>();
  return GuardianLink::take_over(Fd(left.guardian->link), Fd(left.guardian->table),
                                 left.guardian->pid);
}

}  // namespace

int run_node(const Config& config, coherence::Mistakes mistakes, int handover) {
  // Before any thread: all inherit the mask, and this thread alone takes the signals.
  sigset_t signals;
  sigemptyset(&signals);
  for (int s : {SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2, SIGURG}) sigaddset(&signals, s);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  sigdelset(&signals, SIGURG);  // FuseServer's
  // A parent may have left them ignored.
  for (int s : {SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2}) signal(s, SIG_DFL);
  signal(SIGPIPE, SIG_IGN);

  if (auto log = start_log(config); !log) {
    std::fputs(fmt::format("vremote node: {}\n", log.error().what).c_str(), stderr);
    return kExitConfig;
  }
  for (const std::string& warning : config.warnings) spdlog::warn("{}", warning);
  prepare_process();
  // Beforehand: a start that fails half-way cannot always put back what it found.
  if (handover < 0) {
    if (auto limits = limits_are_fit(); !limits) return refuse_start(config, limits.error());
    if (auto places = check_private_places(config); !places)
      return refuse_start(config, places.error());
    if (auto had = threads_can_be_had(NodeDaemon::threads(config)); !had)
      return refuse_start(config, had.error());
  }
  // Before any thread, too; and before what the last daemon had is looked for.
  const GuardianOptions guarding{.socket = config.state_dir + "/guard.sock",
                                 .recovery_dir = config.recovery_dir,
                                 .restart_wait_ms = config.restart_wait_ms,
                                 .soft_timeout_ms = config.soft_timeout_ms};
  std::optional<Handover> before;
  std::unique_ptr<GuardianLink> guardian;
  if (handover >= 0) {
    auto left = take_what_was_left(config, Fd(handover));
    auto link = left ? inherit_guardian(*left)
                     : Result<std::unique_ptr<GuardianLink>>(std::unexpected(left.error()));
    if (!link) {
      // Its guardian takes this for the death of the daemon, which it is.
      spdlog::error("upgrade: {}", link.error().what);
      return kExitFailed;
    }
    before = std::move(*left);
    guardian = std::move(*link);
  } else {
    // First, so that it does not have what the next line gets.
    guardian = start_guardian(guarding);
    if (guardian != nullptr) before = salvage_mount(config, guarding.socket);
    // Now: one that hangs while it takes over has no other lock, and this one would listen for
    // other nodes before it found the mount in use.
    if (!before)
      if (auto alone = retire(config, guarding); !alone) return refuse_start(config, alone.error());
  }
  if (guardian != nullptr && handover < 0)
    guardian->table().identify(identity_of(config), before ? before->mount.generation : 0);
  const bool takes_over = before.has_value();
  const bool after_crash = takes_over && before->crash != nullptr;
  NodeDaemon node(config, mistakes, guardian.get(), std::move(before));
  if (auto started = start(node); !started) {
    const int refused = refuse_start(config, started.error());
    // Nothing of the mount may be touched: its guardian does what has to be done.
    if (takes_over) ::_exit(after_crash ? kExitConfig : kExitFailed);
    node.stop(0);
    return refused;
  }
  for (;;) {
    int which = 0;
    if (sigwait(&signals, &which) != 0) continue;
    if (which == SIGHUP) continue;  // a lost terminal is no reason to go
    if (which == SIGUSR2) {
      if (const auto binary = node.wanted_upgrade()) node.upgrade(*binary);
      continue;
    }
    if (which == SIGUSR1) spdlog::warn("the mount {} was ended from outside", config.mount);
    break;
  }
  spdlog::info("ending");
  const bool clean = node.stop(kStopPatienceMs);
  spdlog::info("ended");
  return clean ? 0 : kExitFailed;
}

}  // namespace vremote::node
