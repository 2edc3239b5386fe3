// vremote-chaos: nodes on a network that fails, killed and stopped, under work that is checked.
#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <fstream>
#include <memory>
#include <random>

#include "chaos/network.h"
#include "chaos/workload.h"
#include "live/stuck.h"
#include "support/guard.h"
#include "support/nodes.h"
#include "support/playground.h"

namespace vremote::chaos {
namespace {

using Clock = std::chrono::steady_clock;
using live::Nodes;

// The node whose export has a disk of its own that can be full: the one with the log, the only file
// that grows.
constexpr size_t kSmallDiskNode = 0;
constexpr uint64_t kSmallDiskBytes = uint64_t{4} << 30;  // a limit, not memory

bool resize_disk(const std::string& point, uint64_t bytes) {
  return ::mount(nullptr, point.c_str(), nullptr, MS_REMOUNT,
                 fmt::format("size={}", bytes).c_str()) == 0;
}

struct Settings {
  std::string program = VREMOTE_PROGRAM;
  size_t nodes = 3;
  int seconds = 60;
  uint64_t seed = 1;
  std::vector<std::string> kinds;
  // Shorter leases than in earnest, so that many run out.
  std::string config = "lease = { term_ms = 2000 }";
};

// Everything that can go wrong, one at a time; each begins and ends by itself.
class Troubles {
 public:
  Troubles(const Settings& settings, const Plan& plan, Nodes& nodes, Network& network,
           Shared& shared)
      : settings_(settings),
        plan_(plan),
        nodes_(nodes),
        network_(network),
        shared_(shared),
        random_(settings.seed) {}

  // One trouble and the calm after it. False: the time is over or something was found.
  bool next() {
    struct Kind {
      const char* name;
      void (Troubles::*run)();
    };
    static constexpr Kind kKinds[] = {{"noise", &Troubles::noise},     {"cut", &Troubles::cut},
                                      {"one-way", &Troubles::one_way}, {"flap", &Troubles::flap},
                                      {"stop", &Troubles::stop},       {"kill", &Troubles::kill},
                                      {"full", &Troubles::full}};
    std::vector<const Kind*> allowed;
    for (const Kind& kind : kKinds)
      if (settings_.kinds.empty() || std::ranges::count(settings_.kinds, kind.name) > 0)
        allowed.push_back(&kind);
    if (!sleep_ms(300 + random_.below(1500))) return false;
    (this->*allowed[random_.below(allowed.size())]->run)();
    network_.set_all({});
    is_well(plan_, shared_);
    return !over();
  }
  uint64_t count() const { return count_; }
  void ends_at(Clock::time_point at) { end_ = at; }

 private:
  bool over() const { return shared_.failed || Clock::now() >= end_; }
  bool sleep_ms(uint64_t ms) {
    const auto until = Clock::now() + std::chrono::milliseconds(ms);
    while (Clock::now() < until) {
      if (shared_.failed) return false;
      ::usleep(5000);
    }
    return !over();
  }
  void tell(const std::string& what) {
    ++count_;
    fmt::print("{:6.1f} s  {}\n", std::chrono::duration<double>(Clock::now() - begin_).count(),
               what);
    std::fflush(stdout);
  }
  size_t any_node() { return random_.below(plan_.nodes); }
  // Mostly short; some longer than a lease.
  uint64_t while_ms() {
    return random_.chance(60) ? 100 + random_.below(1500) : 2000 + random_.below(6000);
  }
  void disturb_around(size_t node) {
    for (size_t other = 0; other < plan_.nodes; ++other) {
      disturb(plan_, node, other, shared_);
      disturb(plan_, other, node, shared_);
    }
  }

