// Scenarios of one agent (agent_test.cc): what it does when others want what its kernel has cached.
#include <cerrno>
#include <memory>

#include "coherence/agent.h"
#include "coherence/agent_test_world.h"

namespace vremote::coherence {
namespace {

// ---- what a home sends unasked

TEST(AgentBoundsTest, OffersBeyondWhatIsKeptAreGivenBackAtOnce) {
  Agent agent({});
  const auto file = [](uint64_t n) {
    return FileId{.export_index = 0, .generation = 1, .inode = n};
  };
  size_t given_back = 0;
  for (uint64_t n = 1; n <= 2 * kOfferedFilesMax; ++n) {
    AgentActions actions;
    agent.receive(Instant{1},
                  Grant{.file = file(n),
                        .sequence = 3,
                        .resource = Resource::Attributes,
                        .mode = LeaseMode::Shared,
                        .range = kUnit},
                  actions);
    for (const AgentAction& action : actions) {
      const auto* sent = std::get_if<SendToHome>(&action);
      const auto* release = sent == nullptr ? nullptr : std::get_if<Release>(&sent->message);
      if (release == nullptr) continue;
      EXPECT_TRUE(release->leases);
      EXPECT_EQ(release->seen, 3u);
      ++given_back;
    }
  }
  EXPECT_EQ(given_back, kOfferedFilesMax);
  EXPECT_EQ(agent.counts().files, kOfferedFilesMax);
  // What the kernel asks for is no offer any more, and makes room for another.
  AgentActions actions;
  agent.attributes(Instant{2}, 1, file(1), false, actions);
  actions.clear();
  agent.receive(Instant{2},
                Grant{.file = file(1'000'000),
                      .sequence = 1,
                      .resource = Resource::Attributes,
                      .mode = LeaseMode::Shared,
                      .range = kUnit},
                actions);
  EXPECT_EQ(agent.held(file(1'000'000), Resource::Attributes, 0), LeaseMode::Shared);
}

TEST(AgentBoundsTest, RangesThatNobodyAskedForAreNotKeptWithoutEnd) {
  Agent agent({});
  const FileId file{.export_index = 0, .generation = 1, .inode = 7};
  AgentActions actions;
  for (uint64_t page = 0; page < 4 * kUnaskedRangesMax; page += 2)
    agent.receive(Instant{1},
                  Grant{.file = file,
                        .sequence = page + 1,
                        .resource = Resource::Data,
                        .mode = LeaseMode::Shared,
                        .range = {page, page + 1}},
                  actions);
  EXPECT_LE(agent.counts().shared_ranges, kUnaskedRangesMax);
}

using test::AgentWorld;
using test::pages;
using test::pages_from;
using enum LeaseMode;

constexpr uint64_t kSize = 16 * kPageSize;  // of the file in most scenarios

// ---- recalls of data: K3, K4, K5

TEST(AgentTest, ARecallOfCachedPagesIsAckedAfterTheirPurge) {
  AgentWorld w;
  w.has_attributes(Shared, kSize).has(Shared, PageRange::all()).cached(pages(0, 3), 'A');
  w.recalls(pages(0, 3)).expect("purge 0-3");
  w.returns(pages(0, 3)).expect("ack all");
  EXPECT_EQ(w.held(0), None);
}

TEST(AgentTest, WithNothingCachedARecallIsAckedAtOnce) {
  AgentWorld w;
  w.has(Exclusive, PageRange::all());
  w.recalls(pages(5, 5)).expect("ack all");
}

TEST(AgentTest, RecallDuringFillNeedsNoPurge) {  // K3
  AgentWorld w;
  w.has_attributes(Shared, kSize).has(Shared, PageRange::all());
  w.fills(1, pages(0, 0)).expect("fetch 0-0");
  w.recalls(pages(0, 0)).expect("ack all", "ask Shared 0-0 with data");
  w.grants('B').expect("data 1 4096*B");
}

TEST(AgentTest, FetchFromBeforeARecallIsVoid) {  // K11
  AgentWorld w;
  w.has_attributes(Shared, kSize).has(Shared, PageRange::all());
  w.fills(1, pages(0, 0)).expect("fetch 0-0");
  w.recalls(pages(0, 0)).expect("ack all", "ask Shared 0-0 with data");
  w.serves_fetch('A').expect_nothing();
  w.grants('B').expect("data 1 4096*B");
}

TEST(AgentTest, FillCountedAsAbsenceIsNotAnsweredBeforeTheAck) {  // K3
  AgentWorld w;
  w.has_attributes(Shared, kSize).has(Shared, PageRange::all()).cached(pages(0, 0), 'A');
  w.fills(1, pages(1, 1)).expect("fetch 1-1");
  w.recalls(pages(0, 1)).expect("purge 0-0");
  w.serves_fetch('A').expect_nothing();
  w.returns(pages(0, 0)).expect("ack all", "ask Shared 1-1 with data");
  w.grants('B').expect("data 1 4096*B");
}

TEST(AgentTest, SecondPurgeIsStartedBesideAHeldUpOne) {  // K5
  AgentWorld w;
  w.has_attributes(Shared, kSize).has(Shared, PageRange::all()).cached(pages(0, 3), 'A');
  w.recalls(pages(0, 3)).expect("purge 0-3");
  w.fills(1, pages(1, 1))
      .expect("purge 0-0",
              "purge 2-3");  // the first may be stuck on page 1 until this fill is answered
  w.returns(pages(2, 3)).expect_nothing();
  w.returns(pages(0, 0)).expect("ack all", "ask Shared 1-1 with data");
  w.grants('B').expect("data 1 4096*B");
  w.returns(pages(0, 3)).expect_nothing();
}

TEST(AgentTest, LatePurgeProvesNothing) {  // K4
  AgentWorld w;
  w.has_attributes(Shared, kSize).has(Shared, PageRange::all()).cached(pages(0, 0), 'A');
  w.recalls(pages(0, 0)).expect("purge 0-0");
  w.fills(1, pages(0, 0)).expect("ack all", "ask Shared 0-0 with data");
  w.grants('B').expect("data 1 4096*B");  // cached again, after the purge began
  w.later_ms(2);
  w.recalls(pages(0, 0)).expect("purge 0-0");
  w.returns(pages(0, 0)).expect_nothing();  // the old one
  w.returns(pages(0, 0)).expect("ack all");
}

TEST(AgentTest, PurgesAreSharedByAllWhoWait) {  // C1 to C4
  AgentWorld w;
  w.has_attributes(Exclusive, kSize).has(Exclusive, PageRange::all()).cached(pages(0, 3), 'A');
  w.writes(1, 0, 4096, 'W').expect("purge 0-0");
  w.recalls(pages(0, 1)).expect("purge 1-1");
  w.returns(pages(1, 1)).expect_nothing();
  w.returns(pages(0, 0)).expect("written 1 @0+4096", "flush @0+4096*W", "ack 0-1");
}

TEST(AgentTest, ReclaimedPagesArePurgedForNothingButNeverMissed) {  // C1: the kernel does not tell
                                                                    // what it drops
  AgentWorld w;
  w.has_attributes(Shared, kSize).has(Shared, PageRange::all()).cached(pages(0, 0), 'A');
  EXPECT_EQ(w.agent.counts().resident_pages, 1u);
  w.recalls(pages(0, 0)).expect("purge 0-0");
  w.returns(pages(0, 0)).expect("ack all");
  EXPECT_EQ(w.agent.counts().resident_pages, 0u);
}

// ---- writable mappings: K2, K7

TEST(AgentTest, OpenReadWritePurgesWhatIsNotExclusive) {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize)
      .has(Shared, pages(0, 1))
      .has(Exclusive, pages(2, 3))
      .cached(pages(0, 3), 'A');
  w.opens(1, true).expect("purge 0-1");
  w.returns(pages(0, 1)).expect("opened 1");
}

TEST(AgentTest, OpenForWritingOnlyPurgesNothing) {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize).has(Shared, pages(0, 1)).cached(pages(0, 1), 'A');
  w.opens(1, false).expect("opened 1");
}

