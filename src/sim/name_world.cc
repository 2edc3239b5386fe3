#include "sim/name_world.h"

#include <fmt/format.h>

#include <algorithm>

namespace vremote::sim {

using namespace coherence;

NameWorld::NameWorld(uint64_t seed, const Breaks& breaks)
    : scheduler_(std::make_unique<Scheduler>(seed)),
      breaks_(breaks),
      history_(breaks.name_races),
      limits_(draw_limits(seed)) {
  draw();
}

NameWorld::~NameWorld() = default;

void NameWorld::draw() {
  Prng& random = scheduler_->random();
  auto one_of = [&random](std::initializer_list<int64_t> values) {
    return *(values.begin() + static_cast<ptrdiff_t>(random.below(values.size())));
  };
  node_count_ = static_cast<uint32_t>(random.between(2, random.chance(70) ? 3 : 5));
  processes_per_node_ = static_cast<uint32_t>(random.between(1, 3));
  operations_ = static_cast<uint32_t>(random.between(6, 25));
  for (uint64_t d = 0, count = random.between(1, 2); d < count; ++d)
    directories_.push_back({0, 1, d + 1});
  const uint64_t count = random.between(1, 3);
  for (const char* name : {"a", "b", "c"})
    if (names_.size() < count) names_.emplace_back(name);
  const bool changes = !random.chance(10);
  for (uint32_t n = 0; n < node_count_; ++n) {
    Weights w;
    // Most look, some change: names that nobody uses for a while need not be ended.
    w.stat = static_cast<uint32_t>(random.between(1, 30));
    const auto weigh = [&](uint32_t most, uint32_t percent) {
      return changes && random.chance(percent) ? static_cast<uint32_t>(random.between(1, most)) : 0;
    };
    w.create = weigh(12, 60);
    w.remove = weigh(12, 60);
    w.rename = weigh(12, 50);
    w.list = weigh(6, 30);
    weights_.push_back(w);
  }
  options_.agent.mistakes = options_.ledger.mistakes = breaks_.protocol;
  // Found, and asked for, and when the rename has been answered and is over.
  options_.ledger.moved_ns =
      scheduler_->longest(Delay::KernelQueue) + scheduler_->longest(Delay::WakeUp) + 1;
  options_.ledger.contended_ns = one_of({0, 20'000, 1'000'000});
  options_.ledger.expiry_most_ns = one_of({50'000, 1'000'000, 10'000'000});
  options_.expires_absent = random.chance(50);
  options_.slow_attributes = random.chance(40);
  plan_ = fmt::format(
      "{} nodes, {} processes each, {} directories, {} names, contended for {} us, expiries within "
      "{} us{}{}",
      node_count_, processes_per_node_, directories_.size(), names_.size(),
      options_.ledger.contended_ns / 1000, options_.ledger.expiry_most_ns / 1000,
      options_.expires_absent ? "" : ", absent names are not found to expire",
      options_.slow_attributes ? ", attributes come late" : "");
}

void NameWorld::start() {
  Scheduler& scheduler = *scheduler_;
  home_ = std::make_unique<NameHome>(
      scheduler, history_, breaks_,
      [this](NodeId node, FileId file, ToAgent message) {
        ++messages_;
        from_home_[node.value]->send(file, [this, node, late = std::move(message)]() mutable {
          nodes_[node.value]->deliver(std::move(late));
        });
      },
      limits_);
  for (FileId dir : directories_) home_->create(dir, names_);
  for (uint32_t n = 0; n < node_count_; ++n) {
    to_home_.push_back(std::make_unique<Link>(scheduler));
    from_home_.push_back(std::make_unique<Link>(scheduler));
    NameNode::Hooks hooks;
    hooks.send = [this](NodeId node, ToHome message) {
      ++messages_;
      const FileId file = file_of(message);
      to_home_[node.value]->send(file, [this, node, late = std::move(message)]() mutable {
        home_->receive(node, std::move(late));
        home_->home().check();
        check_leases();
      });
    };
    hooks.changed = [this](NodeId node) {
      nodes_[node.value]->check();
      check_leases();
    };
    nodes_.push_back(
        std::make_unique<NameNode>(scheduler, history_, NodeId{n}, options_, std::move(hooks)));
  }
  for (uint32_t n = 0; n < node_count_; ++n)
    for (uint32_t p = 0; p < processes_per_node_; ++p)
      processes_.push_back({.node = n, .tid = p + 1, .doing = {}});
  for (size_t i = 0; i < processes_.size(); ++i) scheduler.spawn(live(i));
}

NameKey NameWorld::some_name() {
  Prng& random = scheduler_->random();
  return {directories_[random.below(directories_.size())], names_[random.below(names_.size())]};
}

Co<> NameWorld::live(size_t process) {
  Prng& random = scheduler_->random();
  const uint32_t node = processes_[process].node, tid = processes_[process].tid;
  NameKernel& kernel = nodes_[node]->kernel();
  const Weights& w = weights_[node];
  for (uint32_t i = 0; i < operations_; ++i) {
    co_await scheduler_->sleep(Delay::Think);
    uint64_t dice = random.below(w.stat + w.create + w.remove + w.rename + w.list);
    const NameKey key = some_name();
    const auto is = [&dice](uint32_t weight) {
      if (dice < weight) return true;
      dice -= weight;
      return false;
    };
    std::string& doing = processes_[process].doing;
    if (is(w.stat)) {
      doing = "stat " + to_text(key);
      co_await kernel.stat(tid, key);
    } else if (is(w.create)) {
      doing = "create " + to_text(key);
      const bool exclusive = random.chance(40);
      co_await kernel.create(tid, key, exclusive);
    } else if (is(w.remove)) {
      doing = "unlink " + to_text(key);
      co_await kernel.remove(tid, key);
    } else if (is(w.rename)) {
      const NameKey to = some_name();
      if (to == key) continue;
      doing = "rename " + to_text(key) + " " + to_text(to);
      const bool exchange = random.chance(20);
      co_await kernel.rename(tid, key, to, exchange);
    } else {
      doing = "list d" + std::to_string(key.first.inode);
      co_await kernel.list(tid, key.first, names_);
    }
    ++operations_done_;
  }
  processes_[process].done = true;
}

// What a dentry kept wrongly shows now.
Co<> NameWorld::audit(size_t process) {
  NameKernel& kernel = nodes_[processes_[process].node]->kernel();
  processes_[process].doing = "the last look";
  for (FileId dir : directories_)
    for (const std::string& name : names_) {
      NameKey key{dir, name};
      co_await kernel.stat(processes_[process].tid, std::move(key));
    }
  processes_[process].done = true;
}

void NameWorld::check_leases() {
  for (FileId dir : directories_) {
    LeaseMode strongest = LeaseMode::None;
    for (uint32_t n = 0; n < nodes_.size(); ++n) {
      const LeaseMode mode = nodes_[n]->agent().held(dir, Resource::Entries, 0);
      if (mode == LeaseMode::None) continue;
      if (!compatible(strongest, mode))
        scheduler_->fail(fmt::format("I1: the entries of d{} are held in conflict", dir.inode));
      strongest = mode;
      if (!covers(home_->home().held(NodeId{n}, dir, Resource::Entries, 0), mode))
        scheduler_->fail(fmt::format("I5: n{} holds the entries of d{} and the home does not know",
                                     n, dir.inode));
    }
  }
}

std::string NameWorld::waiting() const {
  std::string out;
  for (const Process& process : processes_)
    if (!process.done)
      out += fmt::format("  n{} t{} is in {}\n", process.node, process.tid, process.doing);
  return out;
}

bool NameWorld::settle() {
  const uint64_t steps_max = 100'000 + uint64_t{node_count_} * processes_per_node_ * 40'000;
  while (!scheduler_->failed() && scheduler_->step())
    if (scheduler_->steps() > steps_max) scheduler_->fail("no endless loop: too many steps");
  if (scheduler_->failed()) return false;
  if (const std::string who = waiting(); !who.empty())
    scheduler_->fail("no deadlock: nothing happens any more, and these wait:\n" + who);
  return !scheduler_->failed();
}

Outcome NameWorld::run() {
  start();
  bool good = settle();
  if (good) {
    processes_.clear();
    for (uint32_t n = 0; n < node_count_; ++n)
      processes_.push_back({.node = n, .tid = 90, .doing = {}});
    for (size_t i = 0; i < processes_.size(); ++i) scheduler_->spawn(audit(i));
    good = settle();
  }
  if (good) {
    if (!home_->idle()) scheduler_->fail("the home still has something to do in the end");
    if (auto what = history_.check()) scheduler_->fail(*what);
  }
  Outcome outcome;
  outcome.failure = scheduler_->failure();
  if (scheduler_->failed()) {
    outcome.dump = waiting() + home_->dump();
    for (const auto& node : nodes_) outcome.dump += node->dump();
  }
  if (home_) outcome.counts.taken_back = home_->home().counts().taken_back;
  outcome.counts.steps = scheduler_->steps();
  outcome.counts.operations = operations_done_;
  outcome.counts.messages = messages_;
  for (const auto& node : nodes_) {
    outcome.counts.names += node->kernel().counts();
    outcome.counts.names_given += node->names_given();
    outcome.counts.agent += node->agent().statistics();
  }
  return outcome;
}

}  // namespace vremote::sim
