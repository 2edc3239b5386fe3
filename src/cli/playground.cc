#include "cli/playground.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>
#include <vector>

#include "base/fd.h"
#include "cli/commands.h"
#include "cli/mount_cleanup.h"
#include "cli/node_process.h"
#include "cli/playground_plan.h"
#include "cli/playground_print.h"
#include "cli/ports.h"
#include "control/client.h"
#include "control/status.h"
#include "net/key_ring.h"
#include "node/config/config.h"

namespace vremote::cli {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr auto kEndWait = milliseconds(10'000);  // of the first node that must end
constexpr auto kEndWaitHurried =
    milliseconds(2000);  // of the others, once one did not end or the user pressed ^C again
constexpr auto kSettleWait = milliseconds(3000);
constexpr auto kStatusTimeout = milliseconds(500);
constexpr auto kProgressEvery = std::chrono::seconds(3);
constexpr int kPollMs = 50;
constexpr size_t kLogLines = 20;

int complained(const std::string& sentence, int status = kExitFailed) {
  return complain("playground", sentence, status);
}

// The signals that end the playground or tell of a child, as a descriptor: no handler runs, nothing
// is interrupted.
Result<Fd> take_signals() {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGCHLD}) sigaddset(&set, signal);
  ::sigprocmask(SIG_BLOCK, &set, nullptr);
  Fd fd(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!fd.valid()) return fail(errno, fmt::format("signalfd: {}", std::strerror(errno)));
  return fd;
}

Result<std::string> make_dir(const std::string& dir) {
  std::error_code error;
  std::filesystem::create_directories(dir, error);
  char real[PATH_MAX];
  if (::realpath(dir.c_str(), real) == nullptr)
    return fail(errno, fmt::format("{}: {}", dir, std::strerror(error ? error.value() : errno)));
  return std::string(real);
}

