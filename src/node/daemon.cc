#include "node/daemon.h"

#include <fmt/format.h>
#include <pthread.h>
#include <signal.h>
#include <spdlog/spdlog.h>

#include <cstdio>

#include "node/guardian_link.h"
#include "node/node.h"
#include "node/process_setup.h"

namespace vremote::node {
namespace {

constexpr int kExitConfig = 2;
constexpr int64_t kStopPatienceMs = 8000;

}  // namespace

int run_node(const Config& config, coherence::Mistakes mistakes) {
  // Before any thread: all inherit the mask, and this thread alone takes the signals.
  sigset_t signals;
  sigemptyset(&signals);
  for (int s : {SIGTERM, SIGINT, SIGHUP, SIGUSR1}) sigaddset(&signals, s);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  // A parent may have left them ignored.
  for (int s : {SIGTERM, SIGINT, SIGHUP, SIGUSR1}) signal(s, SIG_DFL);
  signal(SIGPIPE, SIG_IGN);

  if (auto log = start_log(config); !log) {
    std::fputs(fmt::format("vremote node: {}\n", log.error().what).c_str(), stderr);
    return kExitConfig;
  }
  for (const std::string& warning : config.warnings) spdlog::warn("{}", warning);
  prepare_process();
  // Before any thread, too; and before what the last daemon had is looked for.
  const GuardianOptions guarding{.socket = config.state_dir + "/guard.sock",
                                 .recovery_dir = config.recovery_dir,
                                 .restart_wait_ms = config.restart_wait_ms,
                                 .soft_timeout_ms = config.soft_timeout_ms};
  auto retired = retire_guardian(guarding.socket);
  if (retired && *retired) spdlog::info("the guardian of the last daemon has ended its connection");
  if (!retired) spdlog::error("{}", retired.error().what);
  auto guardian = GuardianLink::start(guarding);
  if (!guardian)
    spdlog::error("no guardian: {}; were this daemon to die, its kernel would go on serving",
                  guardian.error().what);
  NodeDaemon node(config, mistakes, guardian ? guardian->get() : nullptr);
  if (auto started = node.start([] { kill(getpid(), SIGUSR1); }); !started) {
    spdlog::error("{}", started.error().what);
    if (!config.log_file.empty())
      std::fputs(fmt::format("vremote node: {}\n", started.error().what).c_str(), stderr);
    node.stop(0);
    return kExitConfig;
  }
  for (;;) {
    int which = 0;
    if (sigwait(&signals, &which) != 0) continue;
    if (which == SIGHUP) continue;  // a lost terminal is no reason to go
    if (which == SIGUSR1) spdlog::warn("the mount {} was ended from outside", config.mount);
    break;
  }
  spdlog::info("ending");
  const bool clean = node.stop(kStopPatienceMs);
  spdlog::info("ended");
  return clean ? 0 : 1;
}

}  // namespace vremote::node
