#include "intercept/supervisor_process.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <thread>
#include <vector>

#include "intercept/open_server.h"
#include "intercept/process_link.h"
#include "intercept/remote_open.h"
#include "intercept/trap_filter.h"

namespace vremote::intercept {
namespace {

using Kind = LinkMessage::Kind;

void say(const std::string& line) {
  std::string whole = "vremote run: " + line + "\n";
  [[maybe_unused]] ssize_t n = ::write(STDERR_FILENO, whole.data(), whole.size());
}

// In the process that becomes CMD. Its opens are served from the moment the filter is there.
[[noreturn]] void become_command(const RunOptions& options, const SignalSettings& settings,
                                 Fd link) {
  auto filter = install_trap_filter(options.allow_io_uring);
  LinkMessage message;
  if (filter) {
    message.kind = Kind::Listener;
    message.value = filter->wait_killable ? 0 : LinkMessage::kNoWaitKillable;
    message.fd = std::move(filter->listener);
  } else {
    message.value = filter.error().code;
    message.text = filter.error().what;
  }
  auto sent = send_message(link, message);
  if (!filter || !sent) ::_exit(127);
  message.fd.reset();
  link.reset();

  std::vector<char*> argv;
  for (const std::string& word : options.argv) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  ::sigaction(SIGCHLD, &settings.on_child, nullptr);
  ::sigprocmask(SIG_SETMASK, &settings.mask, nullptr);
  ::execvp(argv[0], argv.data());
  int error = errno;
  say(fmt::format("{}: {}", options.argv[0],
                  error == ENOENT ? "command not found" : std::strerror(error)));
  ::_exit(error == ENOENT ? 127 : 126);
}

[[noreturn]] void give_up(const Fd& link, int error, const std::string& what) {
  LinkMessage message;
  message.value = error;
  message.text = what;
  [[maybe_unused]] auto sent = send_message(link, message);
  ::_exit(1);
}

void ignore(std::initializer_list<int> signals) {
  struct sigaction ignored {};
  ignored.sa_handler = SIG_IGN;
  for (int s : signals) ::sigaction(s, &ignored, nullptr);
}

// Leaves everything that is the caller's: its terminal, directory and descriptors (a pipe held open
// by us would never end for its reader), but stderr. What is needed of them is at `keep`, above 2.
void settle(std::vector<int> keep) {
  ::setsid();
  ignore({SIGHUP, SIGINT, SIGQUIT, SIGPIPE, SIGTSTP, SIGTTIN, SIGTTOU});
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  [[maybe_unused]] int there = ::chdir("/");
  std::sort(keep.begin(), keep.end());
  unsigned next = 3;
  for (int fd : keep) {
    unsigned kept = static_cast<unsigned>(fd);
    if (kept > next) ::close_range(next, kept - 1, 0);
    next = kept + 1;
  }
  ::close_range(next, ~0u, 0);
  Fd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
  if (null.valid()) {
    ::dup2(null.get(), STDIN_FILENO);
    ::dup2(null.get(), STDOUT_FILENO);
  }
  // Every open in flight needs some descriptors here.
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) == 0) {
    limit.rlim_cur = limit.rlim_max;
    ::setrlimit(RLIMIT_NOFILE, &limit);
  }
}

// After CMD's end its background children go on, with us; whoever reads our stderr through a pipe
// should not wait for that.
void let_go_of_stderr() {
  struct stat st {};
  if (::fstat(STDERR_FILENO, &st) < 0 || !(S_ISFIFO(st.st_mode) || S_ISSOCK(st.st_mode))) return;
  Fd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
  if (null.valid()) ::dup2(null.get(), STDERR_FILENO);
}

// Reaps the whole tree, and ends the supervisor when nobody is left in it.
class Reaper {
 public:
  Reaper(pid_t command, Fd command_fd, Fd link)
      : command_(command), command_fd_(std::move(command_fd)), link_(std::move(link)) {}

  [[noreturn]] void run() {
    for (;;) {
      int status = 0;
      pid_t pid = ::waitpid(-1, &status, WUNTRACED);
      if (pid < 0 && errno == EINTR) continue;
      if (pid < 0)
        ::_exit(0);  // not before run()'s process knows: it waits for us when CMD was the last
      if (pid != command_) continue;
      if (WIFSTOPPED(status)) {
        tell(Kind::Stopped, WSTOPSIG(status));
      } else {
        let_go_of_stderr();
        tell(anyone_left() ? Kind::Ended : Kind::EndedLast, status);
      }
    }
  }

  // run()'s process stands for CMD: whoever ends it with SIGKILL, which cannot be handed on, means
  // CMD.
  void die_together() {
    pollfd p{link_.get(), 0, 0};
    while (!(p.revents & (POLLHUP | POLLERR)))
      if (::poll(&p, 1, -1) < 0 && errno != EINTR) return;
    ::syscall(SYS_pidfd_send_signal, command_fd_.get(), SIGKILL, nullptr,
              0);  // nothing, when CMD has ended
  }

 private:
  void tell(Kind kind, int value) {
    LinkMessage message;
    message.kind = kind;
    message.value = value;
    [[maybe_unused]] auto sent =
        send_message(link_, message);  // run()'s process may have been killed
  }
  static bool anyone_left() {
    siginfo_t info;
    return ::waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) == 0;
  }

  const pid_t command_;
  const Fd command_fd_;  // a pidfd
  const Fd link_;
};

}  // namespace

void supervisor_main(const RunOptions& options, const SignalSettings& settings, Fd link) {
  // Orphans of the tree come to us: their ancestor, who may read their memory.
  ::prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
  struct sigaction by_default {};
  by_default.sa_handler = SIG_DFL;
  ::sigaction(SIGCHLD, &by_default, nullptr);

  auto ends = make_link();
  if (!ends) give_up(link, ends.error().code, ends.error().what);
  pid_t command = ::fork();
  if (command < 0) give_up(link, errno, "fork");
  if (command == 0) {
    link.reset();
    ends->first.reset();
    become_command(options, settings, std::move(ends->second));
  }
  ends->second.reset();
  auto reply = receive_message(ends->first);
  if (!reply) give_up(link, EIO, "the command died while its filter was being installed");
  if (reply->kind != Kind::Listener || !reply->fd.valid()) give_up(link, reply->value, reply->text);
  if (reply->value == LinkMessage::kNoWaitKillable)
    say("warning: this kernel (before Linux 5.19) restarts a trapped open at every signal; a "
        "program with a fast timer may starve");

  LinkMessage started;
  started.kind = Kind::Started;
  started.value = command;
  started.fd = Fd(static_cast<int>(::syscall(SYS_pidfd_open, command, 0)));
  auto sent = send_message(link, started);
  if (!sent) {
    ::kill(command, SIGKILL);  // see Reaper::die_together()
    ::_exit(1);
  }
  ends->first.reset();

  settle({link.get(), reply->fd.get(), started.fd.get()});
  ::prctl(PR_SET_NAME, "vremote-run", 0, 0, 0);
  NamespaceCache names(options.names, options.reload);
  OpenServer server(std::move(reply->fd), names, options.require_mount);
  Reaper reaper(command, std::move(started.fd), std::move(link));
  // Both end with the process, at the latest.
  std::thread([&] { reaper.die_together(); }).detach();
  std::thread([&] { server.serve(); }).detach();
  reaper.run();
}

}  // namespace vremote::intercept
