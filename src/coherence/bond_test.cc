#include "coherence/bond.h"

#include <gtest/gtest.h>

namespace vremote::coherence {
namespace {

constexpr int64_t kTerm = 10'000;

Bond::Session session(uint32_t generation, uint64_t incarnation = 1, bool may_reclaim = false) {
  return {.generation = generation,
          .home_incarnation = incarnation,
          .may_reclaim = may_reclaim,
          .term_ns = kTerm};
}

TEST(BondTest, LeasesAreGoodForSevenTenthsOfTheTermFromTheSending) {
  Bond bond;
  EXPECT_FALSE(bond.connected(session(1)));
  bond.begun();
  EXPECT_EQ(bond.renewed(1, Instant{500}, Instant{900}), Instant{7500});
}

TEST(BondTest, NothingIsRenewedWhileALaneWasNeverAnswered) {
  Bond bond;
  bond.connected(session(1));
  bond.begun();
  EXPECT_FALSE(bond.renewed(1, Instant{}, Instant{900}));
}

TEST(BondTest, AnAnswerOfTheNextSessionRenewsNothingBeforeTheAgentIsReset) {
  Bond bond;
  bond.connected(session(1));
  bond.begun();
  bond.broken();
  EXPECT_FALSE(bond.renewed(1, Instant{500}, Instant{900}));
  EXPECT_EQ(bond.connected(session(2)), Agent::Dirty::Fenced);
  EXPECT_FALSE(bond.renewed(2, Instant{600}, Instant{900}));
  bond.begun();
  EXPECT_TRUE(bond.renewed(2, Instant{600}, Instant{900}));
  EXPECT_FALSE(bond.renewed(1, Instant{700}, Instant{900}));
}

TEST(BondTest, ASessionThatGoesOnResetsNothing) {
  Bond bond;
  bond.connected(session(1));
  bond.begun();
  EXPECT_FALSE(bond.connected(session(1)));
}

TEST(BondTest, OnlyAHomeThatHasRestartedAndKnowsUsTakesBytesBack) {
  for (const bool restarted : {false, true}) {
    for (const bool may_reclaim : {false, true}) {
      Bond bond;
      bond.connected(session(1));
      bond.begun();
      bond.broken();
      const bool kept = restarted && may_reclaim;
      EXPECT_EQ(bond.connected(session(2, restarted ? 2 : 1, may_reclaim)),
                kept ? Agent::Dirty::Kept : Agent::Dirty::Fenced);
      EXPECT_EQ(bond.bringing_back(), kept);
    }
  }
}

TEST(BondTest, ADiskThatBeganAnotherLifeHasLostWhatWasNotSynced) {
  const auto with = [](Bond::Session session, uint64_t disk_life) {
    session.disk_life = disk_life;
    return session;
  };
  Bond bond;
  bond.connected(with(session(1), 7));
  EXPECT_FALSE(bond.disk_has_lost());
  bond.broken();
  bond.connected(with(session(2, 2), 7));
  EXPECT_FALSE(bond.disk_has_lost()) << "the daemon was started again";
  bond.broken();
  bond.connected(with(session(3, 3), 0));
  EXPECT_FALSE(bond.disk_has_lost()) << "an older home does not tell";
  bond.broken();
  Bond next;
  next.take_over(bond.kept());
  next.connected(with(session(4, 4), 8));
  EXPECT_TRUE(next.disk_has_lost());
  next.broken();
  next.connected(with(session(5, 5), 8));
  EXPECT_FALSE(next.disk_has_lost());
}

}  // namespace
}  // namespace vremote::coherence
