// vremote upgrade: a running node becomes another program, under its mount in use.
#include <fmt/format.h>
#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <array>
#include <cerrno>
#include <chrono>
#include <climits>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "base/fd.h"
#include "cli/commands.h"
#include "control/client.h"

namespace vremote::cli {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kLookMs = 30;
// For a node that is asked and says nothing: it looks for a good moment no longer than some
// seconds.
constexpr auto kPatience = std::chrono::seconds(90);
constexpr auto kSilent = std::chrono::seconds(30);  // then who waits here is told so

struct Options {
  std::string config;
  std::string binary;
  bool named = false;  // also by an empty name: a variable that is not set must not mean another
};

// This very program: what somebody runs is what the node becomes.
std::string own_path() {
  std::array<char, PATH_MAX> path;
  const ssize_t length = ::readlink("/proc/self/exe", path.data(), path.size());
  return length > 0 ? std::string(path.data(), static_cast<size_t>(length)) : std::string();
}

Result<std::string> absolute(const std::string& path) {
  std::array<char, PATH_MAX> buffer;
  if (::realpath(path.c_str(), buffer.data()) == nullptr)
    return fail(errno, fmt::format("{}: {}", path, std::strerror(errno)));
  return std::string(buffer.data());
}

Result<nlohmann::json> state(const std::string& socket) {
  VR_TRY(reply, control::control_query(socket, "upgrade_state"));
  auto json = nlohmann::json::parse(reply, nullptr, false);
  if (!json.is_object() || !json.contains("upgrades"))
    return fail(EPROTO, "the node does not know upgrades: restart it once");
  return json;
}

// The node's process, which stays the same through an upgrade: readable when it has ended. Not
// valid: nobody can tell.
Fd process_at(const std::string& socket) {
  const auto pid = control::control_process(socket);
  if (!pid || *pid <= 0) return Fd();
  return Fd(static_cast<int>(::syscall(SYS_pidfd_open, *pid, 0)));
}

bool has_ended(const Fd& process, int ms) {
  pollfd wait{process.get(), POLLIN, 0};
  return ::poll(&wait, 1, ms) == 1;
}

int run(const Options& options) {
  const auto failed = [](const std::string& why) { return complain("upgrade", why, kExitFailed); };
  if (options.named && options.binary.empty())
    return complain("upgrade", "--binary is empty; name the program to become", kExitUsage);
  auto socket = control_socket_for(options.config);
  if (!socket) return complain("upgrade", socket.error().what, kExitUsage);
  auto binary = absolute(options.binary.empty() ? own_path() : options.binary);
  if (!binary)
    return complain("upgrade",
                    fmt::format("--binary {}; name the program to become", binary.error().what),
                    kExitUsage);
  auto before = state(*socket);
  if (!before) return failed(before.error().what);
  const uint64_t upgrades = before->value("upgrades", uint64_t{0});
  const Fd process = process_at(*socket);
  auto asked = control::control_request(
      *socket, nlohmann::json{{"request", "upgrade"}, {"binary", *binary}}.dump());
  if (!asked) return failed(asked.error().what);
  const auto answer = nlohmann::json::parse(*asked, nullptr, false);
  if (answer.is_object() && answer.contains("error"))
    return failed(answer["error"].get<std::string>());
  const std::string later =
      answer.is_object() ? answer.value("waits_for_restart", std::string()) : std::string();
  const auto end = Clock::now() + kPatience;
  const auto patient = Clock::now() + kSilent;
  bool told = false;
  std::string silence = "it looks for a good moment";
  while (Clock::now() < end) {
    if (auto now = state(*socket); !now) {
      silence = now.error().what;  // as while it becomes the other program
    } else if (now->value("upgrades", uint64_t{0}) > upgrades) {
      if (now->value("ready", false)) {
        fmt::print("{} is vremote {} now (process {}); programs waited for {} ms\n",
                   now->value("node", std::string()), now->value("version", std::string()),
                   now->value("pid", 0), now->value("paused_ms", int64_t{0}));
        if (!later.empty()) tell_error(fmt::format("vremote upgrade: {}\n", later));
        return 0;
      }
    } else if (!now->value("running", false)) {
      const std::string why = now->value("refused", std::string());
      if (why.empty()) return failed("the node was started anew meanwhile");
      return failed(why + "; the node goes on as before");
    }
    if (has_ended(process, kLookMs))
      return failed(
          "the node's process has died; what its programs ask for waits until the node is started "
          "again (restart_wait_s at most, then they get ENOTCONN), and its log says why it died");
    if (!told && Clock::now() >= patient) {
      told = true;
      tell_error(fmt::format(
          "vremote upgrade: {} is still at it ({}); it goes on as before, or as the new program, "
          "also when this command is interrupted\n",
          before->value("node", std::string("the node")), silence));
    }
  }
  return failed(fmt::format("the node has not come back: {}; its log says why", silence));
}

}  // namespace

void add_upgrade_command(CLI::App& app, Context& context) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("upgrade");
  command->description(
      "Replace the program of a running node, while programs go on using its mount\n"
      "They wait for a moment and see no error: open files, mappings and locks stay. What cannot "
      "be\n"
      "taken over is refused beforehand, and the node goes on as before.");
  command->add_option("--config", options->config, "The configuration of the running node")
      ->envname("VREMOTE_CONFIG")
      ->type_name("FILE");
  command
      ->add_option("--binary", options->binary,
                   "The program to become; by default the one you have just called")
      ->type_name("PATH")
      ->each([options](const std::string&) { options->named = true; });
  command->footer(
      "Examples:\n"
      "  vremote upgrade --config /etc/vremote/node.toml\n"
      "  /opt/vremote-2/bin/vremote upgrade --config /etc/vremote/node.toml\n"
      "  vremote upgrade --binary /opt/vremote-2/bin/vremote");
  command->callback([options, &context] { context.action = [options] { return run(*options); }; });
}

}  // namespace vremote::cli
