#include "intercept/supervisor.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>

#include "intercept/process_link.h"
#include "intercept/supervisor_process.h"

namespace vremote::intercept {
namespace {

using Kind = LinkMessage::Kind;

constexpr int kForwarded[] = {SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGALRM, SIGCONT};

Status check_kernel() {
  utsname name{};
  int major = 0, minor = 0;
  ::uname(&name);
  if (std::sscanf(name.release, "%d.%d", &major, &minor) == 2 &&
      (major > 5 || (major == 5 && minor >= 14)))
    return {};
  return fail(ENOSYS, fmt::format("Linux 5.14 or later is needed; this is {}", name.release));
}

// Blocks the signals to hand on, and undoes that at the end.
class SignalGate {
 public:
  SignalGate() {
    ::sigemptyset(&blocked_);
    for (int s : kForwarded) ::sigaddset(&blocked_, s);
    ::sigprocmask(SIG_BLOCK, &blocked_, &settings_.mask);
    ::sigaction(SIGCHLD, nullptr, &settings_.on_child);
  }
  SignalGate(const SignalGate&) = delete;
  SignalGate& operator=(const SignalGate&) = delete;
  ~SignalGate() {
    // What came too late to be handed on belonged to CMD; it must not hit us when the mask goes.
    timespec none{};
    while (::sigtimedwait(&blocked_, nullptr, &none) > 0) {
    }
    ::sigprocmask(SIG_SETMASK, &settings_.mask, nullptr);
  }
  const SignalSettings& settings() const { return settings_; }
  Fd descriptor() const { return Fd(::signalfd(-1, &blocked_, SFD_CLOEXEC | SFD_NONBLOCK)); }

 private:
  sigset_t blocked_;
  SignalSettings settings_;
};

void hand_on_signals(const Fd& signals, const Fd& command) {
  signalfd_siginfo info;
  while (::read(signals.get(), &info, sizeof info) == sizeof info) {
    // The terminal signals the whole process group, and CMD is in it.
    if (info.ssi_code == SI_KERNEL && info.ssi_signo != SIGALRM) continue;
    ::syscall(SYS_pidfd_send_signal, command.get(), static_cast<int>(info.ssi_signo), nullptr, 0);
  }
}

bool is_stopped(pid_t pid) {
  std::ifstream file(fmt::format("/proc/{}/stat", pid));
  std::string text;
  std::getline(file, text);
  size_t name_end = text.rfind(") ");
  return name_end != std::string::npos && name_end + 2 < text.size() && text[name_end + 2] == 'T';
}

// Ends this process as CMD ended; returns the status for the case that it lives on.
int end_alike(int status) {
  if (WIFEXITED(status)) return WEXITSTATUS(status);
  int signal = WTERMSIG(status);
  rlimit no_core{};  // the core, if any, is CMD's
  ::setrlimit(RLIMIT_CORE, &no_core);
  struct sigaction by_default {};
  by_default.sa_handler = SIG_DFL;
  ::sigaction(signal, &by_default, nullptr);
  sigset_t only;
  ::sigemptyset(&only);
  ::sigaddset(&only, signal);
  ::sigprocmask(SIG_UNBLOCK, &only, nullptr);
  ::kill(::getpid(), signal);
  return 128 + signal;
}

struct Ending {
  int status = 0;     // CMD's wait status
  bool last = false;  // nobody is left to serve
};

Result<Ending> watch(const Fd& link, const Fd& signals) {
  Fd command;
  pid_t pid = 0;
  for (;;) {
    pollfd polled[] = {{link.get(), POLLIN, 0}, {signals.get(), POLLIN, 0}};
    // Signals wait until there is a command to hand them to.
    if (::poll(polled, command.valid() ? 2 : 1, -1) < 0 && errno != EINTR)
      return fail(errno, "poll");
    if (command.valid() && polled[1].revents) hand_on_signals(signals, command);
    if (!polled[0].revents) continue;
    auto message = receive_message(link);
    if (!message)
      return fail(EIO,
                  "the supervisor has died; opens of the command with O_REMOTE fail with ENOSYS "
                  "from now on");
    switch (message->kind) {
      case Kind::Started:
        pid = message->value;
        command = std::move(message->fd);
        break;
      case Kind::Stopped:
        // It may go on already: ^Z and fg reach it and us alike.
        if (is_stopped(pid)) ::kill(::getpid(), SIGSTOP);
        break;
      case Kind::Ended:
        return Ending{message->value, false};
      case Kind::EndedLast:
        return Ending{message->value, true};
      case Kind::Failed:
        return fail(message->value, message->text);
      case Kind::Listener:
        return fail(EPROTO, "an unexpected message of the supervisor");
    }
  }
}

}  // namespace

Result<int> run(const RunOptions& options) {
  if (options.argv.empty() || options.argv[0].empty()) return fail(EINVAL, "no command to run");
  VR_TRY_VOID(check_kernel());
  VR_TRY(ends, make_link());
  int status = 0;
  {
    SignalGate gate;
    Fd signals = gate.descriptor();
    if (!signals.valid()) return fail(errno, "signalfd");
    std::fflush(nullptr);
    pid_t supervisor = ::fork();
    if (supervisor < 0) return fail(errno, "fork");
    if (supervisor == 0) {
      ends.first.reset();
      signals.reset();
      supervisor_main(options, gate.settings(), std::move(ends.second));
    }
    ends.second.reset();
    auto ended = watch(ends.first, signals);
    if (!ended) {
      ::waitpid(supervisor, nullptr, 0);  // it has died, or is about to
      return std::unexpected(std::move(ended).error());
    }
    status = ended->status;
    // Not left to init, which in many containers reaps nobody. With background children it lives
    // on.
    if (ended->last) ::waitpid(supervisor, nullptr, 0);
  }
  return end_alike(status);
}

}  // namespace vremote::intercept
