// vremote-sim: tries the coherence protocol on many small worlds (docs/simulation.md).
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <string>
#include <vector>

#include "sim/runner.h"

int main(int argc, char** argv) {
  using namespace vremote::sim;
  CLI::App app{
      "Tries the coherence protocol on simulated clusters: one seed, one world, always the same "
      "run.\nExit status: 0 everything held, 1 a world failed, 2 wrong usage."};
  uint64_t seeds = 1000, first = 1, seed = 0;
  unsigned jobs = 1;
  bool trace = false, keep_going = false, statistics = false;
  size_t lines = 60;
  std::vector<std::string> breaks_wanted;
  app.add_option("--seeds", seeds, "How many worlds to try")->capture_default_str();
  app.add_option("--first", first, "The first seed")->capture_default_str();
  std::string world = "pages";
  app.add_option("--world", world,
                 "What the worlds are of: pages, names, locks, faults, or power (faults, mostly of "
                 "the origin's power)")
      ->capture_default_str()
      ->check(CLI::IsMember({"pages", "names", "locks", "faults", "power"}));
  app.add_option("--jobs", jobs, "Processes that share the work")
      ->capture_default_str()
      ->check(CLI::Range(1, 256));
  auto* one = app.add_option("--seed", seed, "Replay this one world");
  app.add_flag("--trace", trace, "With --seed: print the whole trace, one transition a line");
  app.add_option("--lines", lines, "Trace lines kept for a failure")->capture_default_str();
  app.add_flag("--keep-going", keep_going, "Count failures instead of stopping at the first");
  app.add_flag("--statistics", statistics, "Tell what happened in the worlds");
  std::string names;
  for (const std::string& name : break_names()) names += "\n  " + name;
  app.add_option("--break", breaks_wanted,
                 "Switch one rule off, to see the checkers notice:" + names);
  Breaks breaks;
  app.add_flag(
      "--size-races", breaks.size_races,
      "Leave in the kernel's own races around the file size (they fail: see docs/simulation.md)");
  app.add_flag("--tails", breaks.tails,
               "Programs store behind the ends of files through mappings (one world in some "
               "thousands fails: see docs/simulation.md)");
  app.add_flag(
      "--name-races", breaks.name_races,
      "Do not excuse what a node is shown of a name that it is changing itself (fails: see "
      "docs/simulation.md)");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  for (const std::string& name : breaks_wanted) {
    if (!add_break(name, breaks)) {
      fmt::print(stderr, "vremote-sim: no rule is called '{}'; the names are:{}\n", name, names);
      return 2;
    }
  }
  const WorldKind kind = *world_kind(world);
  if (one->count() > 0) return replay(seed, breaks, lines, trace, kind) ? 0 : 1;

  const auto start = std::chrono::steady_clock::now();
  const Summary summary = run_seeds({first, seeds}, breaks, jobs, keep_going, kind);
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const WorldCounts& c = summary.counts;
  fmt::print("{} worlds, {} failed, {} steps, {} operations, {} messages in {:.1f} s\n",
             summary.seeds, summary.failures, c.steps, c.operations, c.messages, seconds);
  if (statistics && kind == WorldKind::Names)
    fmt::print(
        "names: {} used without asking, {} lookups, {} looked up anew, {} given, {} expiries ({} "
        "blocked), {} epochs\n",
        c.names.hits, c.names.lookups, c.names.revalidations, c.names_given, c.names.expiries,
        c.names.expiries_blocked, c.names.epochs);
  if (statistics && kind == WorldKind::Locks)
    fmt::print("locks: {} waited for, {} circles refused, {} processes died\n", c.lock_waits,
               c.lock_circles, c.lock_deaths);
  const bool faults = kind == WorldKind::Faults || kind == WorldKind::Power;
  if (statistics && faults)
    fmt::print(
        "faults: {}, {} sessions ended, {} times leases ran out, {} bytes rescued, {} "
        "restarts of homes, {} losses of their power, {} nodes brought back what they had and kept "
        "{} pages, {} truncations "
        "were not waited for\n",
        c.faults, c.fences, c.agent.suspensions, c.agent.rescued_bytes, c.restarts, c.power_losses,
        c.reclaims, c.agent.pages_claimed, c.agent.truncations_ended);
  if (statistics && (kind == WorldKind::Pages || faults)) {
    fmt::print(
        "kernel: {} page hits, {} fills, {} refaults, {} stores, {} write-backs ({} held back), {} "
        "purges ({} blocked), {} reclaims, {} forgets\n",
        c.kernel.hits, c.kernel.fills, c.kernel.refaults, c.kernel.stores, c.kernel.write_backs,
        c.kernel.held_back, c.kernel.purges, c.kernel.purge_blocks, c.kernel.reclaims,
        c.kernel.forgets);
    fmt::print(
        "agents: {} direct reads, {} direct writes, {} lease requests, {} fetches, {} flushes, {} "
        "recalls, {} void fetches, {} without a message\n",
        c.agent.direct_reads, c.agent.direct_writes, c.agent.lease_requests, c.agent.fetches,
        c.agent.flushes, c.agent.recalls, c.agent.void_fetches, c.agent.hits_without_message);
  }
  if (statistics && kind != WorldKind::Locks)
    fmt::print("homes: {} recalls of nodes that had too many leases\n", c.taken_back);
  if (!summary.finding) return 0;
  fmt::print("\nseed {} failed: {}\nreplay: vremote-sim{} --seed {}{}{} --trace\n\n",
             summary.finding->seed, summary.finding->what,
             kind == WorldKind::Pages ? std::string() : " --world " + world, summary.finding->seed,
             breaks_wanted.empty() ? "" : " --break=", fmt::join(breaks_wanted, " --break="));
  std::fflush(stdout);
  replay(summary.finding->seed, breaks, lines, false, kind);
  return 1;
}
