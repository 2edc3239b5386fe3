#include "coherence/grace.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <set>
#include <string>
#include <vector>

#include "coherence/call_memory.h"
#include "coherence/grace_gate.h"
#include "coherence/members.h"

namespace vremote::coherence {
namespace {

const Instant kNow{1000}, kEnd{2000};

TEST(GraceTest, WithNobodyToWaitForItIsOver) {
  EXPECT_TRUE(Grace().over(kNow));
  EXPECT_TRUE(Grace({}, kEnd).over(kNow));
}

TEST(GraceTest, ItEndsWhenEveryNodeIsDone) {
  Grace grace({{"a", 1}, {"b", 2}}, kEnd);
  EXPECT_FALSE(grace.over(kNow));
  grace.settled("a");
  grace.settled("stranger");
  EXPECT_FALSE(grace.over(kNow));
  grace.settled("b");
  EXPECT_TRUE(grace.over(kNow));
}

TEST(GraceTest, ItEndsWithItsTime) {
  const Grace grace({{"a", 1}}, kEnd);
  EXPECT_FALSE(grace.over({1999}));
  EXPECT_TRUE(grace.over(kEnd));
  EXPECT_FALSE(grace.may_reclaim({"a", 1}, kEnd));
}

TEST(GraceTest, OnlyWhoHadASessionMayReclaim) {
  Grace grace({{"a", 1}, {"b", 2}}, kEnd);
  EXPECT_TRUE(grace.may_reclaim({"a", 1}, kNow));
  EXPECT_FALSE(grace.may_reclaim({"a", 7}, kNow)) << "it was started anew";
  EXPECT_TRUE(Grace({{"a", 1, 4}}, kEnd).may_reclaim({"a", 1, 5}, kNow));
  EXPECT_FALSE(Grace({{"a", 1, 4}}, kEnd).may_reclaim({"a", 1, 4}, kNow))
      << "it has not heard of the session that was noted: what it has is of one before";
  EXPECT_FALSE(grace.may_reclaim({"c", 1}, kNow));
  grace.settled("a");
  EXPECT_FALSE(grace.may_reclaim({"a", 1}, kNow)) << "once";
}

// ---- what waits

ToHome request(uint64_t id) { return LeaseRequest{.file = {}, .request = id}; }
uint64_t id_of(const std::pair<NodeId, ToHome>& kept) {
  return std::get<LeaseRequest>(kept.second).request;
}

TEST(GraceGateTest, RequestsWaitInOrderAndWhatBringsBackPasses) {
  GraceGate gate(10);
  gate.close();
  ToHome flush = Flush{};
  EXPECT_EQ(gate.admit(NodeId{1}, flush), GraceGate::Verdict::Serve);
  for (uint64_t id : {1u, 2u}) {
    ToHome message = request(id);
    EXPECT_EQ(gate.admit(NodeId{static_cast<uint32_t>(id)}, message), GraceGate::Verdict::Kept);
  }
  EXPECT_EQ(id_of(*gate.next()), 1u);
  ToHome late = request(3);
  EXPECT_EQ(gate.admit(NodeId{1}, late), GraceGate::Verdict::Kept) << "behind those before it";
  EXPECT_EQ(id_of(*gate.next()), 2u);
  EXPECT_EQ(id_of(*gate.next()), 3u);
  EXPECT_FALSE(gate.next());
  EXPECT_EQ(gate.admit(NodeId{1}, late), GraceGate::Verdict::Serve);
}

TEST(GraceGateTest, NobodyClaimsAnythingWhenTheFirstIsServed) {
  GraceGate gate(10);
  EXPECT_FALSE(gate.may_reclaim());
  gate.close();
  EXPECT_TRUE(gate.may_reclaim());
  ToHome message = request(1);
  (void)gate.admit(NodeId{1}, message);
  ASSERT_TRUE(gate.next());
  EXPECT_TRUE(gate.closed());
  EXPECT_FALSE(gate.may_reclaim());
  EXPECT_FALSE(gate.next());
}

TEST(GraceGateTest, WhatANodeThatIsGoneAskedForIsForgotten) {
  GraceGate gate(10);
  gate.close();
  for (uint32_t node : {1u, 2u, 1u}) {
    ToHome message = request(node);
    (void)gate.admit(NodeId{node}, message);
  }
  gate.node_gone(NodeId{1});
  EXPECT_EQ(id_of(*gate.next()), 2u);
  EXPECT_FALSE(gate.next());
}

TEST(GraceGateTest, AndForSoManyBytes) {
  GraceGate gate(1 << 20);
  gate.close();
  const Bytes value = Bytes::copy_of(std::vector<std::byte>(kXattrMax));
  uint64_t kept = 0;
  for (;; ++kept) {
    ToHome message =
        Call{.call = kept, .operation = SetXattrCall{.name = "user.a", .value = value}};
    if (gate.admit(NodeId{1}, message) != GraceGate::Verdict::Kept) break;
    ASSERT_LT(kept, 1u << 20);
  }
  EXPECT_EQ(kept, GraceGate::kBytesMax / kXattrMax);
}

TEST(GraceGateTest, ANodeHasBoundedRoom) {
  GraceGate gate(1);
  gate.close();
  ToHome first = request(1), second = request(2), other = request(3);
  EXPECT_EQ(gate.admit(NodeId{1}, first), GraceGate::Verdict::Kept);
  EXPECT_EQ(gate.admit(NodeId{1}, second), GraceGate::Verdict::TooMany);
  EXPECT_EQ(gate.admit(NodeId{2}, other), GraceGate::Verdict::Kept);
}

// ---- who is waited for

TEST(MembersTest, WhoIsWaitedForIsNotedUntilItIsBackOrTooLate) {
  Members members;
  members.restarted({{"a", 1}, {"b", 2}}, kEnd);
  EXPECT_THAT(members.to_note(), testing::SizeIs(2)) << "a second crash finds them again";
  members.began(NodeId{5}, {"a", 1}, kNow);
  EXPECT_THAT(members.to_note(), testing::SizeIs(2));
  EXPECT_FALSE(members.brought_back(NodeId{5}, false));
  EXPECT_FALSE(members.grace_ended(kNow));
  const auto missing = members.grace_ended(kEnd);
  ASSERT_TRUE(missing);
  EXPECT_EQ(*missing, (std::vector<Members::Member>{{"b", 2}}));
  EXPECT_EQ(members.to_note(), (std::vector<Members::Member>{{"a", 1}}));
  EXPECT_FALSE(members.grace_ended(kEnd)) << "it is told once";
}

// Found by the simulator (power, 9183): the home died again, the node heard of its session with it
// only then, and brought back to the next what others had written over since.
TEST(MembersTest, WhoWasTooLateBringsNothingBackToTheNextDaemonEither) {
  Members members;
  members.restarted({{"a", 1, 4}}, kEnd);
  members.began(NodeId{5}, {"a", 1, 5}, kNow);
  EXPECT_TRUE(members.may_reclaim({"a", 1, 5}, kNow));
  ASSERT_TRUE(members.grace_ended(kEnd));
  const std::vector<Members::Member> noted = members.to_note();
  Members next;
  next.restarted(noted, kEnd);
  EXPECT_FALSE(next.may_reclaim({"a", 1, 6}, kNow));
  next.began(NodeId{6}, {"a", 1, 6}, kNow);
  EXPECT_FALSE(next.grace_ended(kNow)) << "pages that it has claimed may be in use until then";
  const auto missing = next.grace_ended(kEnd);
  ASSERT_TRUE(missing);
  EXPECT_THAT(*missing, testing::IsEmpty()) << "its new session is none of before";
  EXPECT_EQ(next.to_note(), (std::vector<Members::Member>{{"a", 1, 6}}));
}

TEST(MembersTest, ADaemonThatIsWaitedForIsNotedOnceWithItsOldestSession) {
  Members members;
  members.restarted({{"a", 1, 4}}, kEnd);
  members.began(NodeId{5}, {"a", 1, 5}, kNow);
  EXPECT_EQ(members.to_note(), (std::vector<Members::Member>{{"a", 1, 4}}));
}

TEST(MembersTest, ANodeThatWasStartedAnewIsNotWaitedFor) {
  Members members;
  members.restarted({{"a", 1}}, kEnd);
  members.began(NodeId{5}, {"a", 7}, kNow);
  EXPECT_FALSE(members.may_reclaim({"a", 1}, kNow));
  EXPECT_TRUE(members.grace_ended(kNow));
}

TEST(CallMemoryTest, ACallIsDoneOnce) {
  EXPECT_FALSE(answer_again(std::nullopt));
  EXPECT_EQ(answer_again(CallDone{.ended = true, .error = 0}), 0);
  EXPECT_EQ(answer_again(CallDone{.ended = true, .error = EEXIST}), EEXIST);
  EXPECT_EQ(answer_again(CallDone{.ended = false}), EIO) << "it may have happened";
}

TEST(UnheardCallsTest, SayBelowWhichNumberAllIsHeard) {
  UnheardCalls calls;
  EXPECT_EQ(calls.heard_below(9), 9u) << "nothing is under way";
  for (uint64_t call : {3, 5, 8}) calls.made(call);
  EXPECT_EQ(calls.heard_below(8), 3u);
  EXPECT_EQ(calls.heard_below(2), 2u) << "never more than itself";
  calls.heard(5);
  EXPECT_EQ(calls.heard_below(8), 3u);
  calls.heard(3);
  calls.heard(3);
  EXPECT_EQ(calls.heard_below(8), 8u);
}

class NotesTest : public testing::Test {
 protected:
  void begins(uint64_t incarnation, uint64_t call, uint64_t heard_below) {
    notes_.push_back({incarnation, call, {}, heard_below});
  }
  void ends(uint64_t incarnation, uint64_t call) {
    notes_.push_back({incarnation, call, {.ended = true}, 0});
  }
  // "incarnation:call", with a dot when it had ended.
  std::string stay(const std::set<uint64_t>& askers) {
    notes_ = notes_that_stay(notes_, askers);
    std::string text;
    for (const CallNote& note : notes_)
      text += fmt::format("{}{}:{}{}", text.empty() ? "" : " ", note.incarnation, note.call,
                          note.done.ended ? "." : "");
    return text;
  }
  std::vector<CallNote> notes_;
};

TEST_F(NotesTest, OfWhatANodeHasNotHeardStay) {
  begins(7, 1, 1);
  ends(7, 1);
  begins(7, 4, 2);
  begins(7, 2, 2);
  ends(7, 4);
  begins(8, 1, 1);
  EXPECT_EQ(stay({7, 8}), "7:4 7:2 7:4. 8:1");
  EXPECT_EQ(stay({7, 8}), "7:4 7:2 7:4. 8:1") << "what it had heard is still known";
  begins(7, 6, 4);
  EXPECT_EQ(stay({7, 8}), "7:4 7:4. 8:1 7:6");
  EXPECT_EQ(stay({7}), "7:4 7:4. 7:6") << "8 has left";
}

TEST_F(NotesTest, OfThoseThatDoNotSayTheLastStay) {
  begins(9, 1, 1);
  for (uint64_t call = 1; call <= kNotesThatStayMax; ++call) begins(7 + call % 2, call, 0);
  stay({7, 8, 9});
  EXPECT_EQ(notes_.size(), 1 + kNotesThatStayMax);
  begins(7, kNotesThatStayMax + 1, 0);
  stay({7, 8, 9});
  ASSERT_EQ(notes_.size(), 1 + kNotesThatStayMax) << "of all of them together";
  EXPECT_EQ(notes_[0].incarnation, 9u) << "not at the cost of those that do";
  EXPECT_EQ(notes_[1].call, 2u);
}

TEST_F(NotesTest, ANodeThatHearsNothingHasItsLast) {
  begins(9, 1, 1);
  for (uint64_t call = 1; call <= 3 * kNotesThatStayMax; ++call) begins(7, call, 1);
  stay({7, 9});
  ASSERT_EQ(notes_.size(), 1 + kNotesThatStayMax);
  EXPECT_EQ(notes_[0].incarnation, 9u);
  EXPECT_EQ(notes_[1].call, 2 * kNotesThatStayMax + 1);
}

}  // namespace
}  // namespace vremote::coherence
