// The key of a cluster is changed by its commands, under the daemons that use it.
#include <gmock/gmock.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include "faults_support.h"
#include "support/program.h"

namespace vremote::live {
namespace {

using testing::HasSubstr;
using testing::Not;

class ClusterKeyTest : public FaultsTest {
 protected:
  // The nodes of a test read one key file; here each gets its own.
  void start_with_own_keys(size_t count) {
    nodes(count);
    make_own_keys(count);
    nodes().start_all();
  }
  void make_own_keys(size_t count) {
    for (size_t i = 0; i < count; ++i) {
      const std::string common = nodes().at(i).directory + "/../cluster.key";
      const std::string own = nodes().at(i).directory + "/cluster.key";
      std::filesystem::copy_file(common, own);
      std::ostringstream text;
      text << std::ifstream(nodes().at(i).config).rdbuf();
      std::string config = text.str();
      const size_t at = config.find("key = \"") + 7;
      config.replace(at, config.find('"', at) - at, own);
      std::ofstream(nodes().at(i).config) << config;
    }
  }
  Ended cluster(size_t node, std::vector<std::string> what, const std::string& input = {}) {
    what.insert(what.begin(), {"vremote", "cluster"});
    what.insert(what.end(), {"--config", nodes().at(node).config});
    return run_program(VREMOTE_PROGRAM, std::move(what), input);
  }
  // The others come to it all the same.
  void let_the_first_know_no_peer() {
    std::ostringstream text;
    text << std::ifstream(nodes().at(0).config).rdbuf();
    const std::string config = text.str();
    std::ofstream(nodes().at(0).config) << config.substr(0, config.find("[[peer]]"));
  }
  // What is carried from the first node to another.
  Ended carry(size_t node) {
    const std::string said = cluster(0, {"invite"}).text;
    std::string lines;
    std::istringstream in(said);
    for (std::string line; std::getline(in, line);)
      if (line.starts_with("vremote-cluster-key")) lines += line + "\n";
    return cluster(node, {"join"}, lines);
  }
  bool says(size_t node, const std::string& what) {
    return nodes().ask(node, "status").find(what) != std::string::npos;
  }
};

TEST_F(ClusterKeyTest, IsChangedWhileProgramsWork) {
  start_with_own_keys(3);
  std::atomic<bool> done{false};
  std::string trouble;
  uint64_t rounds = 0;
  std::thread program([&] {  // each round needs messages between the first two nodes
    const std::string there = nodes().path(1, 0, "file"), here = nodes().path(0, 0, "file");
    for (; !done; ++rounds) {
      const std::string text = "round " + std::to_string(rounds);
      if (const int error = put(there, text)) trouble = "put: " + std::to_string(error);
      if (read_all(here) != text) trouble = "read " + read_all(here) + " for " + text;
      if (!trouble.empty()) return;
      ::usleep(2000);
    }
  });
  EXPECT_THAT(cluster(0, {"retire"}).text, HasSubstr("there is no old key"));
  const Ended renewed = cluster(0, {"renew"});
  EXPECT_EQ(0, renewed.status) << renewed.text;
  EXPECT_THAT(renewed.text, HasSubstr("node node1 uses it from now on"));
  EXPECT_TRUE(eventually([&] { return says(0, R"("older_key":true)"); }));
  EXPECT_TRUE(eventually([&] { return nodes().connected(0); }));
  EXPECT_THAT(cluster(0, {"retire"}).text, HasSubstr("still speaks by the old key"));
  for (size_t node : {1, 2}) {
    const Ended joined = carry(node);
    EXPECT_EQ(0, joined.status) << joined.text;
  }
  EXPECT_TRUE(eventually([&] { return !says(0, R"("older_key":true)"); })) << nodes().log(0);
  EXPECT_TRUE(eventually([&] {
    return cluster(0, {"retire"}).status == 0;  // connections are made anew one by one
  }));
  for (size_t node : {1, 2}) EXPECT_EQ(0, carry(node).status);
  done = true;
  program.join();
  EXPECT_EQ("", trouble);
  EXPECT_GT(rounds, 0u);
  for (size_t node : {0, 1, 2}) {
    EXPECT_TRUE(eventually([&] { return nodes().connected(node); })) << nodes().log(node);
    EXPECT_THAT(nodes().log(node), Not(HasSubstr(" is over: "))) << "no session ended";
  }
}

TEST_F(ClusterKeyTest, WhoOnlyComesHereIsNotForgotten) {
  nodes(2);
  make_own_keys(2);
  let_the_first_know_no_peer();
  nodes().start(0);
  nodes().start(1);
  EXPECT_TRUE(eventually([&] { return nodes().connected(1); })) << nodes().log(1);
  EXPECT_EQ(0, cluster(0, {"renew"}).status);
  EXPECT_TRUE(eventually([&] { return says(0, R"("older_key":true)"); }));
  EXPECT_THAT(cluster(0, {"retire"}).text, HasSubstr("node2 still speaks by the old key"));
  EXPECT_EQ(0, carry(1).status);
  EXPECT_TRUE(eventually([&] { return cluster(0, {"retire"}).status == 0; }));
}

TEST_F(ClusterKeyTest, WhoHasOnlyTheOldOneIsAStranger) {
  start_with_own_keys(2);
  ASSERT_EQ(0, put(nodes().path(0, 0, "file"), "old"));
  EXPECT_EQ("old", read_all(nodes().path(1, 0, "file")));
  EXPECT_EQ(0, cluster(0, {"renew"}).status);
  EXPECT_EQ(1, cluster(0, {"retire"}).status);
  EXPECT_EQ(0, cluster(0, {"retire", "--force"}).status);
  EXPECT_TRUE(eventually([&] { return says(1, "does not take our key"); })) << nodes().log(1);
  EXPECT_TRUE(eventually([&] { return !nodes().connected(0); }));
  EXPECT_THAT(carry(1).text, HasSubstr("another key is there"));
  ASSERT_EQ(0, ::unlink((nodes().at(1).directory + "/cluster.key").c_str()));
  EXPECT_EQ(0, carry(1).status);
  EXPECT_TRUE(eventually([&] { return nodes().connected(1); })) << nodes().log(1);
  EXPECT_EQ("old", read_all(nodes().path(1, 0, "file")));
}

}  // namespace
}  // namespace vremote::live