TEST(AgentTest, AKernelWithoutWritableMappingsPurgesNothingAtOpen) {
  AgentWorld w({.writable_mappings = false});
  w.has_attributes(Exclusive, kSize).has(Shared, pages(0, 1)).cached(pages(0, 1), 'A');
  w.opens(1, true).expect("opened 1");
}

TEST(AgentTest, WhileAHandleCouldBeMappedFillsAreAnsweredUnderExclusiveOnly) {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize).has(Shared, PageRange::all());
  w.opens(1, true).expect("opened 1");
  w.fills(2, pages(0, 0)).expect("ask Exclusive 0-0 with data");
  w.grants('A').expect("data 2 4096*A");
  w.closes(true).expect_nothing();
  w.fills(3, pages(1, 1)).expect("fetch 1-1");
  w.serves_fetch('A').expect("data 3 4096*A");
}

TEST(AgentTest, MayWriteIsCheckedWhenAnsweringNotWhenAsking) {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize);
  w.fills(1, pages(0, 0)).expect("ask Shared 0-0 with data");
  w.opens(2, true).expect("opened 2");
  w.grants('A').expect("ask Exclusive 0-0 with data");
  w.grants('B').expect("data 1 4096*B");
}

TEST(AgentTest, DowngradeWithoutMappingNeedsNoPurge) {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize).has(Exclusive, PageRange::all());
  w.writes(1, 0, 4096, 'W').expect("written 1 @0+4096");
  w.fills(2, pages(0, 0)).expect("data 2 4096*W");
  w.recalls(pages(0, 0), Shared).expect("flush @0+4096*W", "ack 0-0");
  EXPECT_EQ(w.held(0), Shared);
  EXPECT_EQ(w.agent.counts().resident_pages, 1u);
  w.reads(3, 0, 4096).expect("data 3 4096*W");
}

TEST(AgentTest, DowngradeOfAFileThatCouldBeMappedIsAPurge) {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize).has(Exclusive, PageRange::all()).cached(pages(0, 0), 'A');
  w.opens(1, true).expect("opened 1");
  w.recalls(pages(0, 0), Shared).expect("purge 0-0");
  w.returns(pages(0, 0)).expect("ack all");
}

