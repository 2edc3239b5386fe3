#include "coherence/wait_circles.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/prng.h"

namespace vremote::coherence {
namespace {

using Decision = LockTable::Decision;
constexpr int64_t kMs = 1'000'000;

// Homes, nodes, and processes of one thread each. Locks are taken at once; what searches for
// circles travels over links that keep the order of their messages and nothing else.
class World {
 public:
  World(size_t homes, size_t nodes, WaitCircles::Options options = {})
      : homes_(homes), clocks_(homes, 0) {
    for (size_t n = 0; n < nodes; ++n)
      nodes_.push_back(std::make_unique<WaitCircles>(1000 + n, options));
  }

  struct Process {
    size_t node = 0;
    std::optional<std::pair<size_t, uint64_t>> waits;  // home and call
    bool in_a_circle = false;                          // at some time since it waits
    int refused = 0;
  };
  size_t process(size_t node) {
    processes_.push_back({.node = node});
    return processes_.size() - 1;
  }
  Process& at(size_t process) { return processes_[process]; }
  void clock(size_t home, uint64_t shift) { clocks_[home] = shift; }

  Decision lock(size_t p, size_t home, uint64_t byte, LockType type = LockType::Write) {
    EXPECT_FALSE(at(p).waits);
    const uint64_t call = ++calls_;
    bool elsewhere = false;
    for (size_t h = 0; h < homes_.size(); ++h)
      elsewhere = elsewhere || (h != home && homes_[h].holds_range(owner(p)));
    LockTable::Request request{.file = file(byte),
                               .kind = LockKind::Range,
                               .owner = owner(p),
                               .type = type,
                               .range = {byte, byte},
                               .pid = 1,
                               .wait = true,
                               .ticket = {owner(p).node, call},
                               .holds_elsewhere = elsewhere,
                               .since = 1'000'000 + clocks_[home] + ++order_};
    const Decision decision = homes_[home].set(request, woken_);
    if (decision == Decision::Waits) {
      at(p).waits = {home, call};
      at(p).in_a_circle = false;
      nodes_[at(p).node]->begins(now_, {static_cast<uint32_t>(home), file(byte), call, p});
    }
    settle();
    return decision;
  }
  void unlock(size_t p, size_t home, uint64_t byte) {
    (void)homes_[home].set({.file = file(byte),
                            .kind = LockKind::Range,
                            .owner = owner(p),
                            .type = LockType::Unlock,
                            .range = {byte, byte}},
                           woken_);
    settle();
  }
  void unlock_all(size_t p) {
    for (size_t h = 0; h < homes_.size(); ++h)
      for (const LockTable::Held& held : homes_[h].all())
        if (held.lock.owner == owner(p)) unlock(p, h, held.lock.range.start);
  }
  void interrupt(size_t p) {
    const auto [home, call] = *at(p).waits;
    for (uint64_t byte = 0; byte < 8; ++byte)
      (void)homes_[home].cancel(file(byte), {owner(p).node, call}, woken_);
    ended(p);
    settle();
  }

