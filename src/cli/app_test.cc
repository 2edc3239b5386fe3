// The command line: exit statuses, and the manual page held against --help.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cctype>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>

#include "cli/commands.h"
#include "control/server.h"
#include "control/status.h"
#include "node/config.h"

namespace vremote::cli {
namespace {

using ::testing::HasSubstr;
namespace fs = std::filesystem;

struct Outcome {
  int status = 0;
  std::string out, err;
};

class AppTest : public ::testing::Test {
 protected:
  AppTest() {
    char path[] = "/tmp/vremote-app-XXXXXX";
    EXPECT_NE(::mkdtemp(path), nullptr);
    root_ = path;
    config_ = root_ / "node.toml";
    std::ofstream(config_) << "node = 'n1'\nmount = '" << (root_ / "mnt").string()
                           << "'\nstate_dir = '" << (root_ / "state").string() << "'\n";
    ::unsetenv("VREMOTE_CONFIG");
    ::setenv("VREMOTE_CONTROL", (root_ / "nobody.sock").c_str(), 1);
  }
  ~AppTest() override { fs::remove_all(root_); }

  Outcome run(std::vector<const char*> arguments) {
    arguments.insert(arguments.begin(), "vremote");
    testing::internal::CaptureStdout();
    testing::internal::CaptureStderr();
    Outcome outcome;
    outcome.status = run_cli(static_cast<int>(arguments.size()), arguments.data(), runners_);
    outcome.out = testing::internal::GetCapturedStdout();
    outcome.err = testing::internal::GetCapturedStderr();
    return outcome;
  }

