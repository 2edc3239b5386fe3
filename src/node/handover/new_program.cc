#include "node/handover/new_program.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <ctime>

#include "base/fd.h"
#include "node/handover/handover.h"

extern "C" char** environ;

namespace vremote::node {
namespace {

constexpr int kCheckMs = 20'000;
constexpr size_t kAnswerMax = 4096;

int64_t now_ms() {
  timespec t{};
  ::clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000 + t.tv_nsec / 1'000'000;
}

// Its output and status; nothing when it does not end in time.
struct Said {
  std::string text;
  int status = 0;
};
Result<Said> run(const std::string& binary, const std::vector<std::string>& arguments) {
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) return fail(errno, std::strerror(errno));
  Fd out(ends[0]), in(ends[1]);
  std::vector<char*> argv;
  argv.reserve(arguments.size() + 1);
  for (const std::string& a : arguments) argv.push_back(const_cast<char*>(a.c_str()));
  argv.push_back(nullptr);
  posix_spawn_file_actions_t files;
  ::posix_spawn_file_actions_init(&files);
  ::posix_spawn_file_actions_adddup2(&files, in.get(), STDOUT_FILENO);
  ::posix_spawn_file_actions_adddup2(&files, in.get(), STDERR_FILENO);
  posix_spawnattr_t attributes;
  ::posix_spawnattr_init(&attributes);
  sigset_t none;
  ::sigemptyset(&none);
  ::posix_spawnattr_setsigmask(&attributes, &none);
  ::posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
  pid_t pid = -1;
  const int failed = ::posix_spawn(&pid, binary.c_str(), &files, &attributes, argv.data(), environ);
  ::posix_spawnattr_destroy(&attributes);
  ::posix_spawn_file_actions_destroy(&files);
  if (failed != 0) return fail(failed, std::strerror(failed));
  in.reset();
  Said said;
  const int64_t end = now_ms() + kCheckMs;
  bool whole = false;
  for (int64_t left = kCheckMs; !whole && left > 0; left = end - now_ms()) {
    pollfd wait{out.get(), POLLIN, 0};
    if (::poll(&wait, 1, static_cast<int>(left)) <= 0) continue;
    std::array<char, 1024> piece;
    const ssize_t n = ::read(out.get(), piece.data(), piece.size());
    if (n < 0 && errno == EINTR) continue;
    whole = n <= 0;
    if (n > 0 && said.text.size() < kAnswerMax) said.text.append(piece.data(), size_t(n));
  }
  // It has closed its output, and is about to end; or it must.
  for (bool gone = false; !gone;) {
    if (now_ms() >= end) ::kill(pid, SIGKILL);
    const pid_t reaped = ::waitpid(pid, &said.status, now_ms() >= end ? 0 : WNOHANG);
    gone = reaped == pid || (reaped < 0 && errno != EINTR);
    if (!gone) ::poll(nullptr, 0, 2);
  }
  if (!whole) return fail(ETIMEDOUT, "it does not answer");
  return said;
}

std::string first_line(const std::string& text) {
  std::string line = text.substr(0, std::min(text.find('\n'), size_t{300}));
  std::ranges::replace_if(
      line, [](char c) { return static_cast<unsigned char>(c) < ' '; }, '?');
  return line;
}

}  // namespace

