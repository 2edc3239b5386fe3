// Every order of events of a small world, up to a depth: two agents, the queues between them and
// the home, and one operation.
//
// The agents here do what the protocol allows and no more: they believe the grants that have
// reached them, ack recalls in order, narrowly or as widely as they can. Grants, recalls, acks and
// requests wait in queues, so that every crossing of them is tried. Not covered: flushes (they pass
// through), more than two nodes, releases that cross grants (HomeTest), reset sessions.
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
constexpr uint64_t kPages =
    3;  // looked at: two that are asked for, and one that only wide grants reach

struct Wish {
  LeaseMode mode;
  PageRange range;
};

class SmallWorld {
 public:
  SmallWorld(Resource resource, const std::vector<Wish>& wishes, Mistakes mistakes)
      : resource_(resource), wishes_(wishes), home_(mistakes) {}

  // Steps are numbered; a step that is not possible now returns false.
  size_t steps() const { return 2 * (wishes_.size() + 3) + 2; }
  bool step(size_t number) {
    if (number >= 2 * (wishes_.size() + 3))
      return operation_step(number - 2 * (wishes_.size() + 3));
    const size_t node = number % 2, what = number / 2;
    Side& side = sides_[node];
    if (what < wishes_.size()) {
      if (side.asked - side.granted >= 2) return false;
      ++side.asked;
      side.up.push_back(LeaseRequest{.file = kFile,
                                     .request = side.asked,
                                     .resource = resource_,
                                     .mode = wishes_[what].mode,
                                     .range = wishes_[what].range});
      return true;
    }
    switch (what - wishes_.size()) {
      case 0:
        return home_takes(node);
      case 1:
        return agent_takes(node, false);
      default:
        return !side.down.empty() && std::holds_alternative<Recall>(side.down.front()) &&
               agent_takes(node, true);
    }
  }

  // Carries on until nothing moves: whoever asked must have been granted (nothing is lost, nothing
  // waits in a circle).
  void drain() {
    for (bool moved = true; moved;) {
      moved = false;
      for (size_t node : {0, 1}) {
        while (home_takes(node)) moved = true;
        while (agent_takes(node, false)) moved = true;
      }
      if (operation_ == Operation::Holding) moved = operation_step(1) || moved;
    }
    for (const Side& side : sides_)
      if (side.granted != side.asked) violation_ = "a request was never granted";
    if (operation_ == Operation::Waiting) violation_ = "the operation was never let in";
  }
  const std::string& violation() const { return violation_; }

 private:
  struct Side {
    std::deque<std::variant<LeaseRequest, RecallAck>> up;
    std::deque<ToAgent> down;
    LeaseMap leases;        // of Data
    LeaseMode unit = None;  // of Attributes
    uint64_t seen = 0;
    uint64_t asked = 0, granted = 0;
  };
  enum class Operation { None, Waiting, Holding };

