// Scenarios of a file that goes from one daemon of its node to the next.
#include <cerrno>

#include "coherence/agent.h"
#include "coherence/agent_test_world.h"

namespace vremote::coherence {
namespace {

using test::AgentWorld;
using test::pages;
using enum LeaseMode;

constexpr uint64_t kSize = 16 * kPageSize;

KeptFile kept_of(AgentWorld& w) {
  const auto all = w.agent.kept_files();
  EXPECT_EQ(all.size(), 1u);
  return all.empty() ? KeptFile{} : all.front();
}

void sync(AgentWorld& w, Token token) {
  w.syncs(token).discard();
  for (int i = 0; i < 4 && !w.agent.idle_dirty(); ++i) w.acks_flush().discard();
}

// A file that is open for mapping, with all leases, and pages in the kernel.
KeptFile mapped_file() {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize).has(Exclusive, pages(0, 15));
  w.opens(1, true).expect("opened 1").cached(pages(0, 3), 'A');
  EXPECT_TRUE(w.agent.can_be_handed_over());
  return kept_of(w);
}

TEST(AgentHandoverTest, ARecallIsAckedWhenTheKernelShowsNothingOfBefore) {
  AgentWorld w;
  w.takes_over(mapped_file()).expect_nothing();
  w.took_over(true).expect("purge all");
  w.recalls(pages(2, 2)).expect_nothing();
  // What a mapping had stored under the daemon before.
  w.writes_back(2, 'M').expect_nothing();
  w.returns(PageRange::all()).expect("flush @8192+4096*M", "flush time", "ack all");
  EXPECT_EQ(w.agent.statistics().write_backs_without_exclusive, 0u);
}

TEST(AgentHandoverTest, AWriteBackThatComesAgainIsUnderTheLeaseOfBefore) {
  AgentWorld w;
  w.takes_over(mapped_file()).expect_nothing();
  w.writes_back(2, 'M').discard();
  w.took_over(true).expect("purge all");
  w.recalls(pages(2, 2)).discard();
  w.returns(PageRange::all()).discard();
  for (int i = 0; i < 4 && !w.agent.idle_dirty(); ++i) w.acks_flush().discard();
  EXPECT_TRUE(w.agent.idle_dirty());
  EXPECT_EQ(w.agent.statistics().write_backs_without_exclusive, 0u);
}

TEST(AgentHandoverTest, NothingIsAnsweredFromLeasesOfBefore) {
  AgentWorld w;
  w.takes_over(mapped_file()).took_over(true).expect("purge all");
  w.reads(1, 0, 4096).expect_nothing();
  w.returns(PageRange::all()).expect("ask Shared attributes");
  EXPECT_EQ(w.held(0), None);
}

TEST(AgentHandoverTest, PurgesGoRoundTheFillsThatWereReadAgain) {
  AgentWorld w;
  w.takes_over(mapped_file());
  w.fills(1, pages(2, 2)).discard();
  w.took_over(true).expect("purge 0-1", "purge 3-end");
}

TEST(AgentHandoverTest, AHomeThatIsNewIsToldWhatIsOpenAndAskedForAllAnew) {
  AgentWorld w;
  w.takes_over(mapped_file()).took_over(false).discard();
  EXPECT_EQ(w.agent.open_files().size(), 1u);
  EXPECT_FALSE(w.agent.brought_back());
  w.returns(PageRange::all()).discard();
  EXPECT_TRUE(w.agent.brought_back());
}

TEST(AgentHandoverTest, AnOpenThatWasNotAnsweredIsCountedWhenItComesAgain) {
  AgentWorld w;
  w.opens(1, false).expect("ask Shared attributes");
  const KeptFile kept = kept_of(w);
  EXPECT_EQ(kept.opens, 0u);
  EXPECT_EQ(kept.reading_opens, 0u);
}

TEST(AgentHandoverTest, DirtyBytesAndHalvesOfAppendsAreNotLeftBehind) {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize).has(Exclusive, PageRange::all());
  w.writes(1, 0, 4096, 'W').expect("written 1 @0+4096");
  EXPECT_FALSE(w.agent.can_be_handed_over());
  sync(w, 2);
  EXPECT_TRUE(w.agent.can_be_handed_over());
  // As long as a request can be: another piece may follow.
  w.appends(3, kSize, 1 << 20, 'P').discard();
  sync(w, 4);
  EXPECT_FALSE(w.agent.can_be_handed_over());
  w.appends(5, kSize + (1 << 20), 100, 'P').discard();
  sync(w, 6);
  EXPECT_TRUE(w.agent.can_be_handed_over());
}

