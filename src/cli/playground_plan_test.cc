#include "cli/playground_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <nlohmann/json.hpp>
#include <set>

#include "cli/playground_print.h"
#include "cli/ports.h"
#include "node/config/config.h"

namespace vremote::cli {
namespace {

using ::testing::HasSubstr;

TEST(PlaygroundPlanTest, EveryNodeHasItsPlaces) {
  const PlaygroundPlan plan = plan_playground("/tmp/play", {1000, 1001, 1002});
  ASSERT_EQ(plan.nodes.size(), 3u);
  const PlannedNode& node = plan.nodes[1];
  EXPECT_EQ(node.name, "node2");
  EXPECT_EQ(node.export_dir, "/tmp/play/node2/export");
  EXPECT_EQ(node.mount, "/tmp/play/node2/mnt");
  EXPECT_EQ(node.config, "/tmp/play/node2/node.toml");
  EXPECT_EQ(node.log, "/tmp/play/node2/log");
  EXPECT_EQ(node.state_dir, "/tmp/play/node2/state");
  EXPECT_EQ(node.control, "/tmp/play/node2/state/control.sock");
  EXPECT_EQ(node.port, 1001);
  EXPECT_EQ(plan.ready, "/tmp/play/ready");
  EXPECT_EQ(plan.short_dir, "");
}

TEST(PlaygroundPlanTest, ConfigurationsSayWhatThePlanSays) {
  const PlaygroundPlan plan = plan_playground("/tmp/a \"b\" \\c\n=ü", {1000, 1001, 1002});
  for (size_t i = 0; i < 3; ++i) {
    auto config = node::parse_config(node_toml(plan, i), plan.nodes[i].config);
    ASSERT_TRUE(config) << config.error().what;
    EXPECT_EQ(config->node, plan.nodes[i].name);
    EXPECT_EQ(config->cluster, plan.cluster);
    EXPECT_EQ(config->cluster_key, plan.key);
    EXPECT_TRUE(config->tls);
    EXPECT_EQ(config->mount, plan.nodes[i].mount);
    EXPECT_EQ(config->control_socket, plan.nodes[i].control);
    EXPECT_EQ(config->log_file, plan.nodes[i].log);
    EXPECT_EQ(config->listen, (node::Endpoint{"127.0.0.1", plan.nodes[i].port}));
    ASSERT_EQ(config->exports.size(), 1u);
    EXPECT_EQ(config->exports[0].name, plan.nodes[i].name);
    EXPECT_EQ(config->exports[0].path, plan.nodes[i].export_dir);
    std::set<uint16_t> peers;
    for (const auto& peer : config->peers) peers.insert(peer.address.port);
    EXPECT_EQ(peers.size(), 2u);
    EXPECT_FALSE(peers.contains(plan.nodes[i].port));
  }
}

TEST(PlaygroundPlanTest, PlainIsWrittenForEveryNode) {
  PlaygroundPlan plan = plan_playground("/tmp/play", {1000, 1001});
  plan.tls = false;
  for (size_t i = 0; i < 2; ++i) EXPECT_FALSE(node::parse_config(node_toml(plan, i), "x")->tls);
}

TEST(PlaygroundPlanTest, DeepDirectoryStillGetsSocketsThatFit) {
  // "/node64/state/control.sock" is 26 letters, a socket's path holds 107.
  const std::vector<uint16_t> ports(64, 1);
  EXPECT_EQ(plan_playground("/" + std::string(80, 'x'), ports).short_dir, "");
  const PlaygroundPlan deep = plan_playground("/" + std::string(81, 'x'), ports);
  ASSERT_NE(deep.short_dir, "");
  for (const PlannedNode& node : deep.nodes) {
    EXPECT_LE(node.control.size(), 107u);
    EXPECT_TRUE(node.control.starts_with(deep.short_dir + "/" + node.name + "/"));
  }
  EXPECT_NE(deep.short_dir, plan_playground("/" + std::string(81, 'y'), ports).short_dir);
}

TEST(PlaygroundPlanTest, TwoDirectoriesAreTwoClusters) {
  EXPECT_NE(plan_playground("/a", {1}).cluster, plan_playground("/b", {1}).cluster);
  EXPECT_EQ(plan_playground("/a", {1}).cluster, plan_playground("/a", {2}).cluster);
}

TEST(PlaygroundPrintTest, BannerShowsWhereThingsAreAndWhatToTry) {
  const std::string text = playground_banner(plan_playground("/tmp/my play", {1, 2}), 1.25);
  EXPECT_THAT(text, HasSubstr("2 nodes"));
  EXPECT_THAT(text, HasSubstr("/tmp/my play/node2/mnt "));
  EXPECT_THAT(text, HasSubstr("echo hello > '/tmp/my play/node1/mnt/node1/hello.txt'"));
  EXPECT_THAT(text, HasSubstr("cat '/tmp/my play/node2/mnt/node1/hello.txt'"));
}

TEST(PlaygroundPrintTest, ReadyFileIsOneLineOfJson) {
  const std::string text = playground_ready_json(plan_playground("/tmp/p", {7, 8}), 42);
  EXPECT_EQ(text.find('\n'), std::string::npos);
  const auto json = nlohmann::json::parse(text);
  EXPECT_EQ(json["pid"], 42);
  EXPECT_EQ(json["nodes"][1]["mount"], "/tmp/p/node2/mnt");
  EXPECT_EQ(json["nodes"][1]["address"], "127.0.0.1:8");
}

TEST(PortsTest, HeldPortsAreDistinctAndNobodyElseGetsThem) {
  auto first = hold_free_ports(8, 12345);
  auto second = hold_free_ports(8, 12345);
  ASSERT_TRUE(first && second);
  std::set<uint16_t> ports;
  for (const HeldPort& port : *first) ports.insert(port.port);
  for (const HeldPort& port : *second) ports.insert(port.port);
  EXPECT_EQ(ports.size(), 16u);
}

TEST(PortsTest, AHeldPortCanBeListenedOnOnceLetGo) {
  auto held = hold_free_ports(1, 999);
  ASSERT_TRUE(held);
  const uint16_t port = held->front().port;
  held->clear();
  auto again = hold_ports_from(port, 1);
  ASSERT_TRUE(again) << again.error().what;
  EXPECT_EQ(::listen(again->front().holder.get(), 1), 0);
}

TEST(PortsTest, PortInUseIsNamed) {
  auto held = hold_free_ports(1, 4711);
  ASSERT_TRUE(held);
  auto refused = hold_ports_from(held->front().port, 1);
  ASSERT_FALSE(refused);
  EXPECT_THAT(refused.error().what, HasSubstr(std::to_string(held->front().port)));
  EXPECT_FALSE(hold_ports_from(65535, 2));
  EXPECT_FALSE(hold_ports_from(0, 1));
}

}  // namespace
}  // namespace vremote::cli
