#include "coherence/operation_needs.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <tuple>

#include "coherence/test_text.h"

namespace vremote::coherence {
namespace {

using test::pages;
using test::pages_from;
using enum LeaseMode;

constexpr NodeId kCaller{3};
// Named so that the order of taking differs from the order of the call.
constexpr FileId kLow{0, 1, 10}, kMiddle{0, 1, 20}, kHigh{0, 1, 30};

// Every operation there is, in the awkward order of its files.
std::vector<Operation> all_operations() {
  return {LookupCall{.dir = kHigh, .name = "a"},
          CreateCall{.dir = kHigh, .name = "a"},
          SymlinkCall{.dir = kHigh, .name = "a", .target = "b"},
          LinkCall{.file = kHigh, .dir = kLow, .name = "a"},
          LinkCall{.file = kLow, .dir = kHigh, .name = "a"},
          RemoveCall{.dir = kHigh, .name = "a"},
          RenameCall{.from_dir = kHigh, .from = "a", .to_dir = kLow, .to = "b"},
          RenameCall{.from_dir = kHigh, .from = "a", .to_dir = kHigh, .to = "b"},
          SetAttributesCall{.file = kHigh, .has_mode = true},
          SetAttributesCall{.file = kHigh, .has_size = true, .size = 5000},
          ReadLinkCall{.file = kHigh},
          ReadDirectoryCall{.dir = kHigh},
          StatFsCall{.file = kHigh},
          SyncCall{.file = kHigh},
          GetXattrCall{.file = kHigh, .name = "user.a"},
          ListXattrCall{.file = kHigh},
          SetXattrCall{.file = kHigh, .name = "user.a", .value = {}},
          RemoveXattrCall{.file = kHigh, .name = "user.a"},
          AllocateCall{.file = kHigh, .offset = 5000, .length = 1},
          SeekCall{.file = kHigh, .offset = 0, .whence = 3},
          CopyCall{.from = {0, 1, 40}, .file = kHigh, .length = 1},
          CopyCall{.from = kLow, .file = kHigh, .length = 1},
          CopyCall{.from = kHigh, .file = kHigh, .offset = 8192, .length = 1},
          LockCall{.file = kHigh}};
}

std::vector<OperationNeed> needs_of(const Operation& operation, const std::vector<FileId>& named) {
  std::vector<OperationNeed> needs = first_needs(kCaller, operation);
  for (OperationNeed& need : second_needs(kCaller, operation, named)) needs.push_back(need);
  return needs;
}

TEST(OperationNeedsTest, EveryOperationTakesItsNeedsInTheOneOrder) {
  for (const std::vector<FileId>& named :
       {std::vector<FileId>{}, {kMiddle}, {kLow, kMiddle}, {kMiddle, kMiddle}}) {
    for (const Operation& operation : all_operations()) {
      const auto needs = needs_of(operation, named);
      auto before = [](const OperationNeed& a, const OperationNeed& b) {
        return std::tie(a.resource, a.file) < std::tie(b.resource, b.file);
      };
      EXPECT_TRUE(std::is_sorted(needs.begin(), needs.end(), before))
          << "operation " << operation.index();
      // Taking one piece twice would wait for itself.
      EXPECT_EQ(std::adjacent_find(needs.begin(), needs.end(),
                                   [&](const auto& a, const auto& b) { return !before(a, b); }),
                needs.end())
          << "operation " << operation.index();
    }
  }
}

TEST(OperationNeedsTest, EveryChangeTakesSomethingExclusiveUnlessItOnlyLooksUp) {
  for (const Operation& operation : all_operations()) {
    const bool changes = !is_quick(operation) &&
                         !std::holds_alternative<ReadDirectoryCall>(operation) &&
                         !std::holds_alternative<SyncCall>(operation) &&
                         !std::holds_alternative<ListXattrCall>(operation) &&
                         !std::holds_alternative<SeekCall>(operation) &&
                         !std::holds_alternative<LockCall>(operation);
    const auto needs = needs_of(operation, {});
    const bool exclusive = std::any_of(needs.begin(), needs.end(),
                                       [](const OperationNeed& n) { return n.mode == Exclusive; });
    EXPECT_EQ(exclusive, changes) << "operation " << operation.index();
  }
}

TEST(OperationNeedsTest, ARenameExcludesBothDirectoriesAndTellsEveryFileItTouches) {
  const RenameCall call{.from_dir = kHigh, .from = "a", .to_dir = kLow, .to = "b"};
  const auto first = first_needs(kCaller, call);
  ASSERT_EQ(first.size(), 2u);
  EXPECT_EQ(first[0].file, kLow);
  EXPECT_EQ(first[1].file, kHigh);
  for (const auto& need : first) {
    EXPECT_EQ(need.mode, Exclusive);
    EXPECT_EQ(need.except, kCaller) << "the caller keeps its names and sees to them itself";
  }
  const auto names = names_of(call);
  ASSERT_EQ(names.size(), 2u);
  EXPECT_EQ(names[0].name, "a");
  EXPECT_EQ(names[1].dir, kLow);
  const auto second = second_needs(kCaller, call, {kMiddle});
  ASSERT_EQ(second.size(), 3u);
  EXPECT_EQ(second[1].file, kMiddle);
  EXPECT_EQ(second[1].except, std::nullopt) << "its attributes change under the caller, too";
}

TEST(OperationNeedsTest, CreatingWhatExistsOnlyLooksItUp) {
  const CreateCall call{.dir = kHigh, .name = "a"};
  EXPECT_TRUE(second_needs(kCaller, call, {kMiddle}).empty());
  const auto fresh = second_needs(kCaller, call, {});
  ASSERT_EQ(fresh.size(), 1u);
  EXPECT_EQ(fresh[0].file, kHigh);
}

TEST(OperationNeedsTest, LookingUpLeavesTheDirectoryToItsReaders) {
  const auto needs = needs_of(LookupCall{.dir = kHigh, .name = "a"}, {});
  ASSERT_EQ(needs.size(), 1u);
  EXPECT_EQ(needs[0].resource, Resource::Entries);
  EXPECT_EQ(needs[0].mode, Shared);
}

TEST(OperationNeedsTest, ATruncationTakesThePagesFromTheNewEndOnButNotFromItsCaller) {
  const auto needs = needs_of(SetAttributesCall{.file = kHigh, .has_size = true, .size = 5000}, {});
  ASSERT_EQ(needs.size(), 2u);
  EXPECT_EQ(needs[0].resource, Resource::Attributes);
  EXPECT_EQ(needs[1].resource, Resource::Data);
  EXPECT_EQ(needs[1].range, pages_from(1)) << "page 1 is cut inside";
  EXPECT_EQ(needs[0].except, std::nullopt)
      << "what the caller remembers of the file's attributes is void";
  EXPECT_EQ(needs[1].except, kCaller);
  for (const auto& need : needs)
    EXPECT_EQ(need.truncation_of, kCaller)
        << "the home knows whose it is when that node is busy (B1)";
  EXPECT_FALSE(
      needs_of(SetAttributesCall{.file = kHigh, .has_size = true, .size = ~uint64_t{0}}, {})[1]
          .range.empty())
      << "whatever size is asked for, the range makes sense";
  EXPECT_EQ(needs_of(SetAttributesCall{.file = kHigh, .has_mode = true}, {}).size(), 1u);
}

TEST(OperationNeedsTest, SeekingHolesWantsEverybodysDirtyBytesOnDisk) {
  const auto needs = needs_of(SeekCall{.file = kHigh, .offset = 0, .whence = 3}, {});
  ASSERT_EQ(needs.size(), 2u);
  EXPECT_EQ(needs[1].range, PageRange::all());
  EXPECT_EQ(needs[1].mode, Shared);
}

TEST(OperationNeedsTest, AChangeFromOutsideTakesWhatItMadeOldFromEveryNode) {
  const auto all = outside_needs(kHigh, OutsideChange::everything());
  ASSERT_EQ(all.size(), 3u);
  EXPECT_EQ(all[0].resource, Resource::Entries);
  EXPECT_EQ(all[1].resource, Resource::Attributes);
  EXPECT_EQ(all[2].resource, Resource::Data);
  EXPECT_EQ(all[2].range, PageRange::all());
  for (const auto& need : all) {
    EXPECT_EQ(need.mode, Exclusive);
    EXPECT_EQ(need.except, std::nullopt) << "nobody has seen to its own caches";
  }
  const auto chmod = outside_needs(kHigh, {.attributes = true});
  ASSERT_EQ(chmod.size(), 1u);
  EXPECT_EQ(chmod[0].resource, Resource::Attributes);
}

TEST(OperationNeedsTest, ACopyTakesTheBytesOfItsSourceAndAllOfWhatItChanges) {
  const auto needs = needs_of(
      CopyCall{.from = kHigh, .file = kLow, .from_offset = 4096, .offset = 5000, .length = 8192},
      {});
  ASSERT_EQ(needs.size(), 3u);
  EXPECT_EQ(needs[0].resource, Resource::Attributes);
  EXPECT_EQ(needs[0].file, kLow);
  EXPECT_EQ(needs[1].file, kLow);
  EXPECT_EQ(needs[1].mode, Exclusive);
  EXPECT_EQ(needs[1].range, pages(1, 3));
  EXPECT_EQ(needs[2].file, kHigh);
  EXPECT_EQ(needs[2].mode, Shared);
  EXPECT_EQ(needs[2].range, pages_from(1)) << "what makes the source longer must be on disk, too";
  for (const auto& need : needs) EXPECT_EQ(need.except, std::nullopt);
}

TEST(OperationNeedsTest, CapabilitiesAreReadAndSetWhenAllThatWasWrittenIsOnDisk) {
  const auto needs = needs_of(GetXattrCall{.file = kLow, .name = "security.capability"}, {});
  ASSERT_EQ(needs.size(), 1u);
  EXPECT_EQ(needs[0].resource, Resource::Data);
  EXPECT_EQ(needs[0].mode, Shared);
  EXPECT_EQ(needs[0].range, PageRange::all());
  EXPECT_TRUE(needs_of(GetXattrCall{.file = kLow, .name = "user.a"}, {}).empty());
  const auto set = needs_of(SetXattrCall{.file = kLow, .name = "security.capability"}, {});
  ASSERT_EQ(set.size(), 2u);
  EXPECT_EQ(set[0].resource, Resource::Attributes);
  EXPECT_EQ(set[1].range, PageRange::all());
}

TEST(OperationNeedsTest, WhatIsDoneTwiceWithoutHarmIsTold) {
  EXPECT_TRUE(is_repeatable(LookupCall{}));
  EXPECT_TRUE(is_repeatable(SetAttributesCall{.clear_suid = true}));
  EXPECT_FALSE(is_repeatable(SetAttributesCall{.has_size = true}));
  EXPECT_FALSE(is_repeatable(SetAttributesCall{.has_mode = true}));
  EXPECT_TRUE(is_repeatable(SyncCall{}));
  EXPECT_FALSE(is_repeatable(CreateCall{}));
  EXPECT_FALSE(is_repeatable(RenameCall{}));
  EXPECT_FALSE(is_repeatable(RemoveCall{}));
  EXPECT_FALSE(is_repeatable(LinkCall{}));
  EXPECT_FALSE(is_repeatable(AllocateCall{}));
  EXPECT_FALSE(is_repeatable(CopyCall{}));
}

TEST(OperationNeedsTest, ATruncationIsMadeAgainOnlyWhereTheHomeKnowsWhatItDid) {
  const Operation truncation = SetAttributesCall{.has_size = true};
  EXPECT_TRUE(is_made_again(truncation, true));
  EXPECT_FALSE(is_made_again(truncation, true, true)) << "the home may not know that it was made";
  EXPECT_FALSE(is_made_again(truncation, false)) << "others may have written since";
  EXPECT_TRUE(is_made_again(SetAttributesCall{.has_mode = true}, true));
  EXPECT_FALSE(is_made_again(SetAttributesCall{.has_mode = true}, false));
  EXPECT_TRUE(is_made_again(SyncCall{}, false));
  EXPECT_TRUE(is_made_again(SyncCall{}, true, true));
}

TEST(OperationNeedsTest, OnlyWhatLetsGoIsNeverRefusedForLackOfRoom) {
  EXPECT_TRUE(gives_up(LeaveCall{}));
  EXPECT_TRUE(gives_up(LockCall{.action = LockAction::Release}));
  EXPECT_TRUE(gives_up(LockCall{.action = LockAction::Cancel}));
  EXPECT_TRUE(gives_up(LockCall{.action = LockAction::Try, .type = LockType::Unlock}));
  EXPECT_FALSE(gives_up(LockCall{.action = LockAction::Wait, .type = LockType::Write}));
  for (const Operation& operation : all_operations())
    if (!std::holds_alternative<LockCall>(operation)) {
      EXPECT_FALSE(gives_up(operation));
    }
}

TEST(MessagesTest, EveryMessageGoesWithTheQueueOfItsFile) {
  EXPECT_EQ(file_of(ToHome{LeaseRequest{.file = kLow}}), kLow);
  EXPECT_EQ(file_of(ToHome{RecallAck{.file = kLow}}), kLow);
  EXPECT_EQ(file_of(ToHome{Flush{.file = kLow}}), kLow);
  EXPECT_EQ(file_of(ToHome{Fetch{.file = kLow}}), kLow);
  EXPECT_EQ(file_of(ToHome{Release{.file = kLow}}), kLow);
  EXPECT_EQ(file_of(ToHome{Call{.operation = LinkCall{.file = kHigh, .dir = kLow}}}), kLow)
      << "the directory that changes";
  EXPECT_EQ(file_of(ToHome{Call{.operation = RenameCall{.from_dir = kHigh, .to_dir = kLow}}}),
            kHigh);
  for (const Operation& operation : all_operations()) {
    if (std::holds_alternative<LinkCall>(operation)) continue;
    EXPECT_EQ(file_of(operation), kHigh) << "operation " << operation.index();
  }
}

TEST(MessagesTest, ModesCoverAndSuitEachOtherAsDocumented) {
  for (LeaseMode mode : {None, Shared, Update, Exclusive}) {
    EXPECT_TRUE(covers(Exclusive, mode));
    EXPECT_TRUE(covers(mode, mode));
    EXPECT_TRUE(covers(mode, None));
    EXPECT_TRUE(compatible(mode, None));
    for (LeaseMode other : {None, Shared, Update, Exclusive})
      EXPECT_EQ(compatible(mode, other), compatible(other, mode));
  }
  EXPECT_TRUE(compatible(Shared, Shared));
  EXPECT_TRUE(compatible(Update, Update));
  EXPECT_FALSE(compatible(Shared, Update));
  EXPECT_FALSE(compatible(Exclusive, Exclusive));
  EXPECT_FALSE(covers(Shared, Update));
  EXPECT_FALSE(covers(Update, Shared));
}

}  // namespace
}  // namespace vremote::coherence
