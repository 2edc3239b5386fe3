// Every order of events of a small world, up to a depth: two agents, the queues between them and the home, and one operation.
//
// The agents here do what the protocol allows and no more: they believe the grants that have reached them, ack recalls in order, narrowly or
// as widely as they can. Grants, recalls, acks and requests wait in queues, so that every crossing of them is tried.
// Not covered: flushes (they pass through), more than two nodes, releases that cross grants (HomeTest), reset sessions.
#include <gtest/gtest.h>

#include <array>
#include <deque>
#include <variant>

#include "coherence/home.h"
#include "coherence/lease_map.h"
#include "coherence/test_text.h"

namespace vremote::coherence {
namespace {

using test::pages;
using enum LeaseMode;

constexpr FileId kFile{0, 1, 7};
constexpr uint64_t kPages = 3;  // looked at: two that are asked for, and one that only wide grants reach

struct Wish {
  LeaseMode mode;
  PageRange range;
};

class SmallWorld {
 public:
  SmallWorld(Resource resource, const std::vector<Wish>& wishes) : resource_(resource), wishes_(wishes) {}

  // Steps are numbered; a step that is not possible now returns false.
  size_t steps() const { return 2 * (wishes_.size() + 3) + 2; }
  bool step(size_t number) {
    if (number >= 2 * (wishes_.size() + 3)) return operation_step(number - 2 * (wishes_.size() + 3));
    const size_t node = number % 2, what = number / 2;
    Side& side = sides_[node];
    if (what < wishes_.size()) {
      if (side.asked - side.granted >= 2) return false;
      ++side.asked;
      side.up.push_back(LeaseRequest{
          .file = kFile, .request = side.asked, .resource = resource_, .mode = wishes_[what].mode, .range = wishes_[what].range});
      return true;
    }
    switch (what - wishes_.size()) {
      case 0:
        return home_takes(node);
      case 1:
        return agent_takes(node, false);
      default:
        return !side.down.empty() && std::holds_alternative<Recall>(side.down.front()) && agent_takes(node, true);
    }
  }

  // Carries on until nothing moves: whoever asked must have been granted (nothing is lost, nothing waits in a circle).
  void drain() {
    for (bool moved = true; moved;) {
      moved = false;
      for (size_t node : {0, 1}) {
        while (home_takes(node)) moved = true;
        while (agent_takes(node, false)) moved = true;
      }
      if (operation_ == Operation::Holding) moved = operation_step(1) || moved;
    }
    for (const Side& side : sides_) ASSERT_EQ(side.granted, side.asked) << "a request was never granted";
    ASSERT_NE(operation_, Operation::Waiting) << "the operation was never let in";
  }

 private:
  struct Side {
    std::deque<std::variant<LeaseRequest, RecallAck>> up;
    std::deque<ToAgent> down;
    LeaseMap leases;
    uint64_t seen = 0;
    uint64_t asked = 0, granted = 0;
  };
  enum class Operation { None, Waiting, Holding };

  bool home_takes(size_t node) {
    Side& side = sides_[node];
    if (side.up.empty()) return false;
    auto message = std::move(side.up.front());
    side.up.pop_front();
    std::visit([&](const auto& m) { home_.receive(NodeId{static_cast<uint32_t>(node)}, m, actions_); }, message);
    took();
    return true;
  }

  bool agent_takes(size_t node, bool wide) {
    Side& side = sides_[node];
    if (side.down.empty()) return false;
    ToAgent message = std::move(side.down.front());
    side.down.pop_front();
    if (const auto* grant = std::get_if<Grant>(&message)) {
      side.seen = grant->sequence;
      ++side.granted;
      LeaseMode mode = grant->mode;
      // As the agent does: Shared and Update together are both rights.
      if (const LeaseMode have = mode_at(side, grant->range.first); have != None && have != mode && mode != Shared) mode = Exclusive;
      if (resource_ == Resource::Attributes) {
        unit_[node] = covers(unit_[node], mode) ? unit_[node] : (unit_[node] == None ? mode : Exclusive);
      } else {
        side.leases.raise(grant->range, mode);
      }
    } else if (const auto* recall = std::get_if<Recall>(&message)) {
      const PageRange given = wide && resource_ == Resource::Data ? PageRange::all() : recall->range;
      if (resource_ == Resource::Attributes) {
        if (recall->to == None) unit_[node] = None;
        if (recall->to == Shared && unit_[node] != None) unit_[node] = Shared;
      } else {
        side.leases.reduce(given, recall->to);
      }
      side.up.push_back(RecallAck{.file = kFile, .recall = recall->recall, .given = given, .seen = side.seen});
    }
    check();
    return true;
  }