// A file that is open twice, with bytes that were flushed to an origin that then lost its power.
struct Lost : AgentWorld {
  Lost() {
    has_attributes(Exclusive, kSize).has(Exclusive, pages(0, 15));
    opens(1, false).expect("opened 1").opens(2, false).expect("opened 2");
    writes(3, 0, 4096, 'W').expect("written 3 @0+4096");
    sync(*this, 4);
  }
  void loses() { resets(Agent::Dirty::Kept, true).discard(); }
};
const Opener kOne{.handle = 1, .next = 3}, kOther{.handle = 2, .next = 3};

int32_t syncs_now(AgentWorld& w, const Opener& who) {
  return w.agent.synced(w.file, w.agent.sync_begins(), 0, UINT64_MAX, who);
}

TEST(AgentHandoverTest, WhoHasNotHeardOfALossHearsOfItFromTheNextDaemon) {
  Lost before;
  before.loses();
  EXPECT_EQ(syncs_now(before, kOne), EIO);
  AgentWorld w;
  w.agent.take_over_syncs(before.agent.next_sync());
  w.takes_over(kept_of(before)).took_over(true).discard();
  EXPECT_EQ(syncs_now(w, kOne), 0) << "told";
  EXPECT_EQ(syncs_now(w, kOther), EIO);
  EXPECT_EQ(syncs_now(w, kOther), 0) << "told";
}

TEST(AgentHandoverTest, AnFsyncThatHadBegunBeforeTheLossTellsOfItAfterAnUpgrade) {
  Lost before;
  const uint64_t asked = before.agent.sync_begins();
  before.loses();
  EXPECT_EQ(syncs_now(before, kOne), EIO);
  AgentWorld w;
  w.agent.take_over_syncs(before.agent.next_sync());
  w.takes_over(kept_of(before)).took_over(true).discard();
  EXPECT_EQ(w.agent.synced(w.file, w.agent.sync_begins(), 0, asked, kOne), EIO);
  EXPECT_EQ(syncs_now(w, kOne), 0);
}

// The home has synced what it had when it was asked, and the reply comes to the next daemon.
TEST(AgentHandoverTest, ASyncOfBeforeSaysNothingOfWhatWasFlushedAfterItBegan) {
  Lost before;
  const uint64_t begun = before.agent.sync_begins();
  before.writes(5, 4096, 4096, 'X').expect("written 5 @4096+4096");
  sync(before, 6);
  AgentWorld w;
  w.agent.take_over_syncs(before.agent.next_sync());
  w.takes_over(kept_of(before)).took_over(true).discard();
  EXPECT_EQ(w.agent.synced(w.file, begun, 0), 0);
  w.resets(Agent::Dirty::Kept, true).discard();
  EXPECT_EQ(syncs_now(w, kOne), EIO);
}

TEST(AgentHandoverTest, ASyncOfAllThatWasFlushedCoversItAfterAnUpgrade) {
  Lost before;
  const uint64_t begun = before.agent.sync_begins();
  AgentWorld w;
  w.agent.take_over_syncs(before.agent.next_sync());
  w.takes_over(kept_of(before)).took_over(true).discard();
  EXPECT_EQ(w.agent.synced(w.file, begun, 0), 0);
  w.resets(Agent::Dirty::Kept, true).discard();
  EXPECT_EQ(syncs_now(w, kOne), 0);
}

TEST(AgentHandoverTest, RecallsThatWaitAreKept) {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize).has(Exclusive, pages(0, 15)).cached(pages(0, 3), 'A');
  w.recalls(pages(1, 1)).expect("purge 1-1");
  const KeptFile kept = kept_of(w);
  ASSERT_EQ(kept.recalls.size(), 1u);
  EXPECT_EQ(kept.recalls[0].range, pages(1, 1));
}

}  // namespace
}  // namespace vremote::coherence
