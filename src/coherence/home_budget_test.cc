#include <gtest/gtest.h>

#include <algorithm>
#include <cerrno>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <vector>

#include "coherence/home.h"
#include "coherence/test_text.h"

namespace vremote::coherence {
namespace {

using test::pages;
using enum LeaseMode;

constexpr NodeId kHonest{1}, kHostile{2}, kOther{3};

// A home whose nodes ack what is recalled from them, or do not.
class BudgetWorld {
 public:
  explicit BudgetWorld(const HomeLimits& limits) : home({}, limits) {}

  static FileId file(uint64_t n) { return {.export_index = 0, .generation = 1, .inode = n}; }

  uint64_t asks(NodeId node, uint64_t file_number, Resource resource, LeaseMode mode,
                PageRange range = kUnit) {
    const uint64_t request = next_request_++;
    home.receive(node,
                 LeaseRequest{.file = file(file_number),
                              .request = request,
                              .resource = resource,
                              .mode = mode,
                              .range = range},
                 actions_);
    took();
    return request;
  }
  // All, or those of one file.
  void acks(NodeId node, std::optional<uint64_t> file_number = {}) {
    auto& recalls = recalls_[node];
    for (;;) {
      const auto next = std::ranges::find_if(recalls, [&](const Recall& recall) {
        return !file_number || recall.file == file(*file_number);
      });
      if (next == recalls.end()) return;
      const Recall recall = *next;
      recalls.erase(next);
      home.receive(node,
                   RecallAck{.file = recall.file,
                             .recall = recall.recall,
                             .given = recall.range,
                             .seen = seen_[{node, recall.file}],
                             .in_use = open_.contains({node, recall.file}),
                             .watches = open_.contains({node, recall.file})},
                   actions_);
      took();
    }
  }
  void goes(NodeId node) {
    home.node_gone(node, actions_);
    recalls_.erase(node);
    took();
  }
  bool opened(NodeId node, uint64_t file_number) {
    const bool noted = home.opened(node, file(file_number), actions_);
    took();
    return noted;
  }
  void says_open(NodeId node, uint64_t file_number) { open_.insert({node, file(file_number)}); }

  bool granted(uint64_t request) const {
    return results_.contains(request) && results_.at(request) == 0;
  }
  int32_t refused(uint64_t request) const {
    return results_.contains(request) ? results_.at(request) : 0;
  }
  size_t recalled(NodeId node) const {
    const auto it = recalls_.find(node);
    return it == recalls_.end() ? 0 : it->second.size();
  }
  const std::deque<Recall>& recalls_of(NodeId node) { return recalls_[node]; }
  size_t closed() const { return closed_; }
  size_t pinned() const { return pinned_; }

  Home home;

 private:
  void took() {
    for (const HomeAction& action : actions_) {
      if (const auto* grant = std::get_if<SendGrant>(&action)) {
        uint64_t& seen = seen_[{grant->node, grant->grant.file}];
        EXPECT_GT(grant->grant.sequence, seen) << "a number that was used before";
        seen = grant->grant.sequence;
        results_[grant->grant.request] = grant->grant.error;
      }
      if (const auto* recall = std::get_if<SendRecall>(&action))
        recalls_[recall->node].push_back(recall->recall);
      if (std::holds_alternative<CloseSession>(action)) ++closed_;
      if (std::holds_alternative<PinFile>(action)) ++pinned_;
      if (std::holds_alternative<UnpinFile>(action)) --pinned_;
    }
    actions_.clear();
    if (++steps_ % 97 == 0) home.check();
  }

