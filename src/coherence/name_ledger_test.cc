#include "coherence/name_ledger.h"

#include <gtest/gtest.h>

namespace vremote::coherence {
namespace {

using How = NameLedger::How;
using Finish = NameLedger::Finish;
constexpr uint64_t kDir = 5, kOther = 6;
constexpr uint32_t kThread = 100, kThread2 = 101;

class NameLedgerTest : public testing::Test {
 protected:
  ~NameLedgerTest() override { ledger.check(); }
  NameLedger ledger;
  Instant now{1};
};

TEST_F(NameLedgerTest, ADirectoryWithoutNamesEndsAtOnce) {
  EXPECT_EQ(ledger.end(kDir, false, now).how, How::Nothing);
}

TEST_F(NameLedgerTest, SettledNamesAreExpired) {
  ASSERT_TRUE(ledger.give(kDir, "a", true, {kThread}, now));
  ASSERT_TRUE(ledger.give(kDir, "b", false, {kThread}, now));
  ledger.request_from(kThread);
  const auto ending = ledger.end(kDir, false, now);
  ASSERT_EQ(ending.how, How::Expiry);
  ASSERT_EQ(ending.names.size(), 2u);
  EXPECT_TRUE(ending.names[0].name == "a" && ending.names[0].exists);
  EXPECT_TRUE(ending.names[1].name == "b" && !ending.names[1].exists);
  EXPECT_EQ(ledger.finish(ending.id, true), Finish::Over);
  EXPECT_EQ(ledger.finish(ending.id, false), Finish::WasOver);
}

TEST_F(NameLedgerTest, AnUnsettledNameTakesTheEpoch) {
  ASSERT_TRUE(ledger.give(kDir, "a", true, {kThread}, now));
  EXPECT_EQ(ledger.end(kDir, false, now).how, How::Epoch);
}

TEST_F(NameLedgerTest, AnotherThreadsRequestSettlesNothing) {
  ASSERT_TRUE(ledger.give(kDir, "a", true, {kThread}, now));
  ledger.request_from(kThread2);
  EXPECT_EQ(ledger.end(kDir, false, now).how, How::Epoch);
}

TEST_F(NameLedgerTest, AnExpiryThatIsLateOrUnsureTakesTheEpoch) {
  ASSERT_TRUE(ledger.give(kDir, "a", true, {kThread}, now));
  ledger.request_from(kThread);
  const auto ending = ledger.end(kDir, false, now);
  ASSERT_TRUE(ledger.deadline(now));
  EXPECT_EQ(ledger.finish(ending.id, false), Finish::Epoch);
}

TEST_F(NameLedgerTest, TheEpochEndsTheNamesOfAllDirectories) {
  ASSERT_TRUE(ledger.give(kDir, "a", true, {kThread}, now));
  ASSERT_TRUE(ledger.give(kOther, "a", true, {kThread}, now));
  ledger.epoch_advanced();
  EXPECT_FALSE(ledger.end_all());
  EXPECT_EQ(ledger.end(kOther, true, now).how, How::Nothing);
}

TEST_F(NameLedgerTest, AContendedDirectoryIsGivenNothingForAWhile) {
  (void)ledger.give(kDir, "a", true, {kThread}, now);
  (void)ledger.end(kDir, true, now);
  ledger.epoch_advanced();
  EXPECT_FALSE(ledger.give(kDir, "a", true, {kThread}, now));
  EXPECT_TRUE(ledger.give(kOther, "a", true, {kThread}, now));
  EXPECT_TRUE(ledger.give(kDir, "a", true, {kThread}, now + NameLedgerOptions{}.contended_ns));
}

TEST_F(NameLedgerTest, ARenamedNameIsEndedWhereItWent) {
  ASSERT_TRUE(ledger.give(kDir, "a", true, {kThread}, now));
  ASSERT_TRUE(ledger.move(kDir, "a", kOther, "b", true, kThread));
  ledger.request_from(kThread);
  const auto ending = ledger.end(kOther, false, now);
  ASSERT_EQ(ending.how, How::Expiry);
  EXPECT_EQ(ending.names[0].name, "b");
}

// The recall was there first, then the request of a rename that had the directory's lock already.
TEST_F(NameLedgerTest, ANameThatIsBeingExpiredGoesAlongWithItsRename) {
  ASSERT_TRUE(ledger.give(kDir, "a", true, {kThread}, now));
  ledger.request_from(kThread);
  const auto expiring = ledger.end(kDir, false, now);
  ASSERT_EQ(expiring.how, How::Expiry);
  EXPECT_TRUE(ledger.move(kDir, "other", kOther, "c", true, kThread));
  ASSERT_TRUE(ledger.move(kDir, "a", kOther, "b", true, kThread));
  EXPECT_EQ(ledger.finish(expiring.id, true), NameLedger::Finish::Over) << "it was not found";
  ledger.request_from(kThread);
  const auto ending = ledger.end(kOther, false, now);
  ASSERT_EQ(ending.how, How::Expiry);
  ASSERT_EQ(ending.names.size(), 1u);
  EXPECT_EQ(ending.names[0].name, "b");
}

TEST_F(NameLedgerTest, WhereThatCannotBeFollowedAllIsEnded) {
  ASSERT_TRUE(ledger.give(kDir, "a", true, {kThread}, now));
  ledger.request_from(kThread);
  ASSERT_EQ(ledger.end(kDir, false, now).how, How::Expiry);
  EXPECT_FALSE(ledger.move(kDir, "a", kOther, "b", false, kThread));
  EXPECT_TRUE(ledger.end_all());
}

TEST_F(NameLedgerTest, ALookupThatIsNotOverFollowsTheNameThatWasRenamed) {
  ASSERT_TRUE(ledger.give(kDir, "a", true, {kThread}, now));  // slow to use the answer
  ASSERT_TRUE(ledger.move(kDir, "a", kOther, "b", true, kThread2));
  ledger.request_from(kThread2);
  EXPECT_EQ(ledger.end(kOther, false, now).how, How::Epoch);
  ledger.request_from(kThread);
  EXPECT_EQ(ledger.end(kOther, false, now).how, How::Expiry);
}

class MovedNameTest : public NameLedgerTest {
 protected:
  void SetUp() override { ASSERT_TRUE(ledger.move(kDir, "a", kOther, "b", true, kThread2)); }
  bool keeps(Instant asked, const std::string& name = "a", bool exists = true) {
    return ledger.give(kDir, name, exists, {kThread, asked}, asked + 100 * kLong);
  }
  static constexpr int64_t kLong = NameLedgerOptions{}.moved_ns;
};

// A thread that had found the name before sets the time of what is the new one by our answer.
TEST_F(MovedNameTest, IsNotKeptByWhatWasAskedBeforeNorForAWhile) {
  EXPECT_FALSE(keeps(now + 5 * kLong)) << "the rename is not over";
  const Instant over = now + 10 * kLong;
  ASSERT_TRUE(ledger.moved(kDir, "a", true, over));
  EXPECT_FALSE(keeps(now)) << "it had been asked before";
  EXPECT_FALSE(keeps(over + (kLong - 1))) << "it may have been found before";
  EXPECT_TRUE(keeps(over + kLong));
}

TEST_F(MovedNameTest, OthersAreKept) {
  EXPECT_TRUE(keeps(now, "other"));
  EXPECT_TRUE(ledger.give(kOther, "b", true, {kThread, now}, now));
  EXPECT_TRUE(keeps(now, "a", false)) << "drops what was moved";
}

TEST_F(MovedNameTest, WhoseRenameFailedIsKept) {
  ASSERT_TRUE(ledger.moved(kDir, "a", false, now));
  EXPECT_TRUE(keeps(now));
}

TEST_F(MovedNameTest, IsOfAnEpochBefore) {
  ledger.epoch_advanced();
  EXPECT_TRUE(keeps(now));
}

TEST_F(MovedNameTest, IsNotForgottenForALookupThatTakesLong) {
  ASSERT_TRUE(ledger.give(kDir, "x", true, {kThread, now}, now));  // the directory is known
  ASSERT_TRUE(ledger.moved(kDir, "a", true, now));
  for (int i = 0; i < 1000; ++i)
    ASSERT_TRUE(ledger.moved(kOther, std::to_string(i), true, now + 2 * kLong));
  EXPECT_FALSE(keeps(now + (kLong - 1)));
  EXPECT_TRUE(keeps(now + kLong));
}

TEST_F(MovedNameTest, AreSoManyAndNoMore) {
  int followed = 0;
  while (followed < 1'000'000 && ledger.moved(kDir, std::to_string(followed), true, now))
    ++followed;
  EXPECT_GT(followed, 10'000);
  EXPECT_LT(followed, 100'000) << "the epoch ends them";
}

TEST_F(MovedNameTest, AreForgottenWithTheirDirectory) {
  ledger.forget(kDir);
  EXPECT_TRUE(keeps(now)) << "a number that is given anew means another directory";
}

TEST_F(NameLedgerTest, ARenameToWhereNothingIsLeasedCannotBeFollowed) {
  ASSERT_TRUE(ledger.give(kDir, "a", true, {kThread}, now));
  EXPECT_FALSE(ledger.move(kDir, "a", kOther, "b", false, kThread));
  EXPECT_TRUE(ledger.move(kDir, "unknown", kOther, "b", false, kThread));
}

TEST_F(NameLedgerTest, ADirectoryThatIsForgottenLeavesNoThreadBehind) {
  ASSERT_TRUE(ledger.give(kDir, "a", true, {kThread}, now));
  ledger.forget(kDir);
  ASSERT_TRUE(ledger.give(kDir, "a", true, {kThread2}, now));
  ledger.request_from(kThread);  // of the directory before: does not settle the other's lookup
  EXPECT_EQ(ledger.end(kDir, false, now).how, How::Epoch);
}

}  // namespace
}  // namespace vremote::coherence
