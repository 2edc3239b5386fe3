#include "control/status.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "control/table.h"

namespace vremote::control {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

NodeStatus sample() {
  NodeStatus status;
  status.node = "node1";
  status.cluster = "lab";
  status.incarnation = 0xFEDCBA9876543210u;  // beyond what a double holds
  status.version = "0.1.0";
  status.pid = 42;
  status.uptime_ms = 61'000;
  status.mount = "/vremote";
  status.ready = true;
  status.tls = true;
  status.peers = {{"node2", "10.0.0.2:1104", true, 5000, 1, 2, 3, 4096, "", true},
                  {"node3", "10.0.0.3:1104", false, 7, 0, 0, 0, 0, "connection refused"}};
  status.exports = {{"data", "/srv/data", 7, 2}};
  status.leases.shared = {1, 2};
  status.leases.exclusive = {3, uint64_t{1} << 51};
  status.leases.granted_shared = {5, 6};
  status.leases.granted_exclusive = {7, 8};
  status.dirty_bytes = 1536;
  status.resident_ranges = 9;
  status.counters = {{"zulu", 1}, {"alpha_bytes", 2048}, {"never", 0}};
  status.latencies = {{"fill", {10, 1.5, 20, 3000, 4e6}}, {"idle", {}}};
  return status;
}

TEST(StatusTest, JsonHasTheKeysOthersRead) {
  const auto json = nlohmann::json::parse(to_json(sample()));
  EXPECT_EQ(json["ready"], true);
  EXPECT_EQ(json["peers"][0]["name"], "node2");
  EXPECT_EQ(json["peers"][0]["state"], "connected");
  EXPECT_EQ(json["peers"][1]["state"], "connecting");
  EXPECT_EQ(json["tls"], true);
  EXPECT_EQ(json["peers"][0]["encrypted"], true);
  EXPECT_EQ(json["peers"][1]["encrypted"], false);
  EXPECT_EQ(json["peers"][1]["last_error"], "connection refused");
  EXPECT_EQ(json["counters"]["alpha_bytes"], 2048);
  EXPECT_EQ(json["latencies"]["fill"]["p90_us"], 20);
  EXPECT_EQ(json["exports"][0]["agents"], 2);
  EXPECT_EQ(json["leases"]["granted_exclusive"]["pages"], 8);
  EXPECT_EQ(json["incarnation"], 0xFEDCBA9876543210u);
}

TEST(StatusTest, JsonRoundTripsInOrder) {
  const std::string json = to_json(sample());
  EXPECT_EQ(json.find('\n'), std::string::npos);
  auto back = status_from_json(json);
  ASSERT_TRUE(back) << back.error().what;
  EXPECT_EQ(to_json(*back), json);
  EXPECT_EQ(back->counters[0].first, "zulu");
}

TEST(StatusTest, ForeignJsonIsReadAsFarAsItGoes) {
  EXPECT_FALSE(status_from_json("[]"));
  EXPECT_FALSE(status_from_json("{"));
  auto empty = status_from_json("{}");
  ASSERT_TRUE(empty);
  EXPECT_FALSE(empty->ready);
  auto odd = status_from_json(
      R"({"ready":"yes","peers":[1,{"name":2,"state":"connected"}],"counters":{"a":"b","c":3},"pid":"x"})");
  ASSERT_TRUE(odd);
  EXPECT_FALSE(odd->ready);
  ASSERT_EQ(odd->peers.size(), 1u);
  EXPECT_TRUE(odd->peers[0].connected);
  ASSERT_EQ(odd->counters.size(), 1u);
  EXPECT_EQ(odd->counters[0].second, 3u);
}

TEST(StatusTest, PathThatIsNoUtf8StillGivesAStatus) {
  NodeStatus status = sample();
  status.exports[0].path = "/srv/\xff";
  EXPECT_TRUE(status_from_json(to_json(status)));
}

TEST(StatusTest, TableShowsWhatMovedAndNothingElse) {
  const std::string table = status_table(sample());
  EXPECT_THAT(table, HasSubstr("node node1 of cluster lab: ready, mount /vremote, up 1 min 1 s"));
  EXPECT_THAT(table, HasSubstr("dirty 1.5 KiB"));
  EXPECT_THAT(table, HasSubstr("connection refused"));
  EXPECT_THAT(table, HasSubstr("/srv/data"));
  EXPECT_THAT(table, HasSubstr("whole files"));
  EXPECT_THAT(table, HasSubstr("2.0 KiB"));
  EXPECT_THAT(table, HasSubstr("3.0 ms"));
  EXPECT_THAT(table, Not(HasSubstr("never")));
  EXPECT_THAT(table, Not(HasSubstr("idle")));
}

TEST(StatusTest, PlainIsSaidAloud) {
  NodeStatus status = sample();
  EXPECT_THAT(status_table(status), Not(HasSubstr("PLAIN")));
  EXPECT_THAT(status_table(status), Not(HasSubstr("NOT ENCRYPTED")));
  status.tls = false;
  status.peers[0].encrypted = false;
  EXPECT_THAT(status_table(status), HasSubstr("PLAIN"));
  EXPECT_THAT(status_table(status), HasSubstr("NOT ENCRYPTED"));
}

TEST(StatusTest, WhoSpeaksByTheOlderKeyIsTold) {
  NodeStatus status = sample();
  EXPECT_THAT(status_table(status), Not(HasSubstr("old key")));
  status.peers[0].older_key = true;
  EXPECT_THAT(status_table(status), HasSubstr("old key"));
  auto again = status_from_json(to_json(status));
  ASSERT_TRUE(again);
  EXPECT_TRUE(again->peers[0].older_key);
  EXPECT_FALSE(again->peers[1].older_key);
}

TEST(StatusTest, WhoOnlyComesHereStandsBelowThePeers) {
  NodeStatus status = sample();
  status.visitors = {{.name = "n8", .address = "10.0.0.8:9", .connected = true, .encrypted = true},
                     {.name = "n9", .address = "10.0.0.9:9", .since_ms = 65'000}};
  const std::string table = status_table(status);
  EXPECT_THAT(table, HasSubstr("visiting"));
  EXPECT_THAT(table, HasSubstr("away"));
  auto again = status_from_json(to_json(status));
  ASSERT_TRUE(again);
  ASSERT_EQ(again->visitors.size(), 2u);
  EXPECT_EQ(again->visitors[1].name, "n9");
  EXPECT_EQ(again->peers.size(), status.peers.size());
}

TEST(StatusTest, MetricsKeepTheirNames) {
  Metrics metrics;
  metrics.add(Counter::FillBytes, 3);
  metrics.record(Latency::Call, 1000);
  NodeStatus status;
  add_metrics(metrics, status);
  ASSERT_EQ(status.counters.size(), kCounterCount);
  EXPECT_EQ(status.counters[1], (std::pair<std::string, uint64_t>("fill_bytes", 3)));
  EXPECT_EQ(status.counters.back().first, "upcalls");
  EXPECT_EQ(status.latencies.back().first, "call");
  EXPECT_EQ(status.latencies.back().second.count, 1u);
}

TEST(TableTest, QuantitiesAreShort) {
  EXPECT_EQ(human_bytes(0), "0");
  EXPECT_EQ(human_bytes(1023), "1023 B");
  EXPECT_EQ(human_bytes(1024), "1.0 KiB");
  EXPECT_EQ(human_bytes((uint64_t{1} << 20) - 1), "1.0 MiB");
  EXPECT_EQ(human_bytes(UINT64_MAX), "16.0 EiB");
  EXPECT_EQ(human_duration(-1), "0 ms");
  EXPECT_EQ(human_duration(1999), "1.9 s");
  EXPECT_EQ(human_duration(3'600'000), "1 h 0 min");
  EXPECT_EQ(human_duration(100'000'000), "1 d 3 h");
  EXPECT_EQ(human_microseconds(0.25), "0.2 us");
  EXPECT_EQ(human_microseconds(9.96), "10 us");
  EXPECT_EQ(human_microseconds(999.6), "1.0 ms");
  EXPECT_EQ(human_microseconds(2e6), "2.0 s");
}

TEST(TableTest, ColumnsAreAligned) {
  TextTable table({"A", "NUM"}, {1});
  table.add({"long", "1"});
  table.add({"x", ""});
  EXPECT_EQ(table.print("  "), "  A     NUM\n  long    1\n  x\n");
}

}  // namespace
}  // namespace vremote::control
