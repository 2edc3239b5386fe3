// vremote-hammer: processes on several nodes hammer the same pages through real mounts; a checker
// then decides whether one copy of each page could have shown them what they saw.
//
//   vremote-hammer --vremote BUILD/src/cli/vremote --nodes 3 --seconds 600 --mmap --names
//   --truncate --busy-cpu --seed $RANDOM
//
// Exit statuses: 0 one copy could have, 1 something else went wrong, 3 it could not.
#include <fmt/format.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "live/stuck.h"
#include "live/verdict.h"
#include "live/worker.h"
#include "support/playground.h"

namespace vremote::live {
namespace {

constexpr uint64_t kStuckNs = 20'000'000'000;  // in one call
constexpr int kVerdictSeconds = 120;
constexpr int kNotOneCopy = 3;
constexpr const char* kDirectory = "hammer";

Shared* g_shared = nullptr;  // for the signal handler below, which has no other way

void on_bus_error(int, siginfo_t* info, void*) {
  g_shared->fail(fmt::format("SIGBUS in process {} at {}", ::getpid(), info->si_addr));
  ::_exit(3);
}

[[noreturn]] void run_worker(Playground& playground, Shared& shared, unsigned process,
                             pid_t parent) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) ::_exit(3);
  playground.in_child();
  struct sigaction action {};
  action.sa_sigaction = on_bus_error;
  action.sa_flags = SA_SIGINFO;
  ::sigaction(SIGBUS, &action, nullptr);
  shared.logs[process].pid = ::getpid();
  {
    Worker worker(shared, process, playground.path(process % shared.settings.nodes, 0, kDirectory));
    worker.run();
  }
  ::_exit(0);
}

bool prepare(const Playground& playground, const Settings& settings) {
  // Through the last node's mount: the origin is the first.
  const std::string dir = playground.path(settings.nodes - 1, 0, kDirectory);
  std::error_code error;
  std::filesystem::create_directory(dir, error);
  const std::string nothing(settings.pages * kPageSize, '\0');
  for (unsigned f = 0; f < settings.files; ++f)
    std::ofstream(dir + "/" + register_file(f), std::ios::binary) << nothing;
  std::ofstream(dir + "/" + kAppendName, std::ios::binary);
  std::filesystem::create_symlink("0", dir + "/" + kSharedName, error);
  if (error) fmt::print(stderr, "hammer: {}: {}\n", dir, error.message());
  return !error;
}

