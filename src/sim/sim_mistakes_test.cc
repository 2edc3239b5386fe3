// With one rule switched off the checkers notice: each mistake is found in some world of the first
// few thousand.
#include <gtest/gtest.h>

#include "sim/runner.h"

namespace vremote::sim {
namespace {

class EachMistake : public testing::TestWithParam<std::string> {};

TEST_P(EachMistake, IsFound) {
  Breaks breaks;
  ASSERT_TRUE(add_break(GetParam(), breaks));
  constexpr uint64_t kAtOnce = 200, kMost = 12000;
  for (uint64_t first = 1; first <= kMost; first += kAtOnce) {
    if (const Summary summary = run_seeds({first, kAtOnce}, breaks, 1, false, world_of(GetParam()));
        summary.finding) {
      // The world must be about the mistake.
      const Summary without =
          run_seeds({summary.finding->seed, 1}, {}, 1, false, world_of(GetParam()));
      ASSERT_FALSE(without.finding) << without.finding->what;
      RecordProperty("seed", std::to_string(summary.finding->seed));
      SUCCEED() << "seed " << summary.finding->seed << ": " << summary.finding->what;
      return;
    }
  }
  FAIL() << "no world in " << kMost << " noticed " << GetParam();
}

std::vector<std::string> findable() {
  std::vector<std::string> names = break_names();
  std::erase(names, "no-residency");  // costs progress, not coherence: see below
  // One world in 40,000 notices: HomeTest.WithoutB4ATruncatedSizeIsSeenElsewhereFirst instead.
  std::erase(names, "truncation-seen-elsewhere-first");
  // Not one world in 40,000: OperationNeedsTest.ATruncationIsMadeAgainOnly... instead.
  std::erase(names, "repeat-truncations");
  // Not one world of power failures in 4,000: AgentPowerTest.Without... instead.
  std::erase(names, "undo-truncations");
  // None can: the inode's lock has the fsyncs of a node come one after the other in the model, as
  // in the kernel. AgentPowerTest.WithoutThatOnlyOneTells instead.
  std::erase(names, "tell-loss-to-one");
  std::erase(names, "reclaim-behind-truncation");  // costs errors, not coherence: see below
  std::erase(names, "show-tails");       // shows where programs store behind the end: see below
  std::erase(names, "unsettled-sizes");  // shows with the kernel's races only: see below
  return names;
}

INSTANTIATE_TEST_SUITE_P(Rules, EachMistake, testing::ValuesIn(findable()), [](const auto& param) {
  std::string name = param.param;
  for (char& c : name) {
    if (c == '-') c = '_';
  }
  return name;
});

// K13 is about progress: without it more readers find their page gone before they could use it.
TEST(MistakesTest, WithoutResidencyReadersFaultMoreOften) {
  Breaks breaks;
  ASSERT_TRUE(add_break("no-residency", breaks));
  const Summary with = run_seeds({1, 400}, {}, 1, true);
  const Summary without = run_seeds({1, 400}, breaks, 1, true);
  EXPECT_FALSE(without.finding) << without.finding->what;
  EXPECT_GT(without.counts.kernel.refaults, with.counts.kernel.refaults);
}

// R6: without it they wait for the grace, which waits for their pages, until T3 ends them.
TEST(MistakesTest, WithoutClaimsMoreTruncationsFailWhenAnOriginRestarts) {
  Breaks breaks;
  ASSERT_TRUE(add_break("reclaim-behind-truncation", breaks));
  const Summary with = run_seeds({1, 1500}, {}, 1, true, WorldKind::Faults);
  const Summary without = run_seeds({1, 1500}, breaks, 1, true, WorldKind::Faults);
  EXPECT_FALSE(with.finding) << with.finding->what;
  EXPECT_GT(with.counts.agent.pages_claimed, 0u);
  EXPECT_EQ(without.counts.agent.pages_claimed, 0u);
  EXPECT_LT(with.counts.agent.truncations_ended, without.counts.agent.truncations_ended);
}

// What a kernel or its programs do in these worlds alone. Nothing fails; more than `most` do
// without the rule.
void only_fails_without(const char* rule, const Breaks& in_worlds, SeedRange seeds, uint64_t most,
                        Summary& with) {
  Breaks without = in_worlds;
  ASSERT_TRUE(add_break(rule, without));
  with = run_seeds(seeds, in_worlds, 1, true);
  EXPECT_EQ(with.failures, 0u) << with.finding->what;
  EXPECT_GT(run_seeds(seeds, without, 1, true).failures, most);
}

TEST(MistakesTest, WithoutSettlingReadersFindZeroesBehindTheEnd) {
  Breaks races;
  races.size_races = true;
  Summary settled;
  only_fails_without("unsettled-sizes", races, {1, 1000}, 3, settled);
}

TEST(MistakesTest, WithoutZeroesBehindTheOldEndWhatWasStoredThereIsShown) {
  Breaks tails;
  tails.tails = true;
  Summary nothing;
  only_fails_without("show-tails", tails, {100000, 2000}, 1, nothing);
  EXPECT_GT(nothing.counts.kernel.stores_behind, 200u);
}

TEST(MistakesTest, AnUnknownNameIsRefused) {
  Breaks breaks;
  EXPECT_FALSE(add_break("no-such-rule", breaks));
}

}  // namespace
}  // namespace vremote::sim
