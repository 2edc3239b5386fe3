#include "coherence/patience.h"

#include <gtest/gtest.h>

#include <optional>

namespace vremote::coherence {
namespace {

constexpr int64_t kSecond = 1'000'000'000;
const NodeId kNode{3};
const FileId kFile{.export_index = 0, .generation = 1, .inode = 7};

// Judges every 250 ms, as a driver does.
class PatienceTest : public testing::Test {
 protected:
  struct Seen {
    int warnings = 0, silenced = 0, fences = 0;
    int64_t silenced_after_ns = 0, fenced_after_ns = 0;
  };
  Seen waits(int64_t seconds, const std::vector<Patience::Blocker>& blockers, bool heard) {
    Seen seen;
    const Instant begin = now_;
    while (now_ < begin + seconds * kSecond) {
      now_.ns += kSecond / 4;
      if (heard && !deaf_) heard_ = now_;
      for (const auto& v :
           patience_.judge(now_, blockers, [this](NodeId) { return std::optional(heard_); })) {
        if (!v.fence && !v.silence) ++seen.warnings;
        if (v.silence && seen.silenced++ == 0) seen.silenced_after_ns = now_ - begin;
        deaf_ = deaf_ || v.silence;
        if (v.fence && seen.fences++ == 0) seen.fenced_after_ns = now_ - begin;
      }
    }
    return seen;
  }

  // Six seconds at work and two stopped, in turn, until `what` has come: after how long.
  int64_t stumbles_until(int Seen::*what, bool heard) {
    const Patience::Blocker recall{.recall = 9, .node = kNode, .file = kFile};
    const Instant begin = now_;
    int seen = 0;
    while (seen == 0 && now_ - begin < 1000 * kSecond) {
      seen += waits(6, {recall}, heard).*what;
      now_.ns += 2 * kSecond;
    }
    return now_ - begin;
  }