Result<Fd> lock_dir(const std::string& dir) {
  const std::string path = dir + "/.lock";
  Fd lock(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
  if (!lock.valid() && errno == ENOTDIR)
    return fail(ENOTDIR, dir + " is not a directory; name one, or one to be made, with --dir");
  if (!lock.valid()) return fail(errno, fmt::format("{}: {}", path, std::strerror(errno)));
  if (::flock(lock.get(), LOCK_EX | LOCK_NB) == 0) return lock;
  if (errno == EWOULDBLOCK)
    return fail(errno,
                fmt::format("another playground runs in {}; end it or use another --dir", dir));
  return fail(errno, fmt::format("{}: {}", path, std::strerror(errno)));
}

class Playground {
 public:
  Playground(PlaygroundPlan plan, std::vector<HeldPort> ports, Fd signals)
      : plan_(std::move(plan)), ports_(std::move(ports)), signals_(std::move(signals)) {}

  int run(double wait_seconds) {
    const auto start = Clock::now();
    int status = kExitFailed;
    if (auto prepared = prepare(); !prepared) {
      complained(prepared.error().what);
    } else if (auto started = start_nodes(); !started) {
      complained(started.error().what);
    } else if (wait_until_ready(start + std::chrono::duration_cast<Clock::duration>(
                                            std::chrono::duration<double>(wait_seconds)))) {
      announce(std::chrono::duration<double>(Clock::now() - start).count());
      status = wait_for_the_end();
    } else if (interrupted_) {
      status = 0;  // the user thought better of it
    }
    return end_nodes() ? status : kExitFailed;
  }

 private:
  // One key for all, made at the first start.
  Status prepare_key() {
    if (!plan_.tls) return {};
    if (auto key = net::read_key_file(plan_.key); key || key.error().code != ENOENT)
      return key ? Status() : fail(key.error().code, key.error().what);
    VR_TRY(key, net::ClusterKey::generate(plan_.cluster));
    return net::write_key_file(plan_.key, key);
  }

  // Everything on disk, with the remains of an earlier playground that was killed.
  Status prepare() {
    VR_TRY_VOID(prepare_key());
    for (size_t i = 0; i < plan_.nodes.size(); ++i) {
      const PlannedNode& node = plan_.nodes[i];
      VR_TRY_VOID(remove_remains(node));
      std::error_code error;
      for (const std::string& path :
           {node.directory, node.export_dir, node.mount, node.state_dir}) {
        std::filesystem::create_directories(path, error);
        if (error && path == node.state_dir && !plan_.short_dir.empty())
          return fail(
              error.value(),
              fmt::format(
                  "{} is too long for unix sockets and {} cannot be made ({}); use a shorter --dir",
                  plan_.dir, path, error.message()));
        if (error) return fail(error.value(), fmt::format("{}: {}", path, error.message()));
      }
      if (::chmod(node.state_dir.c_str(), 0700) != 0)
        return fail(errno, fmt::format("{}: {}", node.state_dir, std::strerror(errno)));
      if (!(std::ofstream(node.config, std::ios::trunc) << node_toml(plan_, i) << std::flush))
        return fail(EIO, fmt::format("cannot write {}", node.config));
      // A mistake (a DIR on a strange path) is better told here than by the logs of all nodes.
      VR_TRY(config, node::load_config(node.config));
      static_cast<void>(config);
    }
    return {};
  }

  // A playground that was killed leaves nodes that are just ending, perhaps with data to flush:
  // give them the time.
  Status wait_for_leftover(const PlannedNode& node) {
    const auto deadline = Clock::now() + kEndWait;
    int64_t pid = 0;
    for (;;) {
      auto reply = control::control_query(node.control, "status", kStatusTimeout);
      if (reply) {
        if (auto status = control::status_from_json(*reply)) pid = status->pid;
      }
      const bool living = reply || reply.error().code == ETIMEDOUT ||
                          (pid > 0 && ::kill(static_cast<pid_t>(pid), 0) == 0);
      if (!living) return {};
      if (Clock::now() >= deadline)
        return fail(
            EBUSY,
            fmt::format("{} of an earlier playground in {} still runs (pid {}); end it first",
                        node.name, plan_.dir, pid));
      if (interrupted(kPollMs)) return fail(EINTR, "interrupted");
    }
  }

  Status remove_remains(const PlannedNode& node) {
    VR_TRY_VOID(wait_for_leftover(node));
    VR_TRY(removed, remove_mounts(node.mount));
    if (removed)
      tell_error(fmt::format("vremote playground: removed a mount left at {}\n", node.mount));
    return {};
  }

  Status start_nodes() {
    nodes_.reserve(plan_.nodes.size());
    // All before the first fork: a node that has not come to its exec yet would hold the port of
    // the next.
    for (HeldPort& port : ports_) port.holder.reset();
    for (size_t i = 0; i < plan_.nodes.size(); ++i) {
      VR_TRY(process, NodeProcess::spawn(plan_.nodes[i]));
      nodes_.push_back(std::move(process));
    }
    return {};
  }

  struct Lack {
    std::string text;             // empty: nothing, the node is ready and connected to all others
    std::optional<size_t> other;  // the first that it is not connected to
  };
  Lack lacking(const NodeProcess& process) const {
    auto reply = control::control_query(process.plan().control, "status", kStatusTimeout);
    if (!reply) return {.text = "not up", .other = {}};
    auto status = control::status_from_json(*reply);
    if (!status) return {.text = status.error().what, .other = {}};
    if (!status->ready) return {.text = "not mounted", .other = {}};
    Lack lack;
    for (size_t i = 0; i < plan_.nodes.size(); ++i) {
      const PlannedNode& other = plan_.nodes[i];
      if (other.name == process.plan().name) continue;
      const bool connected =
          std::ranges::any_of(status->peers, [&](const control::PeerStatus& peer) {
            return peer.name == other.name && peer.connected;
          });
      if (connected) continue;
      lack.text += (lack.text.empty() ? "not connected to " : " ") + other.name;
      if (!lack.other) lack.other = i;
    }
    return lack;
  }

  bool wait_until_ready(Clock::time_point deadline) {
    auto next_progress = Clock::now() + kProgressEvery;
    for (;;) {
      if (somebody_died() || interrupted(kPollMs)) return false;
      std::string waiting;
      size_t culprit = 0;
      std::optional<size_t> not_reached;
      for (size_t i = 0; i < nodes_.size(); ++i) {
        const Lack lack = lacking(nodes_[i]);
        if (lack.text.empty()) continue;
        if (waiting.empty()) {
          culprit = i;
          not_reached = lack.other;
        }
        waiting +=
            fmt::format("{}{} {}", waiting.empty() ? "" : "; ", nodes_[i].plan().name, lack.text);
      }
      if (waiting.empty()) return true;
      if (Clock::now() >= deadline) {
        if (somebody_died()) return false;
        complained(fmt::format("not ready in time: {}", waiting));
        show_log(nodes_[culprit]);
        if (not_reached) show_log(nodes_[*not_reached]);
        return false;
      }
      if (Clock::now() >= next_progress) {
        tell_error(fmt::format("vremote playground: waiting: {}\n", waiting));
        next_progress += kProgressEvery;
      }
    }
  }

  void announce(double seconds) {
    fmt::print("{}", playground_banner(plan_, seconds));
    std::fflush(stdout);
    // Made whole under another name: who sees it may read it.
    const std::string temporary = plan_.ready + ".new";
    std::ofstream(temporary, std::ios::trunc) << playground_ready_json(plan_, ::getpid()) << "\n"
                                              << std::flush;
    if (::rename(temporary.c_str(), plan_.ready.c_str()) != 0)
      complained(fmt::format("cannot make {}: {}", plan_.ready, std::strerror(errno)));
  }

  int wait_for_the_end() {
    for (;;) {
      if (somebody_died()) return kExitFailed;
      if (interrupted(-1)) return 0;
    }
  }

  bool somebody_died() {
    for (NodeProcess& process : nodes_) {
      if (!process.ended()) continue;
      complained(fmt::format("{} (pid {}) {} by itself", process.plan().name, process.pid(),
                             process.how_ended()));
      show_log(process);
      return true;
    }
    return false;
  }

  static void show_log(const NodeProcess& process) {
    const std::string tail = process.log_tail(kLogLines);
    tell_error(fmt::format("--- the end of {}{}\n{}---\n", process.plan().log,
                           tail.empty() ? " is empty" : ":", tail));
  }

  // Waits for a signal, at most `timeout_ms`; true when the user wants the end.
  bool interrupted(int timeout_ms) {
    pollfd entry{signals_.get(), POLLIN, 0};
    ::poll(&entry, 1, timeout_ms);
    bool asked = false;
    signalfd_siginfo info;
    while (::read(signals_.get(), &info, sizeof info) == sizeof info)
      asked |= info.ssi_signo != SIGCHLD;
    interrupted_ |= asked;
    return asked;
  }

  // Before the first node ends, what was written reaches its origin: afterwards that node may be
  // gone.
  void settle() {
    const auto deadline = Clock::now() + kSettleWait;
    auto dirty = [](const NodeProcess& process) {
      auto reply = control::control_query(process.plan().control, "status", kStatusTimeout);
      if (!reply) return false;  // its own end will tell
      auto status = control::status_from_json(*reply);
      return status && status->dirty_bytes > 0;
    };
    while (std::ranges::any_of(nodes_, dirty) && Clock::now() < deadline && !interrupted(kPollMs)) {
    }
  }

  // One by one, the last started first: a node that ends takes leave of others that still serve.
  bool end_nodes() {
    ::unlink(plan_.ready.c_str());
    ports_.clear();
    if (nodes_.size() > 1) settle();
    bool clean = true;
    auto patience = kEndWait;
    for (size_t i = nodes_.size(); i-- > 0;) {
      NodeProcess& process = nodes_[i];
      const bool by_itself = process.ended();  // told already
      process.terminate();
      if (!wait_for_exit(process, patience)) {
        clean = false;
        patience = kEndWaitHurried;
      } else if (!by_itself && !process.ended_well()) {
        complained(fmt::format("{} {} at its end", process.plan().name, process.how_ended()));
        show_log(process);
        clean = false;
      }
      clean &= check_remains(process);
    }
    if (!plan_.short_dir.empty()) {
      std::error_code ignored;
      std::filesystem::remove_all(plan_.short_dir, ignored);
    }
    return clean;
  }

  bool wait_for_exit(NodeProcess& process, milliseconds& patience) {
    auto deadline = Clock::now() + patience;
    while (!process.ended()) {
      if (interrupted(kPollMs)) {
        patience = std::min(patience, kEndWaitHurried);
        deadline = std::min(deadline, Clock::now() + patience);
      }
      if (Clock::now() < deadline || process.ended()) continue;
      complained(fmt::format("{} (pid {}) does not end: aborting its mount and killing it",
                             process.plan().name, process.pid()));
      show_log(process);
      process.kill_hard();
      if (!process.ended())
        complained(fmt::format("{} (pid {}) cannot be killed", process.plan().name, process.pid()));
      return false;
    }
    return true;
  }

  bool check_remains(NodeProcess& process) {
    auto left = remove_mounts(process.plan().mount);
    if (!left) {
      complained(fmt::format("{}: {}", process.plan().name, left.error().what));
      return false;
    }
    if (*left)
      tell_error(fmt::format("vremote playground: {} left its mount behind; removed\n",
                             process.plan().name));
    return true;
  }

  const PlaygroundPlan plan_;
  std::vector<HeldPort> ports_;
  const Fd signals_;
  std::vector<NodeProcess> nodes_;
  bool interrupted_ = false;
};

}  // namespace

int run_playground(const PlaygroundOptions& options) {
  ::umask(022);  // nodes refuse places that others can write to
  auto dir = make_dir(options.dir);
  if (!dir) return complained(dir.error().what);
  auto lock = lock_dir(*dir);
  if (!lock) return complained(lock.error().what);
  ::unlink((*dir + "/ready").c_str());
  auto signals = take_signals();
  if (!signals) return complained(signals.error().what);
  auto held = options.base_port != 0 ? hold_ports_from(options.base_port, options.nodes)
                                     : hold_free_ports(options.nodes, hash_of(*dir));
  if (!held)  // EINVAL: whatever else is free, such ports are not
    return complained(held.error().what, held.error().code == EINVAL ? kExitUsage : kExitFailed);
  std::vector<uint16_t> ports;
  for (const HeldPort& port : *held) ports.push_back(port.port);
  PlaygroundPlan plan = plan_playground(*dir, ports);
  plan.tls = !options.plain;
  return Playground(std::move(plan), *std::move(held), *std::move(signals))
      .run(options.wait_seconds);
}

}  // namespace vremote::cli