  // One step of what is under way; false: nothing is.
  bool deliver(Prng& random) {
    std::vector<std::pair<size_t, size_t>> links;
    for (const auto& [link, messages] : to_home_)
      if (!messages.empty()) links.push_back(link);
    const size_t to_home = links.size();
    for (const auto& [link, messages] : to_node_)
      if (!messages.empty()) links.push_back(link);
    if (links.empty()) return false;
    const size_t chosen = random.below(links.size());
    const auto [node, home] = links[chosen];
    ++delivered_;
    if (chosen >= to_home) {
      auto& queue = to_node_[links[chosen]];
      const FollowOwner message = std::move(queue.front());
      queue.pop_front();
      WaitCircles::Actions actions;
      nodes_[node]->receive(static_cast<uint32_t>(home), message, actions);
      carry_out(node, actions);
      return true;
    }
    auto& queue = to_home_[links[chosen]];
    const WaitCircles::Action action = std::move(queue.front());
    queue.pop_front();
    if (const auto* refuse = std::get_if<WaitCircles::Refuse>(&action)) {
      if (!homes_[home].cancel(refuse->file, {node_id(node), refuse->call}, woken_)) return true;
      const size_t p = waiting_by(node, refuse->call);
      EXPECT_TRUE(at(p).in_a_circle || believes_at_once_) << "EDEADLK without a circle";
      wrong_ += at(p).in_a_circle ? 0 : 1;
      ++at(p).refused;
      ended(p);
      settle();
      return true;
    }
    const FollowWait& follow_wait = std::get<WaitCircles::Ask>(action).follow;
    for (auto& [to, message] : follow(homes_[home], 77 + home, node_id(node), follow_wait))
      to_node_[{to.value - 1, home}].push_back(std::move(message));
    return true;
  }
  void pass(int64_t ms) {
    now_ = now_ + ms * kMs;
    for (size_t n = 0; n < nodes_.size(); ++n) {
      WaitCircles::Actions actions;
      nodes_[n]->tick(
          now_,
          [&](uint64_t p) {
            return std::ranges::any_of(
                homes_, [&](const LockTable& home) { return home.holds_range(owner(p)); });
          },
          actions);
      carry_out(n, actions);
    }
  }
  // Until nothing is under way any more.
  void rest(Prng& random, int64_t ms) {
    for (int64_t passed = 0; passed < ms; passed += 50) {
      pass(50);
      while (deliver(random)) {
      }
    }
  }
  bool circles() const {
    return std::ranges::any_of(processes_, [&](const Process& p) {
      return p.waits && in_circle(static_cast<size_t>(&p - processes_.data()));
    });
  }
  int refused() const {
    int all = 0;
    for (const Process& p : processes_) all += p.refused;
    return all;
  }
  void expect_wrong() { believes_at_once_ = true; }
  int wrong() const { return wrong_; }
  size_t delivered() const { return delivered_; }
  const LockTable& home(size_t home) const { return homes_[home]; }
  bool idle() const {
    return std::ranges::all_of(nodes_, [](const auto& node) { return node->idle(); });
  }

 private:
  static FileId file(uint64_t byte) { return {0, 1, 10 + byte / 2}; }
  static NodeId node_id(size_t node) { return {static_cast<uint32_t>(node + 1)}; }
  LockOwner owner(size_t p) const { return {node_id(processes_[p].node), p}; }

