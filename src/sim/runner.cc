#include "sim/runner.h"

#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

#include "base/check.h"

namespace vremote::sim {
namespace {

// What a child tells its parent, in memory they share: a child that aborts has no chance to speak.
struct Slot {
  uint64_t seed = 0;
  bool running = false;
  uint64_t seeds = 0, failures = 0, first_failure = 0;
  char what[600] = {};
  WorldCounts counts;
};

void add(WorldCounts& to, const WorldCounts& c) {
  to.steps += c.steps;
  to.operations += c.operations;
  to.messages += c.messages;
  to.kernel += c.kernel;
  to.agent += c.agent;
  to.names += c.names;
  to.names_given += c.names_given;
  to.lock_waits += c.lock_waits;
  to.lock_circles += c.lock_circles;
  to.lock_deaths += c.lock_deaths;
  to.faults += c.faults;
  to.fences += c.fences;
  to.restarts += c.restarts;
  to.power_losses += c.power_losses;
  to.reclaims += c.reclaims;
  to.taken_back += c.taken_back;
}

void note_failure(Slot& slot, const std::string& what) {
  ++slot.failures;
  if (slot.failures > 1) return;
  slot.first_failure = slot.seed;
  std::snprintf(slot.what, sizeof slot.what, "%s", what.c_str());
}

// Runs this child's share from `seed` on; returns when it is done, or never.
void run_share(Slot& slot, uint64_t seed, uint64_t end, unsigned stride, const Breaks& breaks,
               bool keep_going, WorldKind kind) {
  for (; seed < end; seed += stride) {
    slot.seed = seed;
    slot.running = true;
    const auto world = make_world(kind, seed, breaks);
    const Outcome outcome = world->run();
    add(slot.counts, outcome.counts);
    slot.running = false;
    ++slot.seeds;
    if (outcome.failure.empty()) continue;
    note_failure(slot, outcome.failure);
    if (!keep_going) return;
    fmt::print(stderr, "seed {} failed: {}\n", seed, outcome.failure);
  }
}

AnyWorld* traced_world = nullptr;

void print_tail() {
  if (traced_world == nullptr) return;
  for (const std::string& line : traced_world->scheduler().last_lines()) std::puts(line.c_str());
  std::fflush(stdout);
}

extern "C" void print_tail_on_abort(int) {
  // Not async-signal-safe in general; abort() was called from our own code, outside of any lock of
  // stdio.
  print_tail();
  std::_Exit(1);
}

}  // namespace

Summary run_seeds(SeedRange range, const Breaks& breaks, unsigned jobs, bool keep_going,
                  WorldKind kind) {
  void* memory = ::mmap(nullptr, sizeof(Slot) * jobs, PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  VR_CHECK(memory != MAP_FAILED);
  auto* slots = static_cast<Slot*>(memory);
  std::fflush(stdout);
  for (unsigned j = 0; j < jobs; ++j) ::new (slots + j) Slot;
  const uint64_t end = range.first + range.count;
  std::vector<pid_t> children(jobs);
  auto launch = [&](unsigned j, uint64_t from) {
    children[j] = ::fork();
    VR_CHECK(children[j] >= 0);
    if (children[j] == 0) {
      run_share(slots[j], from, end, jobs, breaks, keep_going, kind);
      std::_Exit(0);
    }
  };
  for (unsigned j = 0; j < jobs; ++j) launch(j, range.first + j);
  for (unsigned j = 0; j < jobs; ++j) {
    for (;;) {
      int status = 0;
      ::waitpid(children[j], &status, 0);
      if (WIFEXITED(status) && WEXITSTATUS(status) == 0) break;
      note_failure(slots[j], "a broken rule ended the process (VR_CHECK, see stderr)");
      ++slots[j].seeds;
      if (!keep_going) break;
      launch(j, slots[j].seed + jobs);
    }
  }
  Summary summary;
  for (unsigned j = 0; j < jobs; ++j) {
    const Slot& slot = slots[j];
    summary.seeds += slot.seeds;
    summary.failures += slot.failures;
    add(summary.counts, slot.counts);
    if (slot.failures > 0 && (!summary.finding || slot.first_failure < summary.finding->seed))
      summary.finding = Finding{slot.first_failure, slot.what};
  }
  ::munmap(memory, sizeof(Slot) * jobs);
  return summary;
}

bool replay(uint64_t seed, const Breaks& breaks, size_t lines, bool print_all, WorldKind kind) {
  const std::unique_ptr<AnyWorld> made = make_world(kind, seed, breaks);
  AnyWorld& world = *made;
  fmt::print("seed {}: {}\n", seed, world.plan());
  std::fflush(stdout);
  world.scheduler().trace_to(print_all ? 1 : lines, print_all);
  traced_world = print_all ? nullptr : &world;
  auto before = std::signal(SIGABRT, print_tail_on_abort);
  const Outcome outcome = world.run();
  std::signal(SIGABRT, before);
  traced_world = nullptr;
  if (outcome.failure.empty()) {
    fmt::print("seed {}: everything held ({} steps, {} operations)\n", seed, outcome.counts.steps,
               outcome.counts.operations);
    return true;
  }
  if (!print_all) {
    for (const std::string& line : world.scheduler().last_lines()) fmt::print("{}\n", line);
  }
  fmt::print("seed {} FAILED: {}\n{}", seed, outcome.failure, outcome.dump);
  return false;
}

}  // namespace vremote::sim