  HomeActions actions_;
  std::map<NodeId, std::deque<Recall>> recalls_;
  std::map<std::pair<NodeId, FileId>, uint64_t> seen_;
  std::set<std::pair<NodeId, FileId>> open_;
  std::map<uint64_t, int32_t> results_;
  uint64_t next_request_ = 1;
  size_t steps_ = 0, closed_ = 0, pinned_ = 0;
};

HomeLimits few() {
  return {.requests_of_node = 50, .leases = {.of_node = 100, .in_all = 200, .at_once = 16}};
}

// M1: an honest node with far more files than it may have leases.
TEST(HomeBudgetTest, ANodeThatGivesBackGetsEverythingItAsksFor) {
  BudgetWorld w(few());
  for (uint64_t n = 1; n <= 3000; ++n) {
    const uint64_t attributes = w.asks(kHonest, n, Resource::Attributes, Shared);
    const uint64_t data = w.asks(kHonest, n, Resource::Data, Shared, pages(0, 0));
    EXPECT_TRUE(w.granted(attributes) && w.granted(data)) << n;
    w.acks(kHonest);
    ASSERT_LE(w.home.counts().leases, 101u);
  }
  EXPECT_LE(w.home.counts().files, 60u) << "what was given back is forgotten";
  EXPECT_GT(w.home.counts().taken_back, 5000u);
  w.home.check();
}

TEST(HomeBudgetTest, WhatWasGrantedLeastRecentlyGoesFirst) {
  BudgetWorld w({.leases = {.of_node = 4, .in_all = 100}});
  for (uint64_t n = 1; n <= 4; ++n) w.asks(kHonest, n, Resource::Data, Shared, pages(0, 0));
  w.asks(kHonest, 1, Resource::Attributes, Shared);
  ASSERT_EQ(w.recalled(kHonest), 1u);
  EXPECT_EQ(w.recalls_of(kHonest).front().file, BudgetWorld::file(2));
  EXPECT_EQ(w.recalls_of(kHonest).front().to, None);
}

// A file in as many pieces as a hostile node likes.
TEST(HomeBudgetTest, OneFileInManyRangesIsTakenBackInParts) {
  BudgetWorld w(few());
  w.asks(kOther, 7, Resource::Data, Shared, pages(0, 0));
  w.acks(kOther);
  for (uint64_t page = 1; page < 2000; page += 2) {
    // Nobody gets more than he asks for: another has all of it.
    EXPECT_TRUE(w.granted(w.asks(kOther, 7, Resource::Data, Shared, pages(page, page))));
    w.asks(kHonest, 7, Resource::Data, Exclusive, pages(page, page));
    w.acks(kOther);
    w.acks(kHonest);
    ASSERT_LE(w.home.counts().leases, 240u);
  }
  w.home.check();
}

// M3.
TEST(HomeBudgetTest, ANodeThatGivesNothingBackGetsNothingMoreAndHarmsNobody) {
  BudgetWorld w(few());
  for (uint64_t n = 1; n <= 2000; ++n) w.asks(kHostile, n, Resource::Attributes, Exclusive);
  EXPECT_LE(w.home.counts().leases, 126u);
  EXPECT_LE(w.home.counts().waiting, 50u);
  EXPECT_LE(w.home.counts().files, 130u) << "nothing is kept of what was refused";
  EXPECT_EQ(w.refused(2000), ENOBUFS);
  for (uint64_t n = 3001; n <= 3070; ++n)
    EXPECT_TRUE(w.granted(w.asks(kHonest, n, Resource::Attributes, Exclusive)));
  EXPECT_EQ(w.recalled(kHonest), 0u) << "who has few keeps them";
  w.home.check();
  w.goes(kHostile);
  EXPECT_EQ(w.home.counts().leases, 70u);
  EXPECT_EQ(w.home.counts().waiting, 0u);
  w.home.check();
}

TEST(HomeBudgetTest, WhatWaitedIsGrantedWhenEnoughHasComeBack) {
  BudgetWorld w(few());
  std::vector<uint64_t> asked;
  for (uint64_t n = 1; n <= 140; ++n)
    asked.push_back(w.asks(kHonest, n, Resource::Attributes, Exclusive));
  EXPECT_FALSE(w.granted(asked.back()));
  w.acks(kHonest);
  for (uint64_t request : asked) EXPECT_TRUE(w.granted(request));
  EXPECT_EQ(w.home.counts().waiting, 0u);
  w.home.check();
}

// One that has the Attributes keeps them until it has its pages: in the midst of an append.
TEST(HomeBudgetTest, PagesOfAFileWhoseAttributesItHasWaitForNothingElse) {
  BudgetWorld w(few());
  for (uint64_t n = 1; n <= 140; ++n) w.asks(kHostile, n, Resource::Attributes, Exclusive);
  EXPECT_TRUE(w.granted(w.asks(kHostile, 120, Resource::Data, Exclusive, pages(0, 0))));
  EXPECT_FALSE(w.granted(w.asks(kHostile, 2000, Resource::Data, Exclusive, pages(0, 0))));
  // And yet not for ever.
  w.asks(kOther, 120, Resource::Data, Shared, pages(0, 0));
  uint64_t last = 0;
  for (uint64_t page = 10; page < 2000; page += 2) {
    w.asks(kOther, 120, Resource::Data, Exclusive, pages(page + 1, page + 1));
    w.acks(kHostile, 120);
    last = w.asks(kHostile, 120, Resource::Data, Exclusive, pages(page, page));
    w.acks(kOther);
    if (w.refused(last) != 0) break;
  }
  EXPECT_EQ(w.refused(last), EAGAIN);
  EXPECT_LE(w.home.counts().leases, 400u);
  w.home.check();
}

// M2.
TEST(HomeBudgetTest, WhenAllTogetherHaveTooManyTheOneWithTheMostGivesBack) {
  BudgetWorld w({.leases = {.of_node = 100, .in_all = 120}});
  for (uint64_t n = 1; n <= 20; ++n) w.asks(kHonest, n, Resource::Attributes, Exclusive);
  for (uint64_t n = 101; n <= 200; ++n) w.asks(kHostile, n, Resource::Attributes, Exclusive);
  EXPECT_EQ(w.recalled(kHostile), 0u);
  for (uint64_t n = 21; n <= 30; ++n) w.asks(kHonest, n, Resource::Attributes, Exclusive);
  EXPECT_EQ(w.recalled(kHostile), 10u);
  EXPECT_EQ(w.recalled(kHonest), 0u);
  w.acks(kHostile);
  EXPECT_EQ(w.home.counts().leases, 120u);
  w.home.check();
}

TEST(HomeBudgetTest, NobodyIsOfferedAnythingBeforeHeHasGivenBackWhatIsTooMuch) {
  BudgetWorld w(few());
  for (uint64_t n = 1; n <= 140; ++n) w.asks(kHostile, n, Resource::Attributes, Exclusive);
  const uint64_t before = w.home.counts().leases;
  HomeActions actions;
  for (uint64_t n = 1000; n < 2000; ++n)
    w.home.offer(kHostile, BudgetWorld::file(n), Resource::Attributes, Shared, actions);
  EXPECT_EQ(w.home.counts().leases, before);
  EXPECT_TRUE(actions.empty());
}

// I5: a file that was forgotten and comes again goes on with its numbers.
TEST(HomeBudgetTest, WhatIsStillUnderWayFromBeforeMeansNoGrantOfNow) {
  BudgetWorld w({.leases = {.of_node = 1, .in_all = 100}});
  w.asks(kHonest, 1, Resource::Attributes, Shared);
  w.asks(kHonest, 2, Resource::Attributes, Shared);
  w.acks(kHonest);
  EXPECT_EQ(w.home.counts().files, 1u);
  w.asks(kHonest, 1, Resource::Attributes, Shared);
  HomeActions actions;
  w.home.receive(kHonest, Release{.file = BudgetWorld::file(1), .seen = 1}, actions);
  EXPECT_EQ(w.home.held(kHonest, BudgetWorld::file(1), Resource::Attributes, 0), Shared);
  w.home.check();
}

// ---- open files

TEST(HomeBudgetTest, ANodeHasNoMoreFilesOpenThanItMay) {
  BudgetWorld w({.opens_of_node = 10, .opens_in_all = 15});
  for (uint64_t n = 1; n <= 10; ++n) EXPECT_TRUE(w.opened(kHostile, n));
  EXPECT_TRUE(w.opened(kHostile, 10)) << "it was noted";
  EXPECT_FALSE(w.opened(kHostile, 11));
  EXPECT_FALSE(w.home.may_open(kHostile));
  for (uint64_t n = 1; n <= 5; ++n) EXPECT_TRUE(w.opened(kOther, n));
  EXPECT_FALSE(w.opened(kHonest, 1)) << "all have too many";
  EXPECT_EQ(w.pinned(), 10u);
  EXPECT_EQ(w.home.counts().open, 15u);
  EXPECT_EQ(w.home.counts().opens_refused, 2u);
  w.goes(kHostile);
  EXPECT_TRUE(w.opened(kHonest, 1));
  EXPECT_EQ(w.home.counts().open, 6u);
  EXPECT_EQ(w.home.counts().files, 5u);
  w.home.check();
}

// In the acks that a hostile node sends for what others make the home recall.
TEST(HomeBudgetTest, NorByItsAcks) {
  BudgetWorld w({.opens_of_node = 10});
  for (uint64_t n = 1; n <= 100; ++n) {
    w.asks(kHostile, n, Resource::Attributes, Exclusive);
    w.says_open(kHostile, n);
    w.asks(kHonest, n, Resource::Attributes, Exclusive);
    w.acks(kHostile);
  }
  EXPECT_EQ(w.pinned(), 10u);
  EXPECT_EQ(w.home.counts().opens_refused, 90u);
  EXPECT_EQ(w.closed(), 0u);
  w.home.check();
}

// K16: else its mappings would get SIGBUS where others have made its files longer.
TEST(HomeBudgetTest, WhoHasTooManyOpenIsShownHowTheyGrow) {
  BudgetWorld w({.opens_of_node = 10});
  const auto watched = [&](uint64_t n) { return w.home.watched(BudgetWorld::file(n), kOther); };
  for (uint64_t n = 1; n <= 10; ++n) EXPECT_TRUE(w.opened(kHonest, n));
  EXPECT_FALSE(w.opened(kHonest, 11));
  EXPECT_TRUE(watched(11));
  w.asks(kHonest, 12, Resource::Attributes, Exclusive);
  w.says_open(kHonest, 12);
  w.asks(kOther, 12, Resource::Attributes, Exclusive);
  w.acks(kHonest);
  EXPECT_TRUE(watched(12)) << "it said so in an ack";
  EXPECT_EQ(w.pinned(), 10u);
  EXPECT_FALSE(watched(13));
  for (uint64_t n : {11u, 12u}) {
    HomeActions none;
    w.home.receive(kHonest, Release{.file = BudgetWorld::file(n), .seen = 0, .leases = false},
                   none);
    EXPECT_FALSE(watched(n)) << "it has closed it";
  }
  w.home.check();
}

TEST(HomeBudgetTest, WhoWatchesMoreThanTheHomeCanKeepWatchesAll) {
  BudgetWorld w({.leases = {.of_node = 10, .in_all = 15}, .opens_of_node = 5});
  const auto watched = [&](uint64_t n, NodeId except = kOther) {
    return w.home.watched(BudgetWorld::file(n), except);
  };
  for (uint64_t n = 1; n <= 10; ++n) w.opened(kHostile, n);
  EXPECT_FALSE(watched(1000));
  EXPECT_EQ(w.home.counts().watches, 10u);
  w.opened(kHostile, 11);
  EXPECT_TRUE(watched(1) && watched(11) && watched(1000));
  EXPECT_FALSE(watched(1000, kHostile)) << "it need not be told of itself";
  for (uint64_t n = 12; n <= 1000; ++n) w.opened(kHostile, n);
  EXPECT_EQ(w.home.counts().watches, 0u) << "nothing is kept for each file";
  w.goes(kHostile);
  EXPECT_FALSE(watched(1) || watched(1000));
  w.home.check();
}

}  // namespace
}  // namespace vremote::coherence