  void carry_out(size_t node, WaitCircles::Actions& actions) {
    for (WaitCircles::Action& action : actions) {
      const size_t home = std::visit([](const auto& a) { return size_t{a.home}; }, action);
      to_home_[{node, home}].push_back(std::move(action));
    }
  }
  size_t waiting_by(size_t node, uint64_t call) const {
    for (size_t p = 0; p < processes_.size(); ++p)
      if (processes_[p].node == node && processes_[p].waits && processes_[p].waits->second == call)
        return p;
    ADD_FAILURE() << "nobody waits by call " << call;
    return 0;
  }
  void ended(size_t p) {
    nodes_[at(p).node]->ends(static_cast<uint32_t>(at(p).waits->first), at(p).waits->second);
    at(p).waits.reset();
  }
  // Who was woken goes on; then who is in a circle now.
  void settle() {
    while (!woken_.empty()) {
      const LockTable::Ticket ticket = woken_.back();
      woken_.pop_back();
      ended(waiting_by(ticket.node.value - 1, ticket.call));
    }
    for (size_t p = 0; p < processes_.size(); ++p)
      if (at(p).waits && in_circle(p)) at(p).in_a_circle = true;
  }
  // Seeing all homes at once.
  bool in_circle(size_t start) const {
    std::map<LockOwner, std::vector<LockOwner>> waits_for;
    for (const LockTable& home : homes_)
      for (const LockTable::BlockedRequest& blocked : home.blocked_requests(10'000))
        for (const HeldLock& lock : blocked.held_by)
          waits_for[blocked.request.owner].push_back(lock.owner);
    std::vector<LockOwner> todo = waits_for[owner(start)], seen;
    while (!todo.empty()) {
      const LockOwner next = todo.back();
      todo.pop_back();
      if (next == owner(start)) return true;
      if (std::ranges::find(seen, next) != seen.end()) continue;
      seen.push_back(next);
      todo.insert(todo.end(), waits_for[next].begin(), waits_for[next].end());
    }
    return false;
  }

  std::vector<LockTable> homes_;
  std::vector<uint64_t> clocks_;
  std::vector<std::unique_ptr<WaitCircles>> nodes_;
  std::vector<Process> processes_;
  std::map<std::pair<size_t, size_t>, std::deque<WaitCircles::Action>> to_home_;
  std::map<std::pair<size_t, size_t>, std::deque<FollowOwner>> to_node_;
  std::vector<LockTable::Ticket> woken_;
  Instant now_{1};
  uint64_t calls_ = 0, order_ = 0;
  bool believes_at_once_ = false;
  int wrong_ = 0;
  size_t delivered_ = 0;
};

// Each holds its own byte and wants its neighbour's, at another home.
void close_circle(World& w, const std::vector<size_t>& processes, size_t homes) {
  const size_t n = processes.size();
  for (size_t i = 0; i < n; ++i)
    ASSERT_EQ(Decision::Done, w.lock(processes[i], i % homes, i / homes));
  for (size_t i = 0; i < n; ++i) {
    const size_t next = (i + 1) % n;
    ASSERT_EQ(Decision::Waits, w.lock(processes[i], next % homes, next / homes));
  }
}

TEST(WaitCirclesTest, ACircleOverTwoHomesIsRefusedToWhoClosedIt) {
  Prng random(1);
  World w(2, 2);
  const size_t a = w.process(0), b = w.process(1);
  close_circle(w, {a, b}, 2);
  EXPECT_TRUE(w.circles());
  w.rest(random, 200);
  EXPECT_EQ(0, w.at(a).refused);
  EXPECT_EQ(1, w.at(b).refused) << "the youngest";
  EXPECT_FALSE(w.circles());
  EXPECT_TRUE(w.at(a).waits) << "until the other lets go";
  w.unlock_all(b);
  EXPECT_FALSE(w.at(a).waits);
  EXPECT_TRUE(w.idle());
}

TEST(WaitCirclesTest, ProcessesOfOneNodeCountAsThoseOfSeveral) {
  Prng random(1);
  World w(2, 1);
  const size_t a = w.process(0), b = w.process(0);
  close_circle(w, {a, b}, 2);
  w.rest(random, 200);
  EXPECT_EQ(1, w.at(b).refused);
}

TEST(WaitCirclesTest, ALongCircleOverManyHomesHasOneVictim) {
  for (size_t n : {3u, 5u, 12u}) {
    Prng random(n);
    World w(3, 4);
    std::vector<size_t> processes;
    for (size_t i = 0; i < n; ++i) processes.push_back(w.process(i % 4));
    close_circle(w, processes, 3);
    w.rest(random, 6000);
    EXPECT_EQ(1, w.refused()) << n;
    EXPECT_EQ(1, w.at(processes.back()).refused);
    EXPECT_FALSE(w.circles());
  }
}

TEST(WaitCirclesTest, ClocksThatDifferChooseAnotherVictimButOne) {
  Prng random(3);
  World w(3, 3);
  w.clock(1, 5'000'000);
  w.clock(2, 3'000'000);
  const std::vector<size_t> processes{w.process(0), w.process(1), w.process(2)};
  close_circle(w, processes, 3);
  w.rest(random, 6000);
  EXPECT_EQ(1, w.refused());
  EXPECT_FALSE(w.circles());
}

TEST(WaitCirclesTest, WhoHoldsNothingSearchesForNothing) {
  Prng random(4);
  World w(2, 2);
  const size_t holder = w.process(0), waits = w.process(1);
  ASSERT_EQ(Decision::Done, w.lock(holder, 0, 0));
  ASSERT_EQ(Decision::Waits, w.lock(waits, 0, 0));
  w.rest(random, 20'000);
  EXPECT_EQ(0u, w.delivered());
}

TEST(WaitCirclesTest, ALongWaitCostsAFewMessages) {
  Prng random(4);
  World w(2, 2);
  const size_t holder = w.process(0), waits = w.process(1);
  ASSERT_EQ(Decision::Done, w.lock(holder, 0, 0));
  ASSERT_EQ(Decision::Done, w.lock(waits, 1, 0));
  ASSERT_EQ(Decision::Waits, w.lock(waits, 0, 0));
  w.rest(random, 60'000);
  EXPECT_TRUE(w.at(waits).waits);
  EXPECT_GT(w.delivered(), 10u);
  EXPECT_LT(w.delivered(), 100u);
}

// Behind a writer that waits in line; what it holds elsewhere lets it pass, as its own home's does.
TEST(WaitCirclesTest, WhoHoldsSomethingElsewherePassesTheLine) {
  World w(2, 3);
  const size_t reader = w.process(0), writer = w.process(1), other = w.process(2);
  ASSERT_EQ(Decision::Done, w.lock(reader, 0, 0, LockType::Read));
  ASSERT_EQ(Decision::Waits, w.lock(writer, 0, 0));
  ASSERT_EQ(Decision::Done, w.lock(other, 1, 0));
  EXPECT_EQ(Decision::Done, w.lock(other, 0, 0, LockType::Read));
}

TEST(WaitCirclesTest, ASearchThatAsksTooMuchIsCutShort) {
  LockTable table;
  std::vector<LockTable::Ticket> woken;
  const FileId file{0, 1, 1};
  for (uint32_t n = 1; n <= 3000; ++n)
    ASSERT_EQ(Decision::Done, table.set({.file = file,
                                         .owner = {NodeId{n}, n},
                                         .type = LockType::Read,
                                         .range = {0, 9},
                                         .ticket = {NodeId{n}, 1}},
                                        woken));
  ASSERT_EQ(Decision::Waits, table.set({.file = file,
                                        .owner = {NodeId{5000}, 1},
                                        .type = LockType::Write,
                                        .range = {0, 9},
                                        .wait = true,
                                        .ticket = {NodeId{5000}, 1},
                                        .since = 5},
                                       woken));
  FollowWait asked{.file = file, .call = 1, .trail = {.searcher = 1, .search = 1}};
  EXPECT_TRUE(follow(table, 9, {5000}, asked).empty()) << "nothing may come of it";
  asked.trail.budget = UINT32_MAX;
  EXPECT_EQ(kTrailBudget, follow(table, 9, {5000}, asked).size());
  asked.trail.budget = 3;
  EXPECT_EQ(3u, follow(table, 9, {5000}, asked).size());
  EXPECT_EQ(0u, follow(table, 9, {5000}, asked).front().second.trail.budget);
  EXPECT_TRUE(follow(table, 9, {4999}, asked).empty()) << "another node's request";
  asked.trail.waits.resize(kTrailMax);
  EXPECT_TRUE(follow(table, 9, {5000}, asked).empty());
}

// C2. Its node knew of no searches when it came, and does now.
TEST(WaitCirclesTest, NoSearchBeginsForARequestOfBeforeThereWereAny) {
  LockTable table;
  std::vector<LockTable::Ticket> woken;
  const FileId file{0, 1, 1};
  ASSERT_EQ(Decision::Done, table.set({.file = file,
                                       .owner = {NodeId{1}, 1},
                                       .type = LockType::Write,
                                       .range = {0, 9},
                                       .ticket = {NodeId{1}, 1}},
                                      woken));
  ASSERT_EQ(Decision::Waits, table.set({.file = file,
                                        .owner = {NodeId{2}, 2},
                                        .type = LockType::Write,
                                        .range = {0, 9},
                                        .wait = true,
                                        .ticket = {NodeId{2}, 1},
                                        .since = 0},
                                       woken));
  FollowWait asked{
      .file = file, .call = 1, .trail = {.searcher = 1, .search = 1, .budget = kTrailBudget}};
  EXPECT_TRUE(follow(table, 9, {2}, asked).empty());
  asked.trail.since = 5;  // another's search comes by
  EXPECT_EQ(1u, follow(table, 9, {2}, asked).size());
}

// Everything at once: processes that lock, unlock, are interrupted; links that are slow.
int live(uint64_t seed, int* refused) {
  Prng random(seed);
  const size_t homes = random.between(2, 3), nodes = random.between(1, 3);
  World w(homes, nodes);
  if (random.chance(50)) w.clock(random.below(homes), random.below(300));
  const size_t count = random.between(2, 6);
  for (size_t i = 0; i < count; ++i) w.process(random.below(nodes));
  const auto bytes = random.between(1, 4);
  std::vector<int> seen_refused(count, 0);
  const bool reads = random.chance(60), signals = random.chance(30);
  for (int step = 0; step < 300; ++step) {
    const size_t p = random.below(count);
    if (w.at(p).refused > seen_refused[p]) {  // what a program does then
      seen_refused[p] = w.at(p).refused;
      w.unlock_all(p);
    } else if (w.at(p).waits) {
      if (signals && random.chance(3)) w.interrupt(p);
    } else if (random.chance(55)) {
      (void)w.lock(p, random.below(homes), random.below(bytes),
                   reads && random.chance(50) ? LockType::Read : LockType::Write);
    } else {
      w.unlock(p, random.below(homes), random.below(bytes));
    }
    if (random.chance(30)) w.pass(static_cast<int64_t>(random.below(150)));
    for (uint64_t n = random.below(4); n > 0; --n) (void)w.deliver(random);
  }
  w.rest(random, 12'000);
  EXPECT_FALSE(w.circles()) << "seed " << seed << ": a circle is left";
  *refused += w.refused();
  return w.wrong();
}

TEST(WaitCirclesTest, NoCircleIsLeftAndNoneIsMadeUp) {
  int refused = 0;
  for (uint64_t seed = 1; seed <= 1500; ++seed) {
    EXPECT_EQ(0, live(seed, &refused)) << "seed " << seed;
    if (HasFailure()) break;
  }
  EXPECT_GT(refused, 500) << "or nothing was tried";
}

// C3. A waits for two readers; a search has just heard of one of them when that one lets go and
// waits for A. At no time does it stand in A's way and wait for it.
int search_across_a_change(WaitCircles::Options options) {
  Prng random(1);
  World w(2, 3, options);
  if (options.believe_at_once) w.expect_wrong();
  w.clock(0, 1'000'000'000);  // else C2 alone forbids it: what is older cannot have changed
  const size_t a = w.process(0), reader = w.process(1), other = w.process(2);
  EXPECT_EQ(Decision::Done, w.lock(reader, 0, 0, LockType::Read));
  EXPECT_EQ(Decision::Done, w.lock(other, 0, 0, LockType::Read));
  EXPECT_EQ(Decision::Done, w.lock(a, 1, 0));
  EXPECT_EQ(Decision::Waits, w.lock(a, 0, 0));
  w.pass(100);
  EXPECT_TRUE(w.deliver(random)) << "the home is asked, and has told of both";
  w.unlock(reader, 0, 0);
  EXPECT_EQ(Decision::Waits, w.lock(reader, 1, 0));
  w.rest(random, 10'000);
  EXPECT_FALSE(w.circles());
  return w.wrong();
}

TEST(WaitCirclesTest, EdgesThatWereNeverThereTogetherAreNoCircle) {
  EXPECT_EQ(0, search_across_a_change({}));
  EXPECT_EQ(1, search_across_a_change({.believe_at_once = true})) << "the checker notices";
}

// Whatever others say: no more messages than they asked for, and nothing of what is not there.
TEST(WaitCirclesTest, NonsenseOfOthersIsPassedOnWithinItsBounds) {
  for (uint64_t seed = 1; seed <= 300; ++seed) {
    Prng random(seed);
    WaitCircles circles(7);
    WaitCircles::Actions actions;
    for (uint64_t call = 1; call <= 6; ++call)
      circles.begins({1}, {static_cast<uint32_t>(random.below(3)), {0, 1, call}, call, call % 3});
    circles.tick(
        {1 + WaitCircles::kFirstSearchNs}, [](uint64_t) { return true; }, actions);
    for (int i = 0; i < 40; ++i) {
      Trail trail{.searcher = random.chance(70) ? 7 : random.next(),
                  .search = random.below(20),
                  .since = random.next(),
                  .budget = static_cast<uint32_t>(random.below(3)),
                  .waits = {}};
      trail.waits.resize(random.below(3));
      actions.clear();
      circles.receive(static_cast<uint32_t>(random.below(4)),
                      {.file = {}, .owner = random.below(4), .trail = trail}, actions);
      EXPECT_LE(actions.size(), std::max<size_t>(trail.budget, 1));
      if (random.chance(10)) circles.ends(static_cast<uint32_t>(random.below(3)), 1 + i % 6);
    }
  }
}

TEST(WaitCirclesTest, AHomeMakesANodeSendNoMoreThanItsShare) {
  WaitCircles circles(7);
  WaitCircles::Actions actions;
  const auto tick = [&] {
    circles.tick(
        {2}, [](uint64_t) { return true; }, actions);
  };
  const auto hear = [&](uint32_t home, int times) {
    actions.clear();
    for (int i = 0; i < times; ++i)
      circles.receive(
          home,
          {.file = {}, .owner = 5, .trail = {.searcher = 8, .search = 1, .budget = UINT32_MAX}},
          actions);
    return actions.size();
  };
  for (uint64_t call = 1; call <= 100; ++call) circles.begins({1}, {1, {0, 1, call}, call, 5});
  const size_t sent = hear(0, 10'000);
  EXPECT_GT(sent, 100u);
  EXPECT_LE(sent, WaitCircles::kFollowedMax + 100);
  EXPECT_LE(std::get<WaitCircles::Ask>(actions.front()).follow.trail.budget, kTrailBudget);
  EXPECT_EQ(hear(0, 1), 0u);
  EXPECT_EQ(hear(2, 1), 100u) << "another home has its own";
  tick();
  EXPECT_EQ(hear(0, 1), 100u);
}

}  // namespace
}  // namespace vremote::coherence