  bool operation_step(size_t what) {
    if (what == 0) {
      if (operation_ != Operation::None) return false;
      operation_ = Operation::Waiting;
      home_.acquire(1, {kFile, resource_, Exclusive, pages(0, 0), {}}, actions_);
    } else {
      if (operation_ == Operation::None) return false;
      operation_ = Operation::None;
      home_.finish(1, kFile, actions_);
    }
    took();
    return true;
  }

  void took() {
    for (HomeAction& action : actions_) {
      if (auto* grant = std::get_if<SendGrant>(&action)) sides_[grant->node.value].down.push_back(std::move(grant->grant));
      if (auto* recall = std::get_if<SendRecall>(&action)) sides_[recall->node.value].down.push_back(recall->recall);
      if (std::holds_alternative<OperationReady>(action)) operation_ = Operation::Holding;
      ASSERT_FALSE(std::holds_alternative<CloseSession>(action)) << std::get<CloseSession>(action).reason;
    }
    actions_.clear();
    home_.check();
    check();
  }

  LeaseMode mode_at(const Side& side, uint64_t page) const {
    return resource_ == Resource::Attributes ? unit_[static_cast<size_t>(&side - sides_.data())] : side.leases.at(page);
  }

  void check() const {
    for (uint64_t page = 0; page < (resource_ == Resource::Data ? kPages : 1); ++page) {
      const LeaseMode a = mode_at(sides_[0], page), b = mode_at(sides_[1], page);
      ASSERT_TRUE(compatible(a, b)) << "I1: " << test::text(a) << " beside " << test::text(b) << " on page " << page;
      for (uint32_t node : {0, 1}) {
        const LeaseMode known = home_.held(NodeId{node}, kFile, resource_, page);
        const LeaseMode has = mode_at(sides_[node], page);
        ASSERT_TRUE(covers(known, has)) << "I5: n" << node << " has " << test::text(has) << ", the home knows " << test::text(known);
        if (page == 0 && operation_ == Operation::Holding) ASSERT_EQ(has, None) << "I1: a lease beside the operation";
      }
    }
  }

  const Resource resource_;
  const std::vector<Wish>& wishes_;
  Home home_;
  HomeActions actions_;
  std::array<Side, 2> sides_;
  std::array<LeaseMode, 2> unit_{None, None};
  Operation operation_ = Operation::None;
};

// Tries every sequence of `depth` possible steps; each is run from the start, because a Home cannot be copied.
uint64_t try_all(Resource resource, const std::vector<Wish>& wishes, size_t depth) {
  uint64_t tried = 0;
  std::vector<size_t> path(depth, 0);
  const size_t steps = SmallWorld(resource, wishes).steps();
  for (;;) {
    SmallWorld world(resource, wishes);
    size_t failed_at = depth;  // the first step that was not possible
    for (size_t i = 0; i < depth && failed_at == depth; ++i)
      if (!world.step(path[i])) failed_at = i;
    if (failed_at == depth) {
      ++tried;
      world.drain();
    }
    if (testing::Test::HasFatalFailure()) {
      std::string sequence;
      for (size_t step : path) sequence += fmt::format(" {}", step);
      ADD_FAILURE() << "steps" << sequence;
      return tried;
    }
    // The next path: nothing that begins with an impossible step is tried again.
    size_t at = std::min(failed_at, depth - 1);
    for (size_t i = at + 1; i < depth; ++i) path[i] = 0;
    while (++path[at] == steps) {
      path[at] = 0;
      if (at == 0) return tried;
      --at;
    }
  }
}

TEST(HomeSmallWorldTest, DataLeasesNeverConflictWhateverTheOrder) {
  const std::vector<Wish> wishes{{Shared, pages(0, 0)}, {Exclusive, pages(0, 1)}, {Exclusive, pages(1, 1)}};
  EXPECT_GT(try_all(Resource::Data, wishes, 6), 50'000u);
}

TEST(HomeSmallWorldTest, AttributeLeasesNeverConflictWhateverTheOrder) {
  const std::vector<Wish> wishes{{Shared, kUnit}, {Update, kUnit}, {Exclusive, kUnit}};
  EXPECT_GT(try_all(Resource::Attributes, wishes, 6), 50'000u);
}

}  // namespace
}  // namespace vremote::coherence