void report_stuck(const Playground& playground, const Shared& shared, unsigned workers) {
  const uint64_t now = now_ns();
  for (unsigned i = 0; i < workers; ++i) {
    const ProcessLog& log = shared.logs[i];
    const uint64_t since = log.doing_since;
    if (log.done || since == 0) continue;
    fmt::print(stderr, "process {} (pid {}, node {}) is in \"{}\" since {} ms\n", i, log.pid,
               i % shared.settings.nodes + 1, log.doing.load(),
               (now - std::min(now, since)) / 1'000'000);
    if (now - std::min(now, since) > 1'000'000'000)
      fmt::print(stderr, "{}", where_it_hangs(log.pid));
  }
  for (size_t n = 0; n < playground.nodes().size(); ++n)
    fmt::print(stderr, "{}: {}\n", playground.nodes()[n].name, playground.status(n));
}

// Until the time is over or something is wrong. False: a call does not come back.
bool watch(const Playground& playground, Shared& shared, unsigned workers) {
  const Settings& settings = shared.settings;
  const uint64_t end = now_ns() + settings.seconds * 1'000'000'000ull;
  uint64_t next_progress = now_ns() + 3'000'000'000;
  uint64_t told = 0;
  for (;;) {
    ::usleep(50'000);
    const uint64_t now = now_ns();
    uint64_t calls = 0;
    unsigned done = 0;
    bool stuck = false;
    for (unsigned i = 0; i < workers; ++i) {
      const ProcessLog& log = shared.logs[i];
      calls += log.calls;
      const uint64_t since = log.doing_since;
      done += log.done ? 1 : 0;
      stuck |= !log.done && since != 0 && now > since + kStuckNs;
    }
    if (now >= end) shared.stop = true;
    if (stuck) {
      shared.stop = true;
      fmt::print(stderr, "hammer: a call has not come back for {} s\n", kStuckNs / 1'000'000'000);
      report_stuck(playground, shared, workers);
      return false;
    }
    if (now >= next_progress) {
      fmt::print("  {:>4} s left  {:>9} calls (+{})  {} appended  {} locks\n",
                 end > now ? (end - now) / 1'000'000'000 : 0, calls, calls - told,
                 shared.appends_done.load(), shared.locks_taken.load());
      std::fflush(stdout);
      told = calls;
      next_progress = now + 3'000'000'000;
    }
    bool ended_badly = false;
    for (unsigned i = 0; i < workers; ++i) {
      int status = 0;
      const pid_t pid = shared.logs[i].pid;
      if (pid <= 0 || shared.logs[i].done) continue;
      if (::waitpid(pid, &status, WNOHANG) == pid) {
        // A worker that ended by itself has said why in fail(), or was killed.
        if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) ended_badly = true;
        shared.logs[i].done = true;
      }
    }
    if (ended_badly) shared.fail("a process was killed");
    if (shared.stop && done == workers) return true;
    if (done == workers) return true;
  }
}

int run(Shared& shared, const PlaygroundOptions& where, Settings settings) {
  auto started = Playground::start(where);
  if (!started) {
    fmt::print(stderr, "hammer: {}\n", started.error().what);
    return 1;
  }
  Playground& playground = **started;
  if (!prepare(playground, settings)) return 1;
  const unsigned workers = settings.nodes * settings.processes_per_node;
  const pid_t parent = ::getpid();
  std::fflush(nullptr);
  std::vector<pid_t> pids;
  for (unsigned i = 0; i < workers; ++i) {
    const pid_t pid = ::fork();
    if (pid == 0) run_worker(playground, shared, i, parent);
    shared.logs[i].pid = pid;
    pids.push_back(pid);
  }
  pid_t spinner = -1;
  if (settings.busy_cpu && (spinner = ::fork()) == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    playground.in_child();
    while (!shared.stop) {
    }
    ::_exit(0);
  }
  shared.go = true;
  const bool back = watch(playground, shared, workers);
  if (!back) playground.abort();
  for (pid_t pid : pids) {
    if (!back) ::kill(pid, SIGKILL);
    ::waitpid(pid, nullptr, 0);
  }
  if (spinner > 0) {
    ::kill(spinner, SIGKILL);
    ::waitpid(spinner, nullptr, 0);
  }
  if (shared.failed) fmt::print(stderr, "hammer: {}\n", shared.failure.data());
  bool fine = back && !shared.failed;
  bool one_copy = true;
  uint64_t records = 0;
  if (fine) {
    for (unsigned n = 0; n < settings.nodes && fine; ++n) {
      records = 0;
      if (auto what = judge_appends(
              shared, playground.path(n, 0, std::string(kDirectory) + "/" + kAppendName),
              &records)) {
        fmt::print(stderr, "hammer: on node{}: {}\n", n + 1, *what);
        fine = one_copy = false;
      }
    }
  }
  Verdict verdict;
  if (back) {
    verdict = judge(shared);
    if (verdict.violation) {
      fmt::print(stderr, "hammer: NOT LINEARIZABLE: {}", *verdict.violation);
      fine = one_copy = false;
    }
  }
  if (!fine) {
    for (size_t n = 0; n < playground.nodes().size(); ++n)
      fmt::print(stderr, "{}: {}\n", playground.nodes()[n].name, playground.status(n));
  }
  const std::string ended = playground.stop();
  if (!ended.empty()) {
    fmt::print(stderr, "hammer: {}\n", ended);
    fine = false;
  }
  fmt::print(
      "{}: seed {}, {} nodes, {} processes, {} calls, {} cells checked, {} records appended, {} "
      "reads with an old end, {} locks taken\n",
      fine ? "ok" : "FAILED", settings.seed, settings.nodes, workers, verdict.operations,
      verdict.cells, records, shared.old_ends.load(), shared.locks_taken.load());
  return fine ? 0 : one_copy ? 1 : kNotOneCopy;
}

}  // namespace
}  // namespace vremote::live

int main(int argc, char** argv) {
  using namespace vremote::live;
  Settings settings;
  PlaygroundOptions where;
  where.program = VREMOTE_PROGRAM;
  CLI::App app(
      "Hammers shared pages from several nodes and checks that one copy could have shown what was "
      "seen");
  app.add_option("--nodes", settings.nodes, "How many nodes")
      ->check(CLI::Range(1, 8))
      ->capture_default_str();
  app.add_option("--procs-per-node", settings.processes_per_node, "Processes on each node")
      ->check(CLI::Range(1, 8))
      ->capture_default_str();
  app.add_option("--seconds", settings.seconds, "How long")
      ->check(CLI::Range(1, 36000))
      ->capture_default_str();
  app.add_option("--files", settings.files, "Files of registers")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  app.add_option("--pages", settings.pages, "Pages of each file")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  app.add_option("--seed", settings.seed, "Chooses the calls (not their timing)")
      ->capture_default_str();
  app.add_flag("--mmap", settings.mmap, "Every other file is also mapped shared and writable");
  app.add_flag("--names", settings.names,
               "Renames, exclusive creations and unlinks of the same names");
  app.add_flag("--truncate", settings.truncate, "Files made shorter and longer");
  app.add_flag("!--no-appends", settings.appends, "No file of appended records");
  app.add_flag("--busy-cpu", settings.busy_cpu, "A spinning process beside");
  app.add_flag("--keep", where.keep, "Leave the directory");
  app.add_option("--dir", where.base,
                 "Where the cluster's fresh directory is made; $TMPDIR or /tmp by default");
  app.add_option("--vremote", where.program, "The program under test")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  if (const std::string why = why_no_mounts(); !why.empty()) {
    fmt::print(stderr, "SKIPPED: {}\n", why);
    return kSkipped;
  }
  where.nodes = settings.nodes;
  where.seconds = static_cast<int>(settings.seconds) + kVerdictSeconds;
  Shared* shared = map_shared();
  if (shared == nullptr) {
    fmt::print(stderr, "hammer: no memory\n");
    return 1;
  }
  shared->settings = settings;
  g_shared = shared;
  return run(*shared, where, settings);
}