TEST(AgentTest, AnOpenDuringADowngradeMakesThePurgeNecessaryAgain) {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize).has(Exclusive, PageRange::all()).cached(pages(0, 1), 'A');
  w.writes(1, 0, 4096, 'W').expect("purge 0-0");
  w.recalls(pages(0, 1), Shared).expect_nothing();  // waits for the write only
  w.opens(2, true).expect("purge 1-1", "opened 2");
  w.returns(pages(0, 0)).expect("written 1 @0+4096");
  w.returns(pages(1, 1)).expect("flush @0+4096*W", "ack 0-1");
}

TEST(AgentTest, AWriteBackIsAcceptedDuringARecallAndGoesWithTheAck) {  // K7
  AgentWorld w;
  w.has_attributes(Exclusive, kSize).has(Exclusive, PageRange::all()).cached(pages(0, 0), 'A');
  w.opens(1, true).expect("opened 1");
  w.recalls(pages(0, 0)).expect("purge 0-0");
  w.writes_back(0, 'M').expect_nothing();
  w.returns(pages(0, 0)).expect("flush @0+4096*M", "flush time", "ack all");
  EXPECT_EQ(w.agent.statistics().write_backs_without_exclusive, 0u);
}

TEST(AgentTest, AWriteBackWithoutExclusiveIsCounted) {
  AgentWorld w;
  w.has_attributes(Exclusive, kSize).has(Shared, PageRange::all());
  w.writes_back(0, 'M').expect_nothing();
  EXPECT_EQ(w.agent.statistics().write_backs_without_exclusive, 1u);
}

// ---- directories

TEST(AgentTest, NamesAreLostBeforeTheirRecallIsAcked) {
  AgentWorld w;
  w.lists(1).expect("ask Shared entries");
  w.grants_entries().expect("entries 1");
  w.lists(2).expect("entries 2");
  EXPECT_TRUE(w.agent.has_entries(w.file));
  w.recalls_entries().expect("names lost", "ack 0-0");
  EXPECT_FALSE(w.agent.has_entries(w.file));
}

TEST(AgentTest, NamesInTheKernelEndBeforeTheirRecallIsAcked) {
  AgentWorld w;
  w.lists(1).expect("ask Shared entries");
  w.grants_entries().expect("entries 1");
  EXPECT_TRUE(w.agent.may_give_names(w.file));
  w.agent.names_given(w.file);
  w.recalls_entries().expect("names lost", "end names");
  EXPECT_FALSE(w.agent.may_give_names(w.file));
  w.ends_names().expect("names lost", "ack 0-0");
}

TEST(AgentTest, AnEndOfNamesFromBeforeAResetSaysNothingOfLaterOnes) {
  AgentWorld w;
  w.lists(1).expect("ask Shared entries");
  w.grants_entries().expect("entries 1");
  w.agent.names_given(w.file);
  w.resets().expect("names lost", "end names at once");
  w.lists(2).expect("ask Shared entries");
  w.grants_entries().expect("entries 2");
  w.agent.names_given(w.file);
  w.recalls_entries().expect("names lost", "end names");
  w.ends_names().expect_nothing();  // that of the reset
  w.ends_names().expect("names lost", "ack 0-0");
}

TEST(AgentTest, AllWhoWaitForNamesShareOneRequest) {
  AgentWorld w;
  w.lists(1).expect("ask Shared entries");
  w.lists(2).expect_nothing();
  w.grants_entries().expect("entries 1", "entries 2");
}

// ---- fairness: K13, and giving more than was asked

TEST(AgentTest, AFreshlyFilledPageIsSparedForAMoment) {
  AgentWorld w;
  w.has_attributes(Shared, kSize).has(Shared, PageRange::all());
  w.fills(1, pages(0, 0)).expect("fetch 0-0");
  w.serves_fetch('A').expect("data 1 4096*A");
  w.recalls(pages(0, 0)).expect_nothing();
  EXPECT_EQ(w.ms_to_deadline(), 1);
  w.later_ms(1).expect("purge 0-0");
  w.returns(pages(0, 0)).expect("ack all");
}

TEST(AgentTest, GivesMoreAroundWhatItDoesNotUse) {
  AgentWorld w;
  w.has_attributes(Exclusive, 1000 * kPageSize).has(Exclusive, PageRange::all());
  w.writes(1, 10 * kPageSize, 4096, 'W').expect("written 1 @40960+4096");
  w.recalls(pages(500, 500))
      .expect("ack 75-end");  // page 10 is dirty, and the next 64 will be wanted
  EXPECT_EQ(w.held(74), Exclusive);
  w.recalls(pages(20, 20)).expect("ack 20-20");
}

TEST(AgentTest, DoesNotGiveAwayWhatIsCachedBesideTheRecall) {
  AgentWorld w;
  w.has_attributes(Shared, kSize)
      .has(Shared, PageRange::all())
      .cached(pages(2, 3), 'A')
      .cached(pages(8, 9), 'A');
  w.recalls(pages(5, 5)).expect("ack 4-7");
}

}  // namespace
}  // namespace vremote::coherence
