// What each message of a node without the right comes to.
#include "node/config/access.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <set>

namespace vremote::node {
namespace {

using namespace coherence;

const FileId kFile{.export_index = 0, .generation = 1, .inode = 7};
const FileId kDir{.export_index = 0, .generation = 2, .inode = 8};
const FileId kOther{.export_index = 1, .generation = 3, .inode = 9};

std::vector<ToHome> reads() {
  auto call = [](Operation operation) {
    return Call{.call = 5, .operation = std::move(operation)};
  };
  return {LeaseRequest{.file = kFile, .request = 5, .mode = LeaseMode::Shared},
          Fetch{.file = kFile, .fetch = 5},
          call(LookupCall{kDir, "a"}),
          call(ReadLinkCall{kFile}),
          call(ReadDirectoryCall{.dir = kDir}),
          call(StatFsCall{kFile}),
          call(SyncCall{.file = kFile}),
          call(GetXattrCall{kFile, "user.a"}),
          call(ListXattrCall{kFile}),
          call(SeekCall{.file = kFile}),
          call(LockCall{.file = kFile}),
          call(ReclaimCall{.file = kFile})};
}
std::vector<ToHome> writes() {
  auto call = [](Operation operation) {
    return Call{.call = 5, .operation = std::move(operation)};
  };
  return {
      LeaseRequest{.file = kFile, .request = 5, .mode = LeaseMode::Exclusive},
      LeaseRequest{
          .file = kFile, .request = 5, .resource = Resource::Attributes, .mode = LeaseMode::Update},
      Flush{.file = kFile, .flush = 5},
      call(CreateCall{.dir = kDir, .name = "a"}),
      call(SymlinkCall{kDir, "a", "b"}),
      call(LinkCall{kFile, kDir, "a"}),
      call(RemoveCall{.dir = kDir, .name = "a"}),
      call(RenameCall{kDir, "a", kDir, "b", 0}),
      call(SetAttributesCall{.file = kFile}),
      call(SetXattrCall{.file = kFile, .name = "user.a"}),
      call(RemoveXattrCall{kFile, "user.a"}),
      call(AllocateCall{.file = kFile}),
      call(CopyCall{.from = kFile, .file = kFile})};
}

// The errno of the answer, which must carry the number that was asked with; 0 when it passes.
int error_of(const NodeRights& rights, ToHome message) {
  auto verdict = rights.judge(message);
  if (std::holds_alternative<NodeRights::Pass>(verdict)) return 0;
  if (std::holds_alternative<NodeRights::Drop>(verdict)) return -1;
  const ToAgent& answer = std::get<ToAgent>(verdict);
  if (auto* m = std::get_if<Grant>(&answer)) {
    EXPECT_EQ(m->request, 5u);
    EXPECT_EQ(m->mode, LeaseMode::None);
    return m->error;
  }
  if (auto* m = std::get_if<FlushAck>(&answer)) return m->flush == 5 ? m->error : -2;
  if (auto* m = std::get_if<FetchReply>(&answer)) return m->fetch == 5 ? m->error : -2;
  const Reply& reply = std::get<Reply>(answer);
  EXPECT_EQ(reply.call, 5u);
  return reply.error;
}

NodeRights rights(ExportAccess access, const std::string& node = "n1") {
  return NodeRights({std::move(access), ExportAccess{}}, node);
}

TEST(AccessTest, WithoutRulesEverythingPasses) {
  for (const auto& messages : {reads(), writes()})
    for (const ToHome& m : messages) EXPECT_EQ(error_of(rights({}), m), 0);
}

TEST(AccessTest, TheSamplesAreEveryOperationThereIs) {
  std::set<size_t> kinds;
  for (const auto& messages : {reads(), writes()})
    for (const ToHome& m : messages)
      if (auto* call = std::get_if<Call>(&m)) kinds.insert(call->operation.index());
  EXPECT_EQ(kinds.size(), std::variant_size_v<Operation> - 1) << "all but LeaveCall";
}

TEST(AccessTest, WhoMayNotReadGetsNothing) {
  const NodeRights none = rights({.readers = {{"n2"}}});
  for (const auto& messages : {reads(), writes()})
    for (const ToHome& m : messages) EXPECT_EQ(error_of(none, m), EACCES);
  EXPECT_EQ(error_of(none, RecallAck{.file = kFile}), -1);
  EXPECT_EQ(error_of(none, Release{.file = kFile}), -1);
  EXPECT_EQ(error_of(none, SizeShown{.file = kFile}), -1);
  EXPECT_EQ(error_of(none, FollowWait{.file = kFile}), -1);
  EXPECT_EQ(error_of(none, Call{.operation = LeaveCall{kFile}}), 0) << "whoever goes may say so";
  EXPECT_FALSE(none.may_read(0));
  EXPECT_TRUE(none.may_read(1));
  EXPECT_EQ(error_of(rights({.readers = {{"n2"}}}, "n2"), Fetch{.file = kFile}), 0);
}

TEST(AccessTest, WhoMayOnlyReadChangesNothing) {
  for (const NodeRights& reader :
       {rights({.read_only = true}), rights({.writers = {{"n2"}}}), rights({.writers = {{}}}),
        NodeRights::own({{.read_only = true}, {}})}) {
    for (const ToHome& m : reads()) EXPECT_EQ(error_of(reader, m), 0);
    for (const ToHome& m : writes()) EXPECT_EQ(error_of(reader, m), EROFS);
  }
  for (const ToHome& m : writes()) EXPECT_EQ(error_of(rights({.writers = {{"n2"}}}, "n2"), m), 0);
  // The lists are for others than the node itself.
  for (const ToHome& m : writes())
    EXPECT_EQ(error_of(NodeRights::own({{.readers = {{}}, .writers = {{}}}, {}}), m), 0);
}

TEST(AccessTest, WhatAReaderAnnouncesNobodyIsShown) {
  const NodeRights reader = rights({.read_only = true});
  ToHome announce = Announce{.file = kFile, .announcement = 3, .size = 9};
  const NodeRights::Verdict verdict = reader.judge(announce);
  ASSERT_TRUE(std::holds_alternative<ToAgent>(verdict));
  EXPECT_EQ(std::get<Announced>(std::get<ToAgent>(verdict)).announcement, 3u);
}

TEST(AccessTest, WhatAReaderSaysToHaveChangedInItsAcksIsLeftOut) {
  const NodeRights reader = rights({.read_only = true});
  ToHome ack = RecallAck{
      .file = kFile, .recall = 3, .attributes = {.has_size = true, .has_mtime = true, .size = 9}};
  ASSERT_TRUE(std::holds_alternative<NodeRights::Pass>(reader.judge(ack)));
  EXPECT_EQ(std::get<RecallAck>(ack).attributes, DirtyAttributes{});
  EXPECT_EQ(std::get<RecallAck>(ack).recall, 3u);
}

TEST(AccessTest, NoOperationReachesIntoAnotherExport) {
  const NodeRights all = rights({});
  auto error = [&](Operation operation) {
    return error_of(all, Call{.call = 5, .operation = std::move(operation)});
  };
  EXPECT_EQ(error(RenameCall{kDir, "a", kOther, "b", 0}), EXDEV);
  EXPECT_EQ(error(LinkCall{kOther, kDir, "a"}), EXDEV);
  EXPECT_EQ(error(CopyCall{.from = kOther, .file = kFile}), EXDEV);
  // Nor to one there is not.
  FileId nowhere = kFile;
  nowhere.export_index = 77;
  EXPECT_EQ(error(RenameCall{kDir, "a", nowhere, "b", 0}), EXDEV);
}

TEST(AccessTest, RootOfAnotherNodeIsNobody) {
  const ExportAccess access{.root_squash = true, .anonymous_uid = 500, .anonymous_gid = 600};
  auto caller = [&](const NodeRights& of, Caller as) {
    ToHome message = Call{.caller = std::move(as), .operation = LookupCall{kDir, "a"}};
    EXPECT_TRUE(std::holds_alternative<NodeRights::Pass>(of.judge(message)));
    return std::get<Call>(message).caller;
  };
  const Caller root = caller(rights(access), {.uid = 0, .gid = 0, .groups = {0, 4}});
  EXPECT_EQ(root.uid, 500u);
  EXPECT_EQ(root.gid, 600u);
  EXPECT_TRUE(root.groups.empty());
  const Caller user = caller(rights(access), {.uid = 1000, .gid = 0, .groups = {0, 4}});
  EXPECT_EQ(user.uid, 1000u);
  EXPECT_EQ(user.gid, 600u);
  EXPECT_EQ(user.groups, (std::vector<uint32_t>{4}));
  EXPECT_EQ(caller(NodeRights::own({access, {}}), {.uid = 0}).uid, 0u);
}

}  // namespace
}  // namespace vremote::node