  bool home_takes(size_t node) {
    Side& side = sides_[node];
    if (side.up.empty()) return false;
    auto message = std::move(side.up.front());
    side.up.pop_front();
    std::visit(
        [&](const auto& m) { home_.receive(NodeId{static_cast<uint32_t>(node)}, m, actions_); },
        message);
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
      if (resource_ == Resource::Data) {
        side.leases.raise(grant->range, grant->mode);
      } else if (!covers(side.unit, grant->mode)) {
        side.unit = side.unit == None ? grant->mode
                                      : Exclusive;  // Shared and Update together are both rights
      }
    } else if (const auto* recall = std::get_if<Recall>(&message)) {
      const PageRange given =
          wide && resource_ == Resource::Data ? PageRange::all() : recall->range;
      if (resource_ == Resource::Attributes) {
        if (recall->to == None || side.unit != None) side.unit = recall->to;
      } else {
        side.leases.reduce(given, recall->to);
      }
      side.up.push_back(
          RecallAck{.file = kFile, .recall = recall->recall, .given = given, .seen = side.seen});
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
      if (auto* grant = std::get_if<SendGrant>(&action))
        sides_[grant->node.value].down.push_back(std::move(grant->grant));
      if (auto* recall = std::get_if<SendRecall>(&action))
        sides_[recall->node.value].down.push_back(recall->recall);
      if (std::holds_alternative<OperationReady>(action)) operation_ = Operation::Holding;
      if (const auto* close = std::get_if<CloseSession>(&action)) violation_ = close->reason;
    }
    actions_.clear();
    home_.check();
    check();
  }

  LeaseMode mode_at(const Side& side, uint64_t page) const {
    return resource_ == Resource::Attributes ? side.unit : side.leases.at(page);
  }

  void check() {
    for (uint64_t page = 0; page < (resource_ == Resource::Data ? kPages : 1); ++page) {
      const LeaseMode a = mode_at(sides_[0], page), b = mode_at(sides_[1], page);
      if (!compatible(a, b))
        violation_ = fmt::format("I1: {} beside {} on page {}", test::text(a), test::text(b), page);
      for (uint32_t node : {0, 1}) {
        const LeaseMode known = home_.held(NodeId{node}, kFile, resource_, page);
        const LeaseMode has = mode_at(sides_[node], page);
        if (!covers(known, has))
          violation_ = fmt::format("I5: n{} has {}, the home knows {}", node, test::text(has),
                                   test::text(known));
        if (page == 0 && operation_ == Operation::Holding && has != None)
          violation_ = "I1: a lease beside the operation";
      }
    }
  }

  const Resource resource_;
  const std::vector<Wish>& wishes_;
  Home home_;
  HomeActions actions_;
  std::array<Side, 2> sides_;
  Operation operation_ = Operation::None;
  std::string violation_;  // the last one found
};

struct Tried {
  uint64_t sequences = 0;
  std::string violation;  // with the steps that lead to it; empty: none
};

// Tries every sequence of `depth` possible steps, until one shows a violation; each is run from the
// start, because a Home cannot be copied.
Tried try_all(Resource resource, const std::vector<Wish>& wishes, size_t depth,
              Mistakes mistakes = {}) {
  Tried tried;
  std::vector<size_t> path(depth, 0);
  const size_t steps = SmallWorld(resource, wishes, mistakes).steps();
  for (;;) {
    SmallWorld world(resource, wishes, mistakes);
    size_t failed_at = depth;  // the first step that was not possible
    for (size_t i = 0; i < depth && failed_at == depth; ++i)
      if (!world.step(path[i])) failed_at = i;
    if (failed_at == depth) {
      ++tried.sequences;
      world.drain();
    }
    if (!world.violation().empty()) {
      tried.violation = world.violation() + " after steps";
      for (size_t step : path) tried.violation += fmt::format(" {}", step);
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

const std::vector<Wish> kDataWishes{
    {Shared, pages(0, 0)}, {Exclusive, pages(0, 1)}, {Exclusive, pages(1, 1)}};
const std::vector<Wish> kAttributesWishes{{Shared, kUnit}, {Update, kUnit}, {Exclusive, kUnit}};

TEST(HomeSmallWorldTest, DataLeasesNeverConflictWhateverTheOrder) {
  const Tried tried = try_all(Resource::Data, kDataWishes, 6);
  EXPECT_EQ(tried.violation, "");
  EXPECT_GT(tried.sequences, 50'000u);
}

TEST(HomeSmallWorldTest, AttributeLeasesNeverConflictWhateverTheOrder) {
  const Tried tried = try_all(Resource::Attributes, kAttributesWishes, 6);
  EXPECT_EQ(tried.violation, "");
  EXPECT_GT(tried.sequences, 50'000u);
}

TEST(HomeSmallWorldTest, GrantingBeforeTheAcksIsNoticed) {
  Mistakes mistakes;
  mistakes.add(Mistake::GrantBeforeAcks);
  EXPECT_NE(try_all(Resource::Data, kDataWishes, 7, mistakes).violation, "");
}

}  // namespace
}  // namespace vremote::coherence
