// Changes that another process makes in the exported directory.
#include "store/outside_watch.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/fanotify.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <functional>
#include <map>

#include "store/test_support.h"

namespace vremote::store::test {
namespace {

using coherence::OutsideChange;

class OutsideWatchTest : public StoreTest {
 protected:
  void SetUp() override {
    StoreTest::SetUp();
    if (testing::Test::IsSkipped() || testing::Test::HasFatalFailure()) return;
    auto opened = OutsideWatch::open();
    if (!opened) GTEST_SKIP() << opened.error().what;
    watch = std::make_unique<OutsideWatch>(std::move(*opened));
    if (auto watched = watch->watch(*store); !watched) GTEST_SKIP() << watched.error().what;
  }

  // What is told of known files while `body` runs in another process (or here).
  std::map<FileId, OutsideChange> told(const std::function<bool()>& body, bool by_other = true) {
    if (by_other) {
      const pid_t child = ::fork();
      if (child == 0) ::_exit(body() ? 0 : 1);
      int status = 0;
      ::waitpid(child, &status, 0);
      EXPECT_EQ(status, 0) << "the other process could not do it";
    } else {
      EXPECT_TRUE(body());
    }
    OutsideEvents events;
    while (watch->read(events)) {
    }
    EXPECT_FALSE(events.lost);
    std::map<FileId, OutsideChange> changes;
    for (const auto& event : events.events)
      if (auto file = store->find(event.handle)) changes[*file] |= event.change;
    return changes;
  }
  std::string at(const char* name) const { return dir / name; }

  std::unique_ptr<OutsideWatch> watch;
};
INSTANTIATE_TEST_SUITE_P(, OutsideWatchTest, testing::Values(true), how);

constexpr OutsideChange kOfAttributes{.attributes = true};
constexpr OutsideChange kOfData{.attributes = true, .data = true};
constexpr OutsideChange kOfEntries{.entries = true, .attributes = true};

TEST_P(OutsideWatchTest, WritesOfAnotherProcessAreToldAndOursAreNot) {
  const FileId f = make("f", "old");
  EXPECT_TRUE(told([&] { return put(f, 0, "ours") == 0; }, false).empty());
  auto changes = told([&] { return std::ofstream(at("f")) << "theirs", true; });
  EXPECT_EQ(changes.at(f), kOfData);
  EXPECT_EQ(changes.size(), 1u);
  EXPECT_EQ(told([&] { return ::truncate(at("f").c_str(), 2) == 0; }).at(f), kOfData);
  EXPECT_EQ(told([&] { return ::chmod(at("f").c_str(), 0600) == 0; }).at(f), kOfAttributes);
}

TEST_P(OutsideWatchTest, NamesTellTheirDirectoriesAndTheirFiles) {
  const FileId root = store->root();
  const FileId f = make("f"), g = make("g");
  EXPECT_EQ(told([&] { return ::link(at("f").c_str(), at("h").c_str()) == 0; }),
            (std::map<FileId, OutsideChange>{{root, kOfEntries}, {f, kOfAttributes}}));
  EXPECT_EQ(told([&] { return ::unlink(at("h").c_str()) == 0; }),
            (std::map<FileId, OutsideChange>{{root, kOfEntries}, {f, kOfAttributes}}));
  auto replaced = told([&] { return ::rename(at("f").c_str(), at("g").c_str()) == 0; });
  EXPECT_EQ(replaced.at(root), kOfEntries);
  EXPECT_TRUE(replaced.at(f).attributes);
  EXPECT_TRUE(replaced.at(g).attributes) << "its last name is gone";
  EXPECT_EQ(told([&] { return ::mkdir(at("d").c_str(), 0755) == 0; }).at(root), kOfEntries);
  const FileId d = lookup("d")->file;
  EXPECT_EQ(told([&] { return std::ofstream(at("d/x")) << "x", true; }).at(d), kOfEntries);
  EXPECT_EQ(told([&] { return ::unlink(at("d/x").c_str()) == 0; }).at(d), kOfEntries);
  auto removed = told([&] { return ::rmdir(at("d").c_str()) == 0; });
  EXPECT_EQ(removed.at(root), kOfEntries);
  EXPECT_EQ(removed.at(d), OutsideChange::everything());
}

TEST_P(OutsideWatchTest, WhatMadeNoSenseCountsAsLost) {
  struct {
    fanotify_event_metadata event;
    std::byte rest[40];
  } buffer{};
  const std::span<const std::byte> bytes = std::as_bytes(std::span(&buffer, 1));
  auto reads = [&](uint32_t length, uint16_t metadata, uint8_t version, size_t size) {
    buffer.event.event_len = length;
    buffer.event.metadata_len = metadata;
    buffer.event.vers = version;
    OutsideEvents out;
    read_events(bytes.first(size), 1, out);
    EXPECT_TRUE(out.events.empty());
    return out.lost;
  };
  constexpr uint16_t kHead = sizeof(fanotify_event_metadata);
  constexpr uint8_t kVersion = FANOTIFY_METADATA_VERSION;
  EXPECT_FALSE(reads(kHead, kHead, kVersion, kHead));
  EXPECT_TRUE(reads(kHead, kHead, kVersion, kHead - 1)) << "cut";
  EXPECT_TRUE(reads(kHead + 41, kHead, kVersion, kHead + 40)) << "longer than the buffer";
  EXPECT_TRUE(reads(kHead, kHead + 1, kVersion, kHead)) << "its head longer than itself";
  EXPECT_TRUE(reads(0, kHead, kVersion, kHead)) << "would never end";
  EXPECT_TRUE(reads(kHead, kHead, kVersion + 1, kHead));
  buffer.event.mask = FAN_Q_OVERFLOW;
  EXPECT_TRUE(reads(kHead, kHead, kVersion, kHead));
  // A handle that claims to be longer than its record.
  buffer.event.mask = FAN_MODIFY;
  fanotify_event_info_header header{FAN_EVENT_INFO_TYPE_FID, 0, 40};
  std::memcpy(buffer.rest, &header, sizeof header);
  const uint32_t claimed = 1000;
  std::memcpy(buffer.rest + offsetof(fanotify_event_info_fid, handle), &claimed, sizeof claimed);
  EXPECT_FALSE(reads(kHead + 40, kHead, kVersion, kHead + 40));
}

}  // namespace
}  // namespace vremote::store::test