  void noise() {
    Link link{.lost_percent = static_cast<uint32_t>(random_.below(12)),
              .doubled_percent = static_cast<uint32_t>(random_.below(5)),
              .delay_ns = static_cast<int64_t>(random_.below(5'000'000)),
              .delay_spread_ns = static_cast<int64_t>(random_.below(10'000'000))};
    const uint64_t ms = while_ms();
    tell(fmt::format("noise for {} ms: {} % lost, {} % doubled, {}+{} us late", ms,
                     link.lost_percent, link.doubled_percent, link.delay_ns / 1000,
                     link.delay_spread_ns / 1000));
    // TCP may give a connection up under it: leases may run out.
    for (size_t node = 0; node < plan_.nodes; ++node)
      for (size_t other = 0; other < plan_.nodes; ++other)
        if (node != other) disturb(plan_, node, other, shared_);
    network_.set_all(link);
    sleep_ms(ms);
  }
  void cut() {
    const size_t node = any_node();
    const uint64_t ms = while_ms();
    tell(fmt::format("node{} cut off for {} ms", node + 1, ms));
    disturb_around(node);
    for (size_t other = 0; other < plan_.nodes; ++other) {
      network_.set(node, other, {.cut = true});
      network_.set(other, node, {.cut = true});
    }
    sleep_ms(ms);
  }
  void one_way() {
    const size_t from = any_node();
    const size_t to = (from + 1 + random_.below(plan_.nodes - 1)) % plan_.nodes;
    const uint64_t ms = while_ms();
    tell(fmt::format("nothing goes from node{} to node{} for {} ms", from + 1, to + 1, ms));
    disturb(plan_, from, to, shared_);
    disturb(plan_, to, from, shared_);
    network_.set(from, to, {.cut = true});
    sleep_ms(ms);
  }
  void flap() {
    const size_t node = any_node();
    tell(fmt::format("node{} flaps", node + 1));
    disturb_around(node);
    for (int i = 0; i < 20; ++i) {
      for (size_t other = 0; other < plan_.nodes; ++other) {
        network_.set(node, other, {.cut = i % 2 == 0});
        network_.set(other, node, {.cut = i % 2 == 0});
      }
      if (!sleep_ms(20 + random_.below(300))) return;
    }
  }
  void stop() {
    const size_t node = any_node();
    const uint64_t ms = while_ms();
    tell(fmt::format("node{} stopped for {} ms", node + 1, ms));
    disturb_around(node);
    nodes_.signal(node, SIGSTOP);
    sleep_ms(ms);
    nodes_.signal(node, SIGCONT);
  }
  void kill() {
    const size_t node = any_node();
    const uint64_t ms = random_.chance(50) ? 0 : while_ms();
    tell(fmt::format("node{} killed, back after {} ms", node + 1, ms));
    // What others wrote to its exports is safe: they hold it until it is back.
    for (size_t origin = 0; origin < plan_.nodes; ++origin) disturb(plan_, node, origin, shared_);
    nodes_.signal(node, SIGKILL);
    nodes_.wait_for_end(node);
    ++shared_.deaths[node];
    sleep_ms(ms);
    nodes_.start(node);
    const auto started = Clock::now();
    if (!live::eventually([&] { return nodes_.ready(node); }))
      shared_.fail(fmt::format("node{} does not come back; see its log", node + 1));
    const std::chrono::duration<double> took = Clock::now() - started;
    if (took > std::chrono::seconds(3))
      fmt::print("          node{} needed {:.1f} s to start\n", node + 1, took.count());
  }

  // Whoever makes a file longer is told; nobody else notices.
  void full() {
    const std::string disk = nodes_.at(kSmallDiskNode).export_dir;
    const uint64_t ms = while_ms();
    tell(fmt::format("the disk of node{} full for {} ms", kSmallDiskNode + 1, ms));
    shared_.disk_was_full = true;
    for (bool done = false; !done && !over();) {  // meanwhile it grows
      struct statvfs now {};
      ::statvfs(disk.c_str(), &now);
      done = resize_disk(disk, (now.f_blocks - now.f_bfree) * now.f_frsize);
    }
    sleep_ms(ms);
    if (!resize_disk(disk, kSmallDiskBytes)) shared_.fail("the disk cannot be made bigger again");
  }