  fs::path root_;
  std::string config_;
  std::string ran_;  // the node run_node was called for
  Runners runners_{.run_node = [this](const node::Config& config) {
    ran_ = config.node;
    return 7;
  }};
};

TEST_F(AppTest, WrongUseIsStatus2WithOneHint) {
  const std::vector<std::vector<const char*>> wrong = {
      {},
      {"dance"},
      {"--dance"},
      {"node", "--dance"},
      {"node", "x"},
      {"playground"},
      {"playground", "--dir", "/nowhere", "--nodes", "0"},
      {"playground", "--dir", "/nowhere", "--nodes", "65"},
      {"playground", "--dir", "/nowhere", "--base-port", "65536"},
      {"status", "--interval", "0"},
      {"status", "--", "ls"},
      {"run"},
      {"run", "--"},
      {"run", "ls"}};
  for (const auto& arguments : wrong) {
    const Outcome outcome = run(arguments);
    EXPECT_EQ(outcome.status, 2) << testing::PrintToString(arguments);
    EXPECT_THAT(outcome.err, testing::StartsWith("vremote")) << testing::PrintToString(arguments);
  }
  EXPECT_THAT(run({"run", "ls", "-l"}).err,
              HasSubstr("put `--` before the command: vremote run -- ls -l"));
}

TEST_F(AppTest, AWrongWordIsNamedAndTheHintIsThatOfItsSubcommand) {
  EXPECT_EQ(run({"dance"}).err, "vremote: there is no subcommand 'dance'\nTry `vremote --help`.\n");
  EXPECT_THAT(run({"node", "--dance"}).err, testing::EndsWith("Try `vremote node --help`.\n"));
}

TEST_F(AppTest, HelpIsStatus0AndTeaches) {
  EXPECT_THAT(run({"--help"}).out, HasSubstr("playground"));
  for (const char* command : {"node", "playground", "run", "status"}) {
    const Outcome outcome = run({command, "--help"});
    EXPECT_EQ(outcome.status, 0);
    EXPECT_THAT(outcome.out, HasSubstr("Examples:")) << command;
  }
}

TEST_F(AppTest, NodeRunsTheConfigurationItIsGiven) {
  EXPECT_EQ(run({"node", "--config", config_.c_str()}).status, 7);
  EXPECT_EQ(ran_, "n1");
}

TEST_F(AppTest, EnvironmentNamesTheConfiguration) {
  ::setenv("VREMOTE_CONFIG", config_.c_str(), 1);
  EXPECT_EQ(run({"node"}).status, 7);
  ::unsetenv("VREMOTE_CONFIG");
  const Outcome without = run({"node"});
  EXPECT_EQ(without.status, 2);
  EXPECT_THAT(without.err, HasSubstr("--config FILE or VREMOTE_CONFIG"));
}

TEST_F(AppTest, BadConfigurationIsStatus2AndStartsNothing) {
  std::ofstream(config_, std::ios::app) << "[[export]]\nname = 'x'\npath = '/does/not/exist'\n";
  const Outcome outcome = run({"node", "--config", config_.c_str()});
  EXPECT_EQ(outcome.status, 2);
  EXPECT_EQ(outcome.err, "vremote node: " + config_ +
                             ": key 'export[0].path': /does/not/exist does not exist; create it or "
                             "correct the path\n");
  EXPECT_EQ(ran_, "");
  EXPECT_EQ(run({"node", "--check", "--config", config_.c_str()}).status, 2);
}

TEST_F(AppTest, CheckAndExampleStartNothing) {
  EXPECT_EQ(run({"node", "--check", "--config", config_.c_str()}).status, 0);
  const Outcome example = run({"node", "--print-config-example"});
  EXPECT_EQ(example.status, 0);
  EXPECT_TRUE(node::parse_config(example.out, "example"));
  EXPECT_EQ(ran_, "");
}

TEST_F(AppTest, StatusOfNoNodeIsStatus1) {
  const Outcome outcome = run({"status", "--config", config_.c_str()});
  EXPECT_EQ(outcome.status, 1);
  EXPECT_THAT(outcome.err,
              HasSubstr("no node answers at " + (root_ / "state/control.sock").string()));
  EXPECT_EQ(run({"status"}).status, 1);
  EXPECT_EQ(run({"run", "--config", config_.c_str(), "--", "true"}).status, 1);
  EXPECT_EQ(run({"status", "--config", "/does/not/exist"}).status, 2);
}

TEST_F(AppTest, StatusPrintsWhatTheNodeTells) {
  control::NodeStatus status;
  status.node = "n1";
  auto server = control::ControlServer::start(
      root_ / "state/control.sock", [&](const std::string&) { return control::to_json(status); });
  ASSERT_TRUE(server) << server.error().what;
  const Outcome json = run({"status", "--json", "--config", config_.c_str()});
  EXPECT_EQ(json.status, 0);
  EXPECT_EQ(json.out, control::to_json(status) + "\n");
  const Outcome table = run({"status", "--config", config_.c_str()});
  EXPECT_THAT(table.out, HasSubstr("node n1"));
  ::setenv("VREMOTE_CONTROL", (root_ / "state/control.sock").c_str(), 1);
  EXPECT_EQ(run({"status"}).status, 0);
}

TEST_F(AppTest, VersionIsPrinted) {
  for (const char* argument : {"--version", "version"}) {
    const Outcome outcome = run({argument});
    EXPECT_EQ(outcome.status, 0) << argument;
    EXPECT_THAT(outcome.out, testing::StartsWith("vremote ")) << argument;
  }
}

// "--base-port" as roff writes it: "\-\-base\-port".
std::string in_roff(const std::string& text) {
  std::string result;
  for (const char c : text) c == '-' ? result += "\\-" : result += c;
  return result;
}

TEST_F(AppTest, ManualNamesEverySubcommandAndOptionAndNoOther) {
  std::ifstream file(VREMOTE_MANUAL);
  std::ostringstream stream;
  stream << file.rdbuf();
  const std::string manual = stream.str();
  ASSERT_FALSE(manual.empty()) << VREMOTE_MANUAL;
  Context context{runners_, {}, false, {}};
  CLI::App app("", "vremote");
  build_app(app, context);
  std::set<std::string> known = {"--help", "--help-all", "--version"};
  for (const CLI::App* command : app.get_subcommands({})) {
    const size_t begin = manual.find(".SS vremote " + command->get_name() + "\n");
    ASSERT_NE(begin, std::string::npos) << command->get_name();
    const std::string section = manual.substr(begin, manual.find("\n.S", begin + 1) - begin);
    for (const CLI::Option* option : command->get_options()) {
      const std::string name = "--" + option->get_lnames().front();
      known.insert(name);
      if (name == "--help" || name == "--help-all") continue;
      EXPECT_THAT(section, HasSubstr(in_roff(name))) << command->get_name();
    }
  }
  size_t at = 0;
  while ((at = manual.find("\\-\\-", at)) != std::string::npos) {
    std::string name = "--";
    for (at += 4; at < manual.size();) {
      if (std::isalpha(static_cast<unsigned char>(manual[at]))) {
        name += manual[at++];
      } else if (manual.compare(at, 2, "\\-") == 0) {
        name += '-';
        at += 2;
      } else {
        break;
      }
    }
    if (name != "--") {
      EXPECT_TRUE(known.contains(name)) << name;
    }
  }
}

}  // namespace
}  // namespace vremote::cli