  Instant now_{100 * kSecond};
  Instant heard_{100 * kSecond};
  bool deaf_ = false;  // as it was told to be
  Patience patience_{{}};
};

TEST_F(PatienceTest, ASilentNodeKeepsWhatNobodyNeeds) {
  const Seen seen = waits(3600, {}, false);
  EXPECT_EQ(seen.fences, 0);
  EXPECT_TRUE(patience_.expired(now_, heard_));
}

TEST_F(PatienceTest, ASilentNodeIsFencedAfterTheTermAndNotBefore) {
  const Seen seen = waits(20, {{.recall = 9, .node = kNode, .file = kFile}}, false);
  EXPECT_GT(seen.fences, 0);
  EXPECT_GT(seen.fenced_after_ns, 10 * kSecond);
  EXPECT_LT(seen.fenced_after_ns, 11 * kSecond);
}

TEST_F(PatienceTest, ALockOfANodeThatIsHeardMayLast) {
  const Seen seen = waits(3600, {{.recall = 0, .node = kNode, .file = kFile}}, true);
  EXPECT_EQ(seen.fences, 0);
  EXPECT_EQ(seen.warnings, 0);
}

TEST_F(PatienceTest, ALockOfASilentNodeDoesNotOutlastTheTerm) {
  const Seen seen = waits(20, {{.recall = 0, .node = kNode, .file = kFile}}, false);
  EXPECT_GT(seen.fences, 0);
}

TEST_F(PatienceTest, ARecallThatIsNotAnsweredIsReportedOnceThenItsNodeIsHeardNoMore) {
  const Patience::Blocker recall{.recall = 9, .node = kNode, .file = kFile};
  Seen seen = waits(59, {recall}, true);
  EXPECT_EQ(seen.warnings, 1);
  EXPECT_EQ(seen.silenced, 0);
  seen = waits(3, {recall}, true);
  EXPECT_EQ(seen.silenced, 1);
  EXPECT_EQ(seen.fences, 0) << "its leases are good still";
}

TEST_F(PatienceTest, ASilencedNodeIsFencedWhenItsLeasesAreOver) {
  const Patience::Blocker recall{.recall = 9, .node = kNode, .file = kFile};
  const Seen seen = waits(75, {recall}, true);
  EXPECT_EQ(seen.silenced, 1);
  EXPECT_GT(seen.fenced_after_ns, seen.silenced_after_ns + 10 * kSecond);
  EXPECT_LT(seen.fenced_after_ns, seen.silenced_after_ns + 11 * kSecond);
}

TEST_F(PatienceTest, ASilencedNodeIsFencedAlsoWhenNobodyWaitsAnyMore) {
  EXPECT_EQ(waits(62, {{.recall = 9, .node = kNode, .file = kFile}}, true).silenced, 1);
  EXPECT_EQ(waits(20, {}, true).fences, 1);
}

// Its kernel goes on showing what it has, and what it has written is nowhere else.
TEST_F(PatienceTest, ANodeThatIsGivenUpIsFencedWhenItsLeasesAreOverAndNotBefore) {
  EXPECT_EQ(waits(5, {}, true).fences, 0);
  patience_.give_up(kNode, now_, "it breaks the protocol");
  deaf_ = true;
  const Seen seen = waits(20, {}, true);
  EXPECT_EQ(seen.fences, 1);
  EXPECT_GT(seen.fenced_after_ns, 10 * kSecond);
  EXPECT_LT(seen.fenced_after_ns, 11 * kSecond);
}

TEST_F(PatienceTest, ANodeThatFlushesIsWaitedFor) {
  const Patience::Blocker recall{.recall = 9, .node = kNode, .file = kFile};
  for (int i = 0; i < 10; ++i) {
    EXPECT_EQ(waits(30, {recall}, true).silenced, 0);
    patience_.progress(kNode, kFile, now_);
  }
}

TEST_F(PatienceTest, AnotherRecallHasItsOwnTime) {
  EXPECT_EQ(waits(50, {{.recall = 9, .node = kNode, .file = kFile}}, true).silenced, 0);
  EXPECT_EQ(waits(50, {{.recall = 10, .node = kNode, .file = kFile}}, true).silenced, 0);
}

TEST_F(PatienceTest, AHomeThatWasStoppedHearsItsNodesFirst) {
  const Patience::Blocker recall{.recall = 9, .node = kNode, .file = kFile};
  EXPECT_EQ(waits(1, {recall}, true).fences, 0);
  now_.ns += 3600 * kSecond;  // nothing was heard, because nobody listened
  EXPECT_EQ(waits(9, {recall}, false).fences, 0);
  EXPECT_GT(waits(3, {recall}, false).fences, 0);
}

// It could not hear them for a while, but for most of the time it could.
TEST_F(PatienceTest, AHomeThatIsStoppedAgainAndAgainFencesNevertheless) {
  const int64_t took = stumbles_until(&Seen::fences, false);
  EXPECT_GT(took, 10 * kSecond);
  EXPECT_LT(took, 20 * kSecond);
}

TEST_F(PatienceTest, AHomeThatHardlyGetsToRunFencesInTheEnd) {
  const Patience::Blocker recall{.recall = 9, .node = kNode, .file = kFile};
  const auto heard = [this](NodeId) { return std::optional(heard_); };
  int judged = 0;
  for (; judged < 1000; ++judged) {
    now_.ns += 2 * kSecond;
    if (!patience_.judge(now_, {recall}, heard).empty()) break;
  }
  EXPECT_GT(judged, 10);
  EXPECT_LT(judged, 30);
}

// The stop was nobody's silence, also if one is heard of as it ends and then no more.
TEST_F(PatienceTest, WhoIsHeardAsAStopEndsHasTheWholeTerm) {
  const Patience::Blocker recall{.recall = 9, .node = kNode, .file = kFile};
  EXPECT_EQ(waits(1, {recall}, true).fences, 0);
  now_.ns += 60 * kSecond;
  heard_ = now_;
  const Seen seen = waits(20, {recall}, false);
  EXPECT_GT(seen.fenced_after_ns, 10 * kSecond);
  EXPECT_LT(seen.fenced_after_ns, 11 * kSecond);
}

TEST_F(PatienceTest, ARecallsDeadlineComesAlsoForAHomeThatIsStoppedAgainAndAgain) {
  const int64_t took = stumbles_until(&Seen::silenced, true);
  EXPECT_GT(took, 60 * kSecond);
  EXPECT_LT(took, 90 * kSecond);
}

TEST_F(PatienceTest, ANodeWithoutASessionIsNotFenced) {
  for (int i = 0; i < 100; ++i) {
    now_.ns += kSecond / 4;
    EXPECT_TRUE(patience_
                    .judge(now_, {{.recall = 9, .node = kNode, .file = kFile}},
                           [](NodeId) { return std::nullopt; })
                    .empty());
  }
}

// A reader that never says that it has seen how a file grew, the writer that waits for that, and
// whoever wants the writer's lease.
TEST_F(PatienceTest, WhoWaitsForAnotherIsNotPutOutWithIt) {
  const Patience::Blocker show{.recall = 9, .node = kNode, .file = kFile};
  const Patience::Blocker recall{.recall = 10, .node = NodeId{4}, .file = kFile, .behind = {9}};
  std::vector<NodeId> silenced;
  const auto judge = [&](int64_t seconds, const std::vector<Patience::Blocker>& blockers) {
    for (const Instant end = now_ + seconds * kSecond; now_ < end;) {
      now_.ns += kSecond / 4;
      for (const auto& v :
           patience_.judge(now_, blockers, [this](NodeId) { return std::optional(now_); }))
        if (v.silence) silenced.push_back(v.node);
    }
  };
  judge(70, {show, recall});  // fenced then
  EXPECT_EQ(silenced, std::vector{kNode});
  judge(57, {recall});
  EXPECT_EQ(silenced, std::vector{kNode}) << "it has its own time now";
  judge(4, {recall});
  EXPECT_EQ(silenced, (std::vector{kNode, NodeId{4}}));
}

// Two who work together: one asks again and again for what the other answers just in time.
TEST_F(PatienceTest, WhoWaitsForOthersAgainAndAgainIsPutOutInTheEnd) {
  int silenced = 0, seconds = 0;
  for (uint64_t other = 11; silenced == 0 && seconds < 3600; ++other, seconds += 50)
    silenced += waits(50,
                      {{.recall = 10, .node = kNode, .file = kFile, .behind = {other}},
                       {.recall = other, .node = NodeId{4}, .file = kFile}},
                      true)
                    .silenced;
  EXPECT_EQ(silenced, 1);
  EXPECT_GE(seconds, 120) << "one of them that is put out is waited for";
  EXPECT_LE(seconds, 200);
}

TEST_F(PatienceTest, WhoCannotAnswerForTheHomesOwnSakeIsNotPutOut) {
  Patience::Blocker recall{.recall = 9, .node = kNode, .file = kFile};
  Seen seen = waits(57, {recall}, true);
  EXPECT_EQ(seen.silenced, 0);
  recall.held_here = true;
  seen = waits(3600, {recall}, true);
  EXPECT_EQ(seen.silenced, 0);
  recall.held_here = false;
  seen = waits(2, {recall}, true);
  EXPECT_EQ(seen.silenced, 0);
  seen = waits(3, {recall}, true);
  EXPECT_EQ(seen.silenced, 1) << "its time goes on where it stood";
}

TEST_F(PatienceTest, OrdinaryWaitsOfOthersExcuseNobody) {
  int silenced = 0;
  for (uint64_t other = 11; other < 11 + 300; ++other)  // each for a quarter of a second
    silenced += waits(1,
                      {{.recall = 10, .node = kNode, .file = kFile, .behind = {other}},
                       {.recall = other, .node = NodeId{4}, .file = kFile}},
                      true)
                    .silenced;
  EXPECT_EQ(silenced, 1);
}

}  // namespace
}  // namespace vremote::coherence