  const Settings& settings_;
  const Plan& plan_;
  Nodes& nodes_;
  Network& network_;
  Shared& shared_;
  Prng random_;
  uint64_t count_ = 0;
  Clock::time_point begin_ = Clock::now(), end_;
};

bool prepare(const Plan& plan, Nodes& nodes) {
  for (size_t origin = 0; origin < plan.nodes; ++origin) {
    const std::string dir = nodes.at(origin).export_dir;
    if (origin == kSmallDiskNode &&
        ::mount("small-disk", dir.c_str(), "tmpfs", 0,
                fmt::format("mode=755,size={}", kSmallDiskBytes).c_str()) != 0)
      return false;
    std::ofstream(dir + "/lock");
    std::ofstream(dir + "/log");
    std::ofstream registers(dir + fmt::format("/registers{}", origin));
    registers << std::string(kWritersMax * 4096, '\0');
    if (!registers.flush()) return false;
  }
  return true;
}

// Now that all is well, everybody gets something done.
std::string all_go_on(const Plan& plan, const std::vector<Job>& jobs, Shared& shared) {
  for (size_t i = 0; i < jobs.size(); ++i) {
    const Process& process = shared.processes[i];
    const auto done = [&] { return process.calls - process.errors; };
    const uint64_t before = done();
    const bool goes_on = live::eventually([&] { return done() > before + 3 || shared.failed; });
    if (shared.failed) return shared.failure;
    if (!goes_on)
      return fmt::format("process {} on node{} of {} gets nothing done any more", i,
                         jobs[i].node + 1, plan.nodes);
  }
  return {};
}

uint64_t occurrences(const std::string& text, std::string_view what) {
  uint64_t count = 0;
  for (size_t at = 0; (at = text.find(what, at)) != text.npos; at += what.size()) ++count;
  return count;
}

int say(const std::string& what) {
  fmt::print("chaos: {}\n", what);
  std::fflush(stdout);
  return 1;
}

int run(const Settings& settings, const std::string& dir) {
  Plan plan;
  plan.nodes = settings.nodes;
  plan.seed = settings.seed;
  plan.dir = dir;
  plan.only_full = settings.kinds == std::vector<std::string>{"full"};
  Shared* shared = Shared::create();
  if (shared == nullptr) return say("no memory to share");

  // The processes are forked before there is any thread, and wait.
  const std::vector<Job> jobs = jobs_of(plan);
  std::vector<pid_t> processes;
  for (size_t i = 0; i < jobs.size(); ++i) {
    const pid_t pid = ::fork();
    if (pid == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      work(plan, jobs[i], i, *shared);
      ::_exit(0);
    }
    processes.push_back(pid);
  }

  auto network = Network::create(plan.nodes, settings.seed);
  if (!network) return say(network.error().what);
  std::vector<Nodes::Place> places;
  for (size_t i = 0; i < plan.nodes; ++i)
    places.push_back({Network::address(i), (*network)->name_space(i)});
  Nodes nodes(settings.program, dir, plan.nodes, settings.config, places);
  if (!prepare(plan, nodes)) return say("no space for the files");
  nodes.start_all();
  for (size_t i = 0; i < plan.nodes; ++i)
    if (!nodes.connected(i))
      return say(fmt::format("node{} did not start:\n{}", i + 1, nodes.log(i)));

  shared->go = true;
  Troubles troubles(settings, plan, nodes, **network, *shared);
  troubles.ends_at(Clock::now() + std::chrono::seconds(settings.seconds));
  while (troubles.next()) {
  }
  // All is well again: everybody gets through, and what was synced is there.
  std::string wrong = shared->failed ? shared->failure : "";
  for (size_t i = 0; wrong.empty() && i < jobs.size(); ++i) {
    // A mount is ended only where it could not be gone on with, and that is in the log.
    const std::string log = nodes.log(jobs[i].node);
    const bool ended =
        log.find("is begun anew") != log.npos || log.find("mnt is ended") != log.npos;
    if (shared->processes[i].cut_off > 0 && !ended)
      wrong = fmt::format("the mount of node{} was ended under process {}", jobs[i].node + 1, i);
  }
  for (size_t i = 0; wrong.empty() && i < plan.nodes; ++i)
    if (!live::eventually([&] { return nodes.connected(i); }))
      wrong = fmt::format("node{} does not connect to all again", i + 1);
  if (wrong.empty()) wrong = all_go_on(plan, jobs, *shared);
  shared->stop = true;
  for (size_t i = 0; i < processes.size(); ++i) {
    const bool ended =
        live::eventually([&] { return ::waitpid(processes[i], nullptr, WNOHANG) == processes[i]; });
    if (ended) continue;
    if (wrong.empty())
      wrong = fmt::format("process {} on node{} hangs:\n{}", i, jobs[i].node + 1,
                          live::where_it_hangs(processes[i]));
    ::kill(processes[i], SIGKILL);
  }
  if (wrong.empty()) wrong = judge(plan, *shared);
  uint64_t calls = 0, errors = 0;
  for (const Process& process : shared->processes) {
    calls += process.calls;
    errors += process.errors;
  }
  uint64_t went_on = 0, anew = 0, hung = 0;
  for (size_t i = 0; i < plan.nodes; ++i) {
    const std::string log = nodes.log(i);
    went_on += occurrences(log, "went on with the mount");
    anew += occurrences(log, "mnt is ended");
    hung += occurrences(log, "process hangs in the kernel");
    // What that cost.
    for (size_t at = 0; (at = log.find("daemon's process is gone", at)) != log.npos; ++at)
      fmt::print("node{}: the {}\n", i + 1, log.substr(at, log.find('\n', at) - at));
  }
  fmt::print("{} mounts outlived their daemons, {} did not; {} dead ones had to be set free\n",
             went_on, anew, hung);
  fmt::print(
      "seed {}: {} troubles, {} calls, {} of them failed; {} reads ({} of mappings), {} "
      "syncs, {} appends, {} locks; {} packets, {} lost\n",
      settings.seed, troubles.count(), calls, errors, shared->reads.load(),
      shared->mapped_reads.load(), shared->syncs.load(), shared->appends.load(),
      shared->locks.load(), (*network)->carried(), (*network)->dropped());
  if (!wrong.empty()) {
    if (std::getenv("VREMOTE_KEEP") != nullptr) fmt::print("chaos: the logs are kept in {}\n", dir);
    return say("FOUND: " + wrong);
  }
  say("ok");
  return 0;
}

}  // namespace
}  // namespace vremote::chaos

int main(int argc, char** argv) {
  using namespace vremote;
  chaos::Settings settings;
  CLI::App app("Nodes on a network that fails, killed and stopped, under work that is checked.");
  app.add_option("--nodes", settings.nodes, "2 to 8")
      ->check(CLI::Range(2, 8))
      ->capture_default_str();
  app.add_option("--seconds", settings.seconds)->check(CLI::Range(1, 86400))->capture_default_str();
  app.add_option("--seed", settings.seed, "decides the troubles and what is done")
      ->capture_default_str();
  app.add_option("--only", settings.kinds, "of these kinds: noise cut one-way flap stop kill full")
      ->check(CLI::IsMember({"noise", "cut", "one-way", "flap", "stop", "kill", "full"}));
  app.add_option("--vremote", settings.program, "the program to run");
  app.add_option("--config", settings.config, "lines for every node's configuration")
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  if (const std::string why = live::why_no_mounts(); !why.empty()) {
    fmt::print(stderr, "SKIPPED: {}\n", why);
    return live::kSkipped;
  }
  return live::guarded(settings.seconds + 240,
                       [&](const std::string& dir) { return chaos::run(settings, dir); });
}
