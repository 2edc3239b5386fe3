// The command line: exit statuses, and the manual page held against --help.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>

#include "cli/commands.h"
#include "cli/ports.h"
#include "cli/start_check.h"
#include "control/server.h"
#include "control/status.h"
#include "fuse/mount_point.h"
#include "net/key_ring.h"
#include "node/config/config.h"

namespace vremote::cli {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
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
                           << "'\nstate_dir = '" << (root_ / "state").string()
                           << "'\n[cluster]\nname = 'lab'\n";
    key_ = root_ / "cluster.key";
    EXPECT_EQ(run({"cluster", "init", "--config", config_.c_str()}).status, 0);
    ::unsetenv("VREMOTE_CONFIG");
    ::setenv("VREMOTE_CONTROL", (root_ / "nobody.sock").c_str(), 1);
  }
  ~AppTest() override { fs::remove_all(root_); }

  Outcome run(std::vector<const char*> arguments, const std::string& input = {}) {
    // What it reads is little: a pipe holds it.
    int ends[2];
    EXPECT_EQ(::pipe(ends), 0);
    EXPECT_EQ(::write(ends[1], input.data(), input.size()), static_cast<ssize_t>(input.size()));
    ::close(ends[1]);
    ::dup2(ends[0], STDIN_FILENO);
    ::close(ends[0]);
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
  std::string config_, key_;
  std::string ran_;  // the node run_node was called for
  Runners runners_{.run_node = [this](const node::Config& config, int) {
    ran_ = config.node;
    return 7;
  }};
};

TEST_F(AppTest, SecondsAreNumbers) {
  for (const char* text : {"nan", "inf", "0", "-1", "soon", ""}) {
    EXPECT_EQ(run({"status", "--interval", text}).status, 2) << text;
    EXPECT_EQ(run({"playground", "--dir", root_.c_str(), "--wait", text}).status, 2) << text;
  }
  EXPECT_EQ(run({"status", "--interval", "0.5"}).status, 1);
}

TEST_F(AppTest, AnEmptyNameOfTheProgramIsNotTheDefault) {
  const Outcome refused = run({"upgrade", "--config", config_.c_str(), "--binary", ""});
  EXPECT_EQ(refused.status, 2);
  EXPECT_THAT(refused.err, HasSubstr("--binary is empty"));
}

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
      {"cluster"},
      {"cluster", "dance"},
      {"cluster", "init"},
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
  EXPECT_EQ(run({"cluster", "dance"}).err,
            "vremote cluster: there is no subcommand 'dance'\nTry `vremote cluster --help`.\n");
  const Outcome nowhere = run({"playground", "--dir", ""});
  EXPECT_EQ(nowhere.status, 2);
  EXPECT_THAT(nowhere.err, HasSubstr("--dir: the name is empty: give a directory"));
}