Status check_new_program(const std::string& binary, const Config& config) {
  if (binary.empty() || binary.front() != '/')
    return fail(EINVAL, fmt::format("'{}': name the program by an absolute path", binary));
  struct stat st {};
  if (::stat(binary.c_str(), &st) != 0)
    return fail(errno, fmt::format("{}: {}", binary, std::strerror(errno)));
  if (!S_ISREG(st.st_mode) || ::access(binary.c_str(), X_OK) != 0)
    return fail(EACCES, fmt::format("{} is no program that can be executed", binary));
  // exec(2) would wait for an answer of the daemon that it has just ended.
  struct stat mount {};
  if (::stat(config.mount.c_str(), &mount) != 0)
    return fail(errno, fmt::format("{}: {}", config.mount, std::strerror(errno)));
  for (const std::string& path : {binary, config.file, config.cluster_key}) {
    struct stat file {};
    if (::stat(path.c_str(), &file) == 0 && file.st_dev == mount.st_dev)
      return fail(EINVAL, fmt::format("{} lies on this node's own mount, which nobody serves while "
                                      "the program changes; copy it to a disk of the machine",
                                      path));
  }
  auto said = run(binary, {"vremote", "node", "--config", config.file, "--handover-check"});
  if (!said)
    return fail(said.error().code, fmt::format("{} cannot be run: {}", binary, said.error().what));
  const std::string line = first_line(said->text);
  const std::string word = std::string(kHandoverWord) + " ";
  if (!WIFEXITED(said->status) || WEXITSTATUS(said->status) != 0 || !line.starts_with(word)) {
    // A vremote that refuses this configuration says why, in one line.
    if (line.starts_with("vremote node: ") && line.find("--handover-check") == std::string::npos)
      return fail(EINVAL, fmt::format("{} refuses: {}", binary, line.substr(14)));
    return fail(EINVAL, fmt::format("{} is no vremote that can take over from this one{}{}", binary,
                                    line.empty() ? "" : "; it says: ", line));
  }
  if (line.substr(word.size()) != std::to_string(kHandoverVersion))
    return fail(EPROTONOSUPPORT,
                fmt::format("{} takes over format {}, this daemon leaves {}: restart the node",
                            binary, line.substr(word.size()), kHandoverVersion));
  return {};
}

Status check_same_config(const Config& running) {
  VR_TRY(now, read_config(running.file));
  const char* changed = nullptr;
  const auto same = [&](const char* key, bool is) {
    if (!is && changed == nullptr) changed = key;
  };
  same("node", now.node == running.node);
  same("cluster.name", now.cluster == running.cluster);
  same("mount", now.mount == running.mount);
  same("state_dir", now.state_dir == running.state_dir);
  same("home", now.home_dir == running.home_dir);
  same("listen", now.listen == running.listen);
  same("loops", now.loops == running.loops);
  same("mount_suid", now.mount_suid == running.mount_suid);
  bool exports = now.exports.size() == running.exports.size();
  for (size_t i = 0; exports && i < running.exports.size(); ++i)
    exports = now.exports[i].name == running.exports[i].name &&
              now.exports[i].path == running.exports[i].path;
  same("export", exports);
  same("peer", std::ranges::all_of(running.peers, [&](const PeerConfig& peer) {
         return std::ranges::find(now.peers, peer.name, &PeerConfig::name) != now.peers.end();
       }));
  if (changed == nullptr) return {};
  return fail(EINVAL, fmt::format("key '{}' of {} was changed since the node was started, which an "
                                  "upgrade cannot follow: change it back, or restart the node",
                                  changed, running.file));
}

std::string keys_of_a_restart(const Config& running) {
  const auto now = read_config(running.file);
  if (!now) return {};
  std::vector<std::string_view> changed;
  const auto same = [&](std::string_view key, bool is) {
    if (!is) changed.push_back(key);
  };
  same("guardian.restart_wait_s", now->restart_wait_ms == running.restart_wait_ms);
  same("lease.soft_timeout_ms (of the guardian)", now->soft_timeout_ms == running.soft_timeout_ms);
  same("recovery_dir (of the guardian)", now->recovery_dir == running.recovery_dir);
  same("cache.readahead_kib", now->readahead_kib == running.readahead_kib);
  return fmt::format("{}", fmt::join(changed, ", "));
}

Error become(const std::string& binary, const Config& config, const std::vector<int>& keep,
             int memory) {
  const auto set = [&](int flags) {
    for (int fd : keep) (void)::fcntl(fd, F_SETFD, flags);
    (void)::fcntl(memory, F_SETFD, flags);
  };
  const std::string number = std::to_string(memory);
  const std::array<const char*, 7> argv{
      "vremote", "node", "--config", config.file.c_str(), "--take-over", number.c_str(), nullptr};
  set(0);
  ::execv(binary.c_str(), const_cast<char* const*>(argv.data()));
  const int code = errno;
  set(FD_CLOEXEC);
  return {code, fmt::format("{} cannot be executed: {}", binary, std::strerror(code))};
}

}  // namespace vremote::node
