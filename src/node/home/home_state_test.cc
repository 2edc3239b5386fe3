#include "node/home/home_state.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>

namespace vremote::node {
namespace {

std::set<uint64_t> nobody() { return {}; }
std::set<uint64_t> seven_and_eight() { return {7, 8}; }

class HomeStateTest : public testing::Test {
 protected:
  HomeStateTest() {
    char name[] = "/tmp/vremote-state-XXXXXX";
    directory_ = ::mkdtemp(name);
  }
  ~HomeStateTest() override { std::filesystem::remove_all(directory_); }
  std::string path(const std::string& name) const { return directory_ + "/" + name; }
  std::string directory_;
};

TEST_F(HomeStateTest, SessionsComeBack) {
  const SessionsFile written{.term_ms = 2000,
                             .members = {{"a", 1, 5}, {"b", ~uint64_t{0}, ~uint64_t{0}}}};
  ASSERT_TRUE(write_sessions(path("s"), written));
  auto read = read_sessions(path("s"));
  ASSERT_TRUE(read) << read.error().what;
  EXPECT_EQ(read->term_ms, 2000);
  EXPECT_EQ(read->members, written.members);
}

TEST_F(HomeStateTest, NoFileIsNoSession) {
  auto read = read_sessions(path("none"));
  ASSERT_TRUE(read);
  EXPECT_TRUE(read->members.empty());
}

TEST_F(HomeStateTest, ADamagedFileIsRefused) {
  ASSERT_TRUE(write_sessions(path("s"), {.term_ms = 2000, .members = {{"a", 1}}}));
  const auto size = std::filesystem::file_size(path("s"));
  // The last byte is only the end of the line.
  for (uintmax_t cut = 1; cut < size - 1; ++cut) {
    std::filesystem::resize_file(path("s"), cut);
    EXPECT_FALSE(read_sessions(path("s"))) << cut;
    ASSERT_TRUE(write_sessions(path("s"), {.term_ms = 2000, .members = {{"a", 1}}}));
  }
}

// A foreign peer may call itself so; it must not make the others be forgotten.
TEST_F(HomeStateTest, ANameMayHoldSpaces) {
  const SessionsFile written{.term_ms = 2000, .members = {{"a b 7", 1}, {" ", 2}, {"c", 3}}};
  ASSERT_TRUE(write_sessions(path("s"), written));
  auto read = read_sessions(path("s"));
  ASSERT_TRUE(read) << read.error().what;
  EXPECT_EQ(read->members, written.members);
}

TEST_F(HomeStateTest, WhatCannotBeReadIsNotTakenForNothing) {
  std::filesystem::create_directory(path("s"));
  EXPECT_FALSE(read_sessions(path("s")));
  std::filesystem::remove(path("s"));
  std::filesystem::create_symlink(path("s"), path("s"));
  EXPECT_FALSE(read_sessions(path("s")));
}

TEST_F(HomeStateTest, AFileBeyondAllBoundsIsNotReadAtAll) {
  ASSERT_TRUE(write_sessions(path("s"), {.term_ms = 2000, .members = {{"a", 1}}}));
  ASSERT_TRUE(read_sessions(path("s")));
  std::filesystem::resize_file(path("s"), uintmax_t{1} << 40);  // a hole
  EXPECT_FALSE(read_sessions(path("s")));
}

TEST_F(HomeStateTest, CallsOfAnEarlierIncarnationAreKnown) {
  {
    CallLog log;
    ASSERT_TRUE(log.open(path("c"), nobody));
    log.begin({7, 1}, 1);
    log.end({7, 1}, 17, 99);
    log.begin({7, 2}, 2);
    EXPECT_FALSE(log.earlier({7, 1})) << "not of this one";
  }
  CallLog log;
  ASSERT_TRUE(log.open(path("c"), nobody));
  ASSERT_TRUE(log.earlier({7, 1}));
  EXPECT_TRUE(log.earlier({7, 1})->ended);
  EXPECT_EQ(log.earlier({7, 1})->error, 17);
  EXPECT_EQ(log.earlier({7, 1})->value, 99u);
  ASSERT_TRUE(log.earlier({7, 2}));
  EXPECT_FALSE(log.earlier({7, 2})->ended) << "it may have been carried out";
  EXPECT_FALSE(log.earlier({7, 3}));
  EXPECT_FALSE(log.earlier({8, 1}));
}

// A node that is away meanwhile makes its calls again when it is back.
TEST_F(HomeStateTest, CallsAreKnownHoweverManyIncarnationsHaveComeSince) {
  {
    CallLog log;
    ASSERT_TRUE(log.open(path("c"), nobody));
    log.begin({7, 1}, 1);
    log.end({7, 1}, 0, 0);
  }
  for (uint64_t i = 2; i < 6; ++i) {
    CallLog log;
    ASSERT_TRUE(log.open(path("c"), nobody));
    for (uint64_t call = 1; call < i; ++call) {
      ASSERT_TRUE(log.earlier({7, call}));
      EXPECT_TRUE(log.earlier({7, call})->ended);
    }
    log.begin({7, i}, i);
    log.end({7, i}, 0, 0);
  }
}

// Makes a new file necessary, some times.
constexpr uint64_t kMany = 150'000;
void make_many(CallLog& log, uint64_t incarnation, uint64_t first = 1) {
  for (uint64_t call = first; call < first + kMany; ++call) {
    log.begin({incarnation, call}, call);
    log.end({incarnation, call}, 0, 0);
  }
}

// Its node is cut off, and makes it again when it is back.
TEST_F(HomeStateTest, ACallIsKnownUntilItsNodeHasHeardHowManyOthersMakeMeanwhile) {
  {
    CallLog log;
    ASSERT_TRUE(log.open(path("c"), seven_and_eight));
    log.begin({7, 3}, 3);
    log.end({7, 3}, 0, 0);
    log.begin({7, 5}, 4);
    log.end({7, 5}, EEXIST, 0);
    log.begin({7, 6}, 4);
  }
  for (uint64_t round = 0; round < 2; ++round) {
    CallLog log;
    ASSERT_TRUE(log.open(path("c"), seven_and_eight));
    make_many(log, 8, 1 + round * kMany);
  }
  CallLog log;
  ASSERT_TRUE(log.open(path("c"), seven_and_eight));
  EXPECT_FALSE(log.earlier({7, 3})) << "it has heard of it";
  ASSERT_TRUE(log.earlier({7, 5}));
  EXPECT_TRUE(log.earlier({7, 5})->ended);
  EXPECT_EQ(log.earlier({7, 5})->error, EEXIST);
  ASSERT_TRUE(log.earlier({7, 6}));
  EXPECT_FALSE(log.earlier({7, 6})->ended);
  EXPECT_LT(std::filesystem::file_size(path("c")), 6u << 20);
}

TEST_F(HomeStateTest, WhoIsNotWaitedForMakesNoCallAgain) {
  {
    CallLog log;
    ASSERT_TRUE(log.open(path("c"), seven_and_eight));
    log.begin({9, 5}, 5);
    make_many(log, 8);
  }
  CallLog log;
  ASSERT_TRUE(log.open(path("c"), seven_and_eight));
  EXPECT_FALSE(log.earlier({9, 5}));
}

TEST_F(HomeStateTest, CallsAreNotNotedWithoutBounds) {
  for (uint64_t heard_below : {0, 1}) {  // of one that does not say what it has heard, or nothing
    for (uint64_t half = 0; half < 2; ++half) {
      CallLog log;
      ASSERT_TRUE(log.open(path("c"), seven_and_eight));
      for (uint64_t call = 1 + half * kMany / 2; call <= (half + 1) * kMany / 2; ++call) {
        log.begin({7, call}, heard_below);
        log.end({7, call}, 0, 0);
      }
    }
    CallLog log;
    ASSERT_TRUE(log.open(path("c"), seven_and_eight));
    EXPECT_TRUE(log.earlier({7, kMany}));
    EXPECT_TRUE(log.earlier({7, kMany - 65'535}));
    EXPECT_FALSE(log.earlier({7, kMany - 140'000}));
    EXPECT_LT(std::filesystem::file_size(path("c")), 12u << 20);
  }
}

// They began a new file with nothing, and kept the full one beside it.
TEST_F(HomeStateTest, WhatADaemonOfBeforeHasNotedIsTakenOver) {
  for (uint64_t call : {1, 2}) {
    if (call == 2) std::filesystem::rename(path("c"), path("c.1"));
    CallLog log;
    ASSERT_TRUE(log.open(path("c"), seven_and_eight));
    log.begin({7, call}, 1);
  }
  for (int daemon = 0; daemon < 2; ++daemon) {
    CallLog log;
    ASSERT_TRUE(log.open(path("c"), seven_and_eight));
    EXPECT_TRUE(log.earlier({7, 1}));
    EXPECT_TRUE(log.earlier({7, 2}));
    if (daemon == 0) make_many(log, 8);
  }
  EXPECT_FALSE(std::filesystem::exists(path("c.1")));
}

TEST_F(HomeStateTest, AFileThatWasNotBegunToTheEndCountsForNothing) {
  CallLog log;
  ASSERT_TRUE(log.open(path("c"), seven_and_eight));
  log.begin({7, 1}, 1);
  std::ofstream(path("c.new")) << "half of it";
  make_many(log, 8);
  CallLog next;
  ASSERT_TRUE(next.open(path("c"), seven_and_eight));
  EXPECT_TRUE(next.earlier({7, 1}));
  EXPECT_TRUE(next.earlier({8, kMany}));
}

TEST_F(HomeStateTest, WhoCannotBeginAFileSaysSo) {
  CallLog log;
  int losses = 0;
  ASSERT_TRUE(log.open(path("c"), seven_and_eight, [&] { ++losses; }));
  std::filesystem::create_directory(path("c.new"));
  make_many(log, 8);
  EXPECT_EQ(1, losses);
}

// Whoever does not know what was carried out must not do it again.
TEST_F(HomeStateTest, NotesThatAreDamagedAreALossAndHalfARecordIsNone) {
  int losses = 0;
  const auto open = [&] {
    CallLog log;
    ASSERT_TRUE(log.open(path("c"), seven_and_eight, [&] { ++losses; }));
    make_many(log, 2);
  };
  open();
  const uint64_t whole = std::filesystem::file_size(path("c"));
  std::filesystem::resize_file(path("c"), whole - 1);
  open();
  EXPECT_EQ(0, losses);
  {
    std::fstream file(path("c"), std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(whole / 2));
    file.write("damaged", 7);
  }
  open();
  EXPECT_EQ(1, losses);
  open();
  EXPECT_EQ(1, losses) << "what was behind is gone";
}

TEST_F(HomeStateTest, APipeIsNotWaitedFor) {
  ASSERT_EQ(0, ::mkfifo(path("c").c_str(), 0600));
  for (int i = 0; i < 2; ++i) {
    CallLog log;
    EXPECT_TRUE(log.open(path("c"), nobody));
    log.begin({7, 1}, 1);
  }
}

// The next incarnation could not tell a call that was carried out from one that was not.
TEST_F(HomeStateTest, WhoCannotNoteACallSaysSoBeforeItIsCarriedOut) {
  CallLog log;
  int losses = 0;
  ASSERT_TRUE(log.open(path("c"), nobody, [&] { ++losses; }));
  log.begin({7, 1}, 1);
  EXPECT_EQ(0, losses);
  struct rlimit before {};
  ASSERT_EQ(0, ::getrlimit(RLIMIT_FSIZE, &before));
  const auto handler = ::signal(SIGXFSZ, SIG_IGN);
  const struct rlimit none { std::filesystem::file_size(path("c")), before.rlim_max };
  ASSERT_EQ(0, ::setrlimit(RLIMIT_FSIZE, &none));
  log.begin({7, 2}, 2);
  ASSERT_EQ(0, ::setrlimit(RLIMIT_FSIZE, &before));
  ::signal(SIGXFSZ, handler);
  EXPECT_EQ(1, losses);
  log.begin({7, 3}, 3);
  EXPECT_EQ(1, losses) << "once";
}

TEST_F(HomeStateTest, EachDaemonThatIsWaitedForIsNotedOnceWithItsOldestSession) {
  using Members = std::vector<coherence::Grace::Member>;
  EXPECT_EQ(with_expected({{"a", 1, 5}, {"b", 2, 3}}, {{"a", 1, 3}, {"a", 1, 4}, {"b", 1, 9}}),
            (Members{{"a", 1, 3}, {"b", 2, 3}, {"b", 1, 9}}));
  EXPECT_EQ(with_expected({{"a", 1, 5}}, {}), (Members{{"a", 1, 5}}));
}

TEST_F(HomeStateTest, ARecordThatWasCutShortCountsForNothing) {
  {
    CallLog log;
    ASSERT_TRUE(log.open(path("c"), nobody));
    log.begin({7, 1}, 1);
    log.end({7, 1}, 0, 0);
  }
  std::filesystem::resize_file(path("c"), std::filesystem::file_size(path("c")) - 1);
  {
    CallLog log;
    ASSERT_TRUE(log.open(path("c"), nobody));
    ASSERT_TRUE(log.earlier({7, 1}));
    EXPECT_FALSE(log.earlier({7, 1})->ended);
    log.begin({7, 2}, 2);
  }
  CallLog log;
  ASSERT_TRUE(log.open(path("c"), nobody));
  EXPECT_TRUE(log.earlier({7, 2})) << "it hides nothing that came later";
}

}  // namespace
}  // namespace vremote::node