TEST_F(AppTest, HelpIsStatus0AndTeaches) {
  EXPECT_THAT(run({"--help"}).out, HasSubstr("playground"));
  for (const char* command : {"node", "cluster", "playground", "run", "status"}) {
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

TEST_F(AppTest, CheckFindsWhatTheStartWouldFind) {
  auto ports = hold_free_ports(1, static_cast<uint64_t>(::getpid()));
  ASSERT_TRUE(ports) << ports.error().what;
  const std::string address = "127.0.0.1:" + std::to_string(ports->front().port);
  const auto write = [&](const std::string& mount, const std::string& state,
                         const std::string& listen) {
    std::ofstream(config_) << "node = 'n1'\nmount = '" << mount << "'\nstate_dir = '" << state
                           << "'\nlisten = '" << listen << "'\n[cluster]\nname = 'lab'\n";
  };
  const auto refusal = [&] {
    const Outcome outcome = run({"node", "--check", "--config", config_.c_str()});
    EXPECT_EQ(outcome.status, outcome.err.empty() ? 0 : 2);
    EXPECT_EQ(outcome.err.empty(), outcome.out == config_ + ": good\n") << outcome.out;
    return outcome.err;
  };
  const std::string mount = root_ / "mnt", state = root_ / "made" / "state";
  write(mount, state, address);
  EXPECT_THAT(refusal(), HasSubstr("key 'mount': " + mount + " does not exist: run `mkdir -p"));
  fs::create_directory(mount);
  EXPECT_THAT(refusal(), HasSubstr("key 'listen': cannot listen on " + address)) << "it is taken";
  ports->clear();
  const bool may_mount = fuse::check_may_mount().has_value();
  EXPECT_THAT(refusal(), HasSubstr(may_mount ? "" : "key 'mount': "));
  EXPECT_EQ(refusal().empty(), may_mount);
  std::ofstream(mount + "/something") << "x";
  EXPECT_THAT(refusal(), HasSubstr("key 'mount': " + mount + " is not empty"));
  fs::remove(mount + "/something");
  write(mount, state, "no such name.invalid:1104");
  EXPECT_THAT(refusal(), HasSubstr("key 'listen'"));
  write(mount, state, "nonsense.invalid:1104");
  EXPECT_THAT(refusal(), AllOf(HasSubstr("key 'listen': cannot resolve 'nonsense.invalid'"),
                               HasSubstr("name an address that this machine has")));
  write(mount, state, "192.0.2.1:1104");
  EXPECT_THAT(refusal(), HasSubstr("take one that this machine has"));
  write(mount, config_, address);
  EXPECT_THAT(refusal(), AllOf(HasSubstr("key 'state_dir': control socket"),
                               HasSubstr("part of this path is no directory")));
  // What the node would do without, and warn of.
  write(mount, state, address);
  fs::create_directories(state);
  for (const std::string name : {"/home", "/recovery"}) {
    std::ofstream(state + name) << "x";
    EXPECT_THAT(refusal(),
                AllOf(HasSubstr(name == "/home" ? "key 'state_dir': " : "key 'recovery_dir': "),
                      HasSubstr(state + name + " is not a directory")));
    EXPECT_THAT(run({"node", "--handover-check", "--config", config_.c_str()}).err,
                Not(HasSubstr("is not a directory")));
    fs::remove(state + name);
  }
  fs::create_directories(state + "/control.sock.lock");
  EXPECT_THAT(refusal(), HasSubstr("key 'state_dir': control socket"));
  EXPECT_EQ(ran_, "");
}

TEST_F(AppTest, ACheckThatHangsIsNotWaitedFor) {
  EXPECT_TRUE(check_in_time([] { return Status(); }, 10'000));
  const Status refused = check_in_time([] { return Status(fail(ENOENT, "no: such")); }, 10'000);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, ENOENT);
  EXPECT_EQ(refused.error().what, "no: such");
  const Status late = check_in_time(
      []() -> Status {
        for (;;) ::pause();
      },
      50);
  ASSERT_FALSE(late);
  EXPECT_EQ(late.error().code, ETIMEDOUT);
}

TEST_F(AppTest, PortsThatDoNotExistAreAMistakeOfTheCommandLine) {
  const std::string dir = root_ / "play";
  const Outcome outcome =
      run({"playground", "--nodes", "2", "--base-port", "65535", "--dir", dir.c_str()});
  EXPECT_EQ(outcome.status, 2);
  EXPECT_THAT(outcome.err, HasSubstr("ports 65535 to 65536 do not exist"));
}

TEST_F(AppTest, CheckAndExampleStartNothing) {
  fs::create_directory(root_ / "mnt");
  auto ports = hold_free_ports(1, static_cast<uint64_t>(::getpid()));
  ASSERT_TRUE(ports) << ports.error().what;
  std::ofstream(config_) << "node = 'n1'\nmount = '" << (root_ / "mnt").string()
                         << "'\nstate_dir = '" << (root_ / "state").string()
                         << "'\nlisten = '127.0.0.1:" << ports->front().port
                         << "'\n[cluster]\nname = 'lab'\n";
  ports->clear();
  const bool may_mount = fuse::check_may_mount().has_value();
  EXPECT_EQ(run({"node", "--check", "--config", config_.c_str()}).status, may_mount ? 0 : 2);
  const Outcome example = run({"node", "--print-config-example"});
  EXPECT_EQ(example.status, 0);
  EXPECT_TRUE(node::parse_config(example.out, "example"));
  EXPECT_EQ(ran_, "");
}

TEST_F(AppTest, ANodeWithoutAKeyDoesNotStartAndIsToldWhatToType) {
  fs::remove(key_);
  const Outcome outcome = run({"node", "--config", config_.c_str()});
  EXPECT_EQ(outcome.status, 2);
  EXPECT_THAT(outcome.err, HasSubstr(key_ + " does not exist"));
  EXPECT_THAT(outcome.err, HasSubstr("vremote cluster init --config " + config_));
  EXPECT_THAT(outcome.err, HasSubstr("vremote cluster join --config " + config_));
  EXPECT_THAT(outcome.err, HasSubstr("tls = \"off\""));
  EXPECT_EQ(std::count(outcome.err.begin(), outcome.err.end(), '\n'), 1);
  EXPECT_EQ(ran_, "");
  std::ofstream(config_, std::ios::app) << "tls = 'off'\n";
  EXPECT_EQ(run({"node", "--config", config_.c_str()}).status, 7);
}

TEST_F(AppTest, AKeyThatOthersMayReadIsNotUsed) {
  fs::permissions(key_, fs::perms::group_read, fs::perm_options::add);
  const Outcome outcome = run({"node", "--config", config_.c_str()});
  EXPECT_EQ(outcome.status, 2);
  EXPECT_THAT(outcome.err, HasSubstr("chmod 600 " + key_));
  EXPECT_EQ(ran_, "");
}

TEST_F(AppTest, TwoCommandsAddANode) {
  const std::string second = root_ / "second.toml";
  const std::string key = root_ / "second.key";
  std::ofstream(second) << "node = 'n2'\n[cluster]\nname = 'lab'\nkey = '" << key << "'\n";
  const Outcome line = run({"cluster", "invite", "--config", config_.c_str()});
  EXPECT_EQ(line.status, 0);
  const Outcome joined = run({"cluster", "join", "--config", second.c_str()}, line.out);
  EXPECT_EQ(joined.status, 0) << joined.err;
  EXPECT_EQ(fs::status(key).permissions(), fs::perms::owner_read | fs::perms::owner_write);
  EXPECT_EQ(run({"cluster", "show", "--config", config_.c_str()}).out,
            run({"cluster", "show", "--config", second.c_str()}).out);
  EXPECT_THAT(run({"cluster", "show", "--config", second.c_str()}).out,
              testing::Not(HasSubstr(line.out.substr(30, 20))));
  // Once more does no harm; another key is not written over.
  EXPECT_EQ(run({"cluster", "join", "--config", second.c_str()}, line.out).status, 0);
  const Outcome other = run({"cluster", "join", "--config", second.c_str()},
                            net::ClusterKey::generate("lab")->line());
  EXPECT_EQ(other.status, 1);
  EXPECT_THAT(other.err, HasSubstr("another key is there"));
  EXPECT_EQ(run({"cluster", "init", "--config", config_.c_str()}).status, 1);
}

TEST_F(AppTest, AKeyIsChangedInTwoRounds) {
  const std::string second = root_ / "second.toml", control = root_ / "no.sock";
  std::ofstream(config_, std::ios::app) << "[control]\nsocket = '" << control << "'\n";
  std::ofstream(second) << "node = 'n2'\n[cluster]\nname = 'lab'\nkey = '"
                        << (root_ / "second.key").string() << "'\n[control]\nsocket = '" << control
                        << "'\n";
  auto cluster = [&](const char* what, const std::string& config, const std::string& input = {}) {
    return run({"cluster", what, "--config", config.c_str()}, input);
  };
  auto show = [&](const std::string& config) { return cluster("show", config).out; };
  auto carry = [&] { return cluster("join", second, cluster("invite", config_).out); };
  EXPECT_EQ(carry().status, 0);
  const std::string before = show(config_);
  EXPECT_EQ(cluster("retire", config_).status, 2) << "there is nothing to retire";
  EXPECT_EQ(cluster("renew", config_).status, 0);
  EXPECT_THAT(show(config_), HasSubstr("old key " + before.substr(before.size() - 17, 16)));
  EXPECT_EQ(cluster("renew", config_).status, 2);
  const Outcome joined = carry();
  EXPECT_EQ(joined.status, 0) << joined.err;
  EXPECT_THAT(joined.out, HasSubstr("does not run here"));
  EXPECT_EQ(show(second), show(config_));
  EXPECT_EQ(cluster("retire", config_).status, 0);
  EXPECT_EQ(carry().status, 0);
  EXPECT_EQ(show(second), show(config_));
  EXPECT_THAT(show(config_), testing::Not(HasSubstr("old")));
  EXPECT_NE(show(config_), before);
  // Two steps behind is too far: nothing shows that these are of the same cluster.
  EXPECT_EQ(cluster("renew", config_).status, 0);
  EXPECT_EQ(cluster("retire", config_).status, 0);
  EXPECT_EQ(carry().status, 1);
}

TEST_F(AppTest, AGuestsLineIsForThatNodeAndThatCluster) {
  const std::string guest = root_ / "guest.toml";
  auto write = [&](const char* node, const char* cluster) {
    std::ofstream(guest) << "node = '" << node << "'\n[cluster]\nname = '" << cluster
                         << "'\nkey = '" << (root_ / "guest.key").string() << "'\n";
  };
  const Outcome line = run({"cluster", "invite", "--guest", "g7", "--config", config_.c_str()});
  EXPECT_EQ(line.status, 0);
  auto join = [&] { return run({"cluster", "join", "--config", guest.c_str()}, line.out); };
  write("g8", "lab");
  EXPECT_EQ(join().status, 2);
  EXPECT_THAT(join().err, HasSubstr("for the guest 'g7'"));
  write("g7", "shop");
  EXPECT_EQ(join().status, 2);
  write("g7", "lab");
  EXPECT_EQ(join().status, 0);
  // A guest invites nobody.
  EXPECT_EQ(run({"cluster", "invite", "--config", guest.c_str()}).status, 2);
  for (const char* nonsense : {"", "hello", "vremote-cluster-key 1 lab 00 00"})
    EXPECT_EQ(run({"cluster", "join", "--config", guest.c_str()}, nonsense).status, 2) << nonsense;
  EXPECT_EQ(run({"cluster", "invite", "--guest", "../x", "--config", config_.c_str()}).status, 2);
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
    std::vector<const CLI::Option*> options = command->get_options();
    for (const CLI::App* sub : command->get_subcommands({})) {
      EXPECT_THAT(section, HasSubstr(".B " + sub->get_name() + "\n"));
      for (const CLI::Option* option : sub->get_options()) options.push_back(option);
    }
    for (const CLI::Option* option : options) {
      if (option->get_lnames().empty()) continue;  // an argument by its place
      if (option->get_group().empty()) continue;   // not for people
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
