#include "node/handover/handover.h"

#include <gtest/gtest.h>

#include <random>

#include "wire/codec.h"

namespace vremote::node {
namespace {

using namespace coherence;

constexpr FileId kFile{2, 7, 1234};

Handover sample() {
  Handover h;
  h.node = "n1";
  h.cluster = "lab";
  h.mount_path = "/vremote";
  h.incarnation = 77;
  h.upgrades = 3;
  h.began_ns = 12345;
  h.mount.connection = 9;
  h.mount.capabilities.resend = true;
  h.mount.capabilities.max_pages = 256;
  h.mount.channels = {5, 6};
  h.mount.guardians_channel = 7;
  h.mount.next_handle = 40;
  h.mount.next_directory = 4;
  h.mount.locked = {{36, 2, LockKind::Flock, 99}};
  h.mount.locked_nodes = {2};
  h.mount.generation = 6;
  h.mount.lost = {{40, 11, LockKind::Flock, 98}};
  h.mount.directories = {3};
  h.next_node = 12;
  h.guardian = Handover::Guardian{8, 9, 4711};
  h.held = {{kFile, 10, true}};
  Handover::Home own;
  own.name = "n1";
  own.kept.locks = {{.file = kFile,
                     .action = LockAction::Reclaim,
                     .kind = LockKind::Range,
                     .type = LockType::Write,
                     .owner = 5,
                     .start = 0,
                     .end = 10,
                     .pid = 42}};
  Handover::Home other;
  other.name = "n2";
  other.kept.next_id = 1000;
  other.kept.next_call = 2000;
  KeptFile file{.file = kFile,
                .opens = 3,
                .reading_opens = 2,
                .mapping_opens = 1,
                .seen = 17,
                .told_in_use = true,
                .known_to_kernel = true,
                .untold_time = true,
                .errors = {5, 9, 300, {40, 44}},
                .unsynced = true,
                .unsynced_since = 8,
                .kernel_size_most = 8192,
                .told_access = Access{0100644, 1, 2},
                .recalls = {},
                .shows = {}};
  file.recalls = {{kFile, 31, Resource::Data, LeaseMode::Shared, {3, 9}}};
  file.shows = {{kFile, 32, 4096}};
  other.kept.files = {file};
  other.kept.calls = {
      {Call{.call = 55, .caller = {1, 2, {3}}, .operation = SyncCall{kFile, true}}, 202}};
  other.kept.syncs = {{202, 7, UINT64_MAX}, {204, 8, 9}};
  other.kept.next_sync = 10;
  net::KeptSession session{
      .epoch = 8, .welcomed = true, .incarnation = 9, .session = 4, .lanes = {}};
  session.lanes.push_back({.received = 12, .first = 3, .queue = {}});
  const std::string text = "bytes";
  session.lanes[0].queue.push_back(*wire::encode(
      ToHome(Flush{.file = kFile,
                   .flush = 6,
                   .extents = {{4096, Bytes::copy_of(std::as_bytes(std::span(text)))}},
                   .attributes = {}})));
  other.session = session;
  other.exports = {
      {.name = "e", .export_index = 2, .root = kFile, .read_only = true, .path = "/x"}};
  other.bond = {.home_incarnation = 9, .was_broken = false, .bringing_back = true, .disk_life = 77};
  h.homes = {own, other};
  h.inodes = {{2, 1, 0, kFile}, {11, 5, 1, kFile}};
  return h;
}

std::vector<std::byte> written(const Handover& h) {
  auto bytes = encode(h);
  EXPECT_TRUE(bytes) << bytes.error().what;
  return bytes ? *bytes : std::vector<std::byte>();
}

std::string why_refused(const Handover& h) {
  auto found = decode_handover(written(h));
  return found ? std::string("it is not") : found.error().what;
}

TEST(HandoverTest, WhatIsLeftIsFound) {
  const Handover h = sample();
  auto bytes = encode(h);
  ASSERT_TRUE(bytes) << bytes.error().what;
  auto found = decode_handover(*bytes);
  ASSERT_TRUE(found) << found.error().what;
  EXPECT_EQ(found->node, "n1");
  EXPECT_EQ(found->incarnation, 77u);
  EXPECT_EQ(found->upgrades, 3u);
  EXPECT_EQ(found->mount.channels, h.mount.channels);
  EXPECT_TRUE(found->mount.capabilities.resend);
  ASSERT_EQ(found->mount.locked.size(), 1u);
  EXPECT_EQ(found->mount.locked[0].kind, LockKind::Flock);
  EXPECT_EQ(found->mount.locked[0].node, 2u);
  EXPECT_EQ(found->mount.generation, 6u);
  ASSERT_EQ(found->mount.lost.size(), 1u);
  EXPECT_EQ(found->mount.lost[0].handle, 40u);
  EXPECT_EQ(found->mount.lost[0].node, 11u);
  EXPECT_EQ(found->mount.lost[0].kind, LockKind::Flock);
  EXPECT_EQ(found->mount.lost[0].owner, 98u);
  EXPECT_EQ(found->mount.directories, h.mount.directories);
  EXPECT_EQ(found->descriptors(), (std::vector<int>{5, 6, 7, 8, 9, 10}));
  ASSERT_EQ(found->homes.size(), 2u);
  EXPECT_FALSE(found->homes[0].session);
  ASSERT_EQ(found->homes[0].kept.locks.size(), 1u);
  EXPECT_EQ(found->homes[0].kept.locks[0].owner, 5u);
  const Handover::Home& other = found->homes[1];
  ASSERT_EQ(other.kept.files.size(), 1u);
  const KeptFile& file = other.kept.files[0];
  EXPECT_EQ(file.file, kFile);
  EXPECT_EQ(file.seen, 17u);
  EXPECT_TRUE(file.unsynced);
  EXPECT_EQ(file.unsynced_since, 8u);
  EXPECT_EQ(file.errors, (FileErrors::Kept{5, 9, 300, {40, 44}}));
  EXPECT_EQ(file.told_access, (Access{0100644, 1, 2}));
  ASSERT_EQ(file.recalls.size(), 1u);
  EXPECT_EQ(file.recalls[0].range, (PageRange{3, 9}));
  ASSERT_EQ(file.shows.size(), 1u);
  ASSERT_EQ(other.kept.calls.size(), 1u);
  EXPECT_EQ(other.kept.calls[0].call.call, 55u);
  EXPECT_EQ(other.kept.calls[0].request, 202u);
  ASSERT_TRUE(other.session);
  ASSERT_EQ(other.session->lanes.size(), 1u);
  EXPECT_EQ(other.session->lanes[0].first, 3u);
  ASSERT_EQ(other.session->lanes[0].queue.size(), 1u);
  EXPECT_EQ(other.session->lanes[0].queue[0].bulk_size, 5u);
  EXPECT_EQ(other.exports, h.homes[1].exports);
  EXPECT_EQ(other.kept.syncs, h.homes[1].kept.syncs);
  EXPECT_EQ(other.kept.next_sync, 10u);
  EXPECT_EQ(other.bond.home_incarnation, 9u);
  EXPECT_TRUE(other.bond.bringing_back);
  EXPECT_EQ(other.bond.disk_life, 77u);
  ASSERT_EQ(found->inodes.size(), 2u);
  EXPECT_EQ(found->inodes[1].home, 1u);
}

TEST(HandoverTest, ARecordOfAnotherVersionIsRefusedAndSaysSo) {
  auto bytes = encode(sample());
  ASSERT_TRUE(bytes);
  // The only 1 that is the version: look for the place by trying.
  bool refused = false;
  for (size_t at = 0; at + 4 <= bytes->size() && !refused; at += 4) {
    uint32_t word = 0;
    std::memcpy(&word, bytes->data() + at, 4);
    if (word != kHandoverVersion) continue;
    std::vector<std::byte> changed = *bytes;
    word = 99;
    std::memcpy(changed.data() + at, &word, 4);
    auto found = decode_handover(changed);
    refused = !found && found.error().what.find("version 99") != std::string::npos;
  }
  EXPECT_TRUE(refused);
}

TEST(HandoverTest, ADamagedRecordIsAnErrorAndNothingElse) {
  auto bytes = encode(sample());
  ASSERT_TRUE(bytes);
  for (size_t length = 0; length < bytes->size(); length += 7)
    EXPECT_FALSE(decode_handover(std::span(*bytes).first(length)));
  std::mt19937 random(1);
  size_t refused = 0;
  for (int i = 0; i < 3000; ++i) {
    std::vector<std::byte> changed = *bytes;
    for (int k = 0; k < 3; ++k)
      changed[random() % changed.size()] = static_cast<std::byte>(random());
    refused += decode_handover(changed) ? 0 : 1;
  }
  EXPECT_GT(refused, 100u);
}

TEST(HandoverTest, WhatCannotBeIsRefused) {
  EXPECT_EQ(why_refused(sample()), "it is not");
  Handover h = sample();
  h.mount.channels = {1};  // standard output
  EXPECT_NE(why_refused(h).find("a descriptor"), std::string::npos) << why_refused(h);
  h = sample();
  h.held[0].descriptor = 5;  // a channel's
  EXPECT_NE(why_refused(h).find("a descriptor"), std::string::npos) << why_refused(h);
  h = sample();
  h.inodes[0].home = 2;
  EXPECT_NE(why_refused(h).find("an inode of no home"), std::string::npos) << why_refused(h);
  h = sample();
  h.homes[1].kept.files[0].opens = 1;
  EXPECT_NE(why_refused(h).find("handles of a file"), std::string::npos) << why_refused(h);
  h = sample();
  h.homes[1].kept.syncs[0].asked = 10;
  EXPECT_NE(why_refused(h).find("an fsync"), std::string::npos) << why_refused(h);
  h = sample();
  h.homes[1].kept.files[0].errors.at = 11;
  EXPECT_NE(why_refused(h).find("a loss"), std::string::npos) << why_refused(h);
}

TEST(HandoverTest, ItGoesThroughMemory) {
  const auto bytes = written(sample());
  auto memory = write_handover(bytes);
  ASSERT_TRUE(memory) << memory.error().what;
  auto found = read_handover(*memory);
  ASSERT_TRUE(found) << found.error().what;
  EXPECT_EQ(found->node, "n1");
}

}  // namespace
}  // namespace vremote::node
