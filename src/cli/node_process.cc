#include "cli/node_process.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <string>

#include "base/fd.h"
#include "cli/commands.h"
#include "cli/mount_cleanup.h"

namespace vremote::cli {
namespace {

constexpr auto kKillWait = std::chrono::seconds(5);
constexpr off_t kLogTailMax = 64 * 1024;

// After fork: only async-signal-safe calls.
[[noreturn]] void become_node(const char* config, int log, pid_t parent) {
  sigset_t none;
  sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  ::prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (::getppid() != parent) ::_exit(1);  // it died before the line above
  ::setpgid(0, 0);
  const int null = ::open("/dev/null", O_RDONLY);
  if (::dup2(null, STDIN_FILENO) < 0 || ::dup2(log, STDOUT_FILENO) < 0 ||
      ::dup2(log, STDERR_FILENO) < 0)
    ::_exit(1);
  if (null > STDERR_FILENO) ::close(null);
  const char* const argv[] = {"vremote", "node", "--config", config, nullptr};
  ::execv("/proc/self/exe", const_cast<char* const*>(argv));
  constexpr char kWhy[] = "vremote playground: cannot execute /proc/self/exe\n";
  [[maybe_unused]] const ssize_t ignored = ::write(STDERR_FILENO, kWhy, sizeof kWhy - 1);
  ::_exit(1);
}

}  // namespace

Result<NodeProcess> NodeProcess::spawn(const PlannedNode& node) {
  Fd log(::open(node.log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644));
  if (!log.valid()) return fail(errno, fmt::format("{}: {}", node.log, std::strerror(errno)));
  struct stat info {};
  const off_t log_start = ::fstat(log.get(), &info) == 0 ? info.st_size : 0;
  const pid_t parent = ::getpid();
  const pid_t pid = ::fork();
  if (pid < 0)
    return fail(errno, fmt::format("cannot start {}: fork: {}", node.name, std::strerror(errno)));
  if (pid == 0) become_node(node.config.c_str(), log.get(), parent);
  return NodeProcess(node, pid, log_start);
}

NodeProcess::NodeProcess(NodeProcess&& other) noexcept
    : plan_(std::move(other.plan_)),
      pid_(std::exchange(other.pid_, -1)),
      log_start_(other.log_start_),
      status_(other.status_) {}

NodeProcess::~NodeProcess() {
  if (pid_ > 0 && !ended()) kill_hard();
}

bool NodeProcess::ended() {
  if (status_) return true;
  int status = 0;
  if (::waitpid(pid_, &status, WNOHANG) != pid_) return false;
  status_ = status;
  return true;
}

std::string NodeProcess::how_ended() const {
  if (!status_) return "is still running";
  if (WIFSIGNALED(*status_))
    return fmt::format("was killed by signal {} ({})", WTERMSIG(*status_),
                       ::strsignal(WTERMSIG(*status_)));
  return fmt::format("exited with status {}", WEXITSTATUS(*status_));
}

void NodeProcess::terminate() {
  if (!ended()) ::kill(pid_, SIGTERM);
}

void NodeProcess::kill_hard() {
  if (ended()) return;
  // First the connection: a process that waits inside the mount for this node, perhaps the node
  // itself, cannot be killed before.
  if (auto aborted = abort_connection(plan_.mount); !aborted)
    tell_error(fmt::format("vremote playground: {}: {}\n", plan_.name, aborted.error().what));
  ::kill(pid_, SIGKILL);
  const auto deadline = std::chrono::steady_clock::now() + kKillWait;
  while (!ended() && std::chrono::steady_clock::now() < deadline) ::poll(nullptr, 0, 10);
}

std::string NodeProcess::log_tail(size_t lines) const {
  Fd log(::open(plan_.log.c_str(), O_RDONLY | O_CLOEXEC));
  struct stat info {};
  if (!log.valid() || ::fstat(log.get(), &info) != 0) return {};
  const off_t from = std::max(log_start_, info.st_size - kLogTailMax);
  if (from >= info.st_size) return {};
  std::string text(static_cast<size_t>(info.st_size - from), '\0');
  const ssize_t n = ::pread(log.get(), text.data(), text.size(), from);
  text.resize(n > 0 ? static_cast<size_t>(n) : 0);
  if (text.empty()) return {};
  if (text.back() != '\n') text += '\n';
  size_t begin = text.size() - 1;  // of the final newline
  for (size_t i = 0; i < lines && begin != std::string::npos; ++i)
    begin = begin == 0 ? std::string::npos : text.rfind('\n', begin - 1);
  return begin == std::string::npos ? text : text.substr(begin + 1);
}

}  // namespace vremote::cli
