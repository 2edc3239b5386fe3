#include "support/nodes.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <sstream>
#include <system_error>

#include "base/check.h"
#include "base/fd.h"
#include "control/client.h"
#include "net/key_ring.h"
#include "support/guard.h"

namespace vremote::live {
namespace {

using Clock = std::chrono::steady_clock;

// Free now, and below the range that outgoing connections take theirs from.
uint16_t free_port(uint16_t from) {
  for (uint16_t port = from; port < 32000; ++port) {
    const Fd socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(port);
    if (::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0)
      return port;
  }
  return 0;
}

std::vector<pid_t> children() {
  std::vector<pid_t> found;
  std::ifstream list(fmt::format("/proc/self/task/{}/children", ::getpid()));
  for (pid_t pid = 0; list >> pid;) found.push_back(pid);
  return found;
}

}  // namespace

Nodes::Nodes(const std::string& program, const std::string& dir, size_t count,
             const std::string& extra, std::vector<Place> places)
    : program_(program), nodes_(count), places_(std::move(places)) {
  places_.resize(count);
  auto port = static_cast<uint16_t>(12000 + ::getpid() % 16000);
  for (size_t i = 0; i < count; ++i) {
    Node& node = nodes_[i];
    node.name = fmt::format("node{}", i + 1);
    node.directory = dir + "/" + node.name;
    node.mount = node.directory + "/mnt";
    node.export_dir = node.directory + "/export";
    node.state_dir = node.directory + "/state";
    node.control = node.state_dir + "/control.sock";
    node.config = node.directory + "/node.toml";
    node.log = node.directory + "/log";
    node.port = port = free_port(static_cast<uint16_t>(port + 1));
    for (const std::string& made : {node.directory, node.mount, node.export_dir, node.state_dir})
      ::mkdir(made.c_str(), 0755);
  }
  const std::string key = dir + "/cluster.key";
  const auto written = net::write_key_file(key, *net::ClusterKey::generate("faults"));
  VR_CHECK_MSG(written.has_value(), "the cluster's key cannot be written");
  for (Node& node : nodes_) {
    std::ofstream file(node.config);
    file << fmt::format(
        "node = \"{}\"\ncluster = {{ name = \"faults\", key = \"{}\" }}\nmount = \"{}\"\n"
        "state_dir = \"{}\"\nlisten = \"{}:{}\"\n{}\n[[export]]\nname = \"{}\"\npath = "
        "\"{}\"\n",
        node.name, key, node.mount, node.state_dir, places_[&node - nodes_.data()].address,
        node.port, extra, node.name, node.export_dir);
    for (const Node& peer : nodes_)
      if (&peer != &node)
        file << fmt::format("[[peer]]\nname = \"{}\"\naddress = \"{}:{}\"\n", peer.name,
                            places_[&peer - nodes_.data()].address, peer.port);
  }
}

Nodes::~Nodes() {
  for (size_t i = 0; i < nodes_.size(); ++i) {
    if (nodes_[i].pid <= 0) continue;
    ::kill(nodes_[i].pid, SIGCONT);
    ::kill(nodes_[i].pid, SIGTERM);
  }
  for (size_t i = 0; i < nodes_.size(); ++i)
    if (nodes_[i].pid > 0) wait_for_end(i);
}

std::string Nodes::path(size_t node, size_t origin, const std::string& name) const {
  return nodes_.at(node).mount + "/" + nodes_.at(origin).name + (name.empty() ? "" : "/" + name);
}

void Nodes::start(size_t i, size_t descriptors) {
  Node& node = nodes_.at(i);
  std::fflush(nullptr);
  const pid_t parent = ::getpid();
  node.pid = ::fork();
  if (node.pid != 0) return;
  ::prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (::getppid() != parent) ::_exit(127);
  if (places_[i].name_space >= 0 && ::setns(places_[i].name_space, CLONE_NEWNET) != 0) ::_exit(127);
  const rlimit few{descriptors, descriptors};
  if (descriptors != 0 && ::setrlimit(RLIMIT_NOFILE, &few) != 0) ::_exit(127);
  const int out = ::open(node.log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  ::dup2(out, STDOUT_FILENO);
  ::dup2(out, STDERR_FILENO);
  ::execl(program_.c_str(), "vremote", "node", "--config", node.config.c_str(), nullptr);
  ::_exit(127);
}

std::string Nodes::ask(size_t i, const std::string& request) const {
  auto reply =
      control::control_query(nodes_.at(i).control, request, std::chrono::milliseconds(2000));
  return reply ? *reply : std::string();
}

bool Nodes::ready(size_t i) const {
  const auto json = nlohmann::json::parse(ask(i, "status"), nullptr, false);
  return json.is_object() && json.value("ready", false);
}

bool Nodes::connected(size_t i) const {
  const auto json = nlohmann::json::parse(ask(i, "status"), nullptr, false);
  if (!json.is_object() || !json.value("ready", false)) return false;
  for (const auto& peer : json["peers"])
    if (peer["state"] != "connected") return false;
  return true;
}

void Nodes::start_all() {
  for (size_t i = 0; i < nodes_.size(); ++i) start(i);
  for (size_t i = 0; i < nodes_.size(); ++i) eventually([&] { return connected(i); });
}

void Nodes::signal(size_t i, int signal) {
  const pid_t pid = nodes_.at(i).pid;
  if (pid <= 0) return;
  ::kill(pid, signal);
  if (signal != SIGSTOP) return;
  // Each thread stops when it comes to it, and may answer somebody before.
  const auto runs = [&] {
    std::error_code ignored;
    for (const auto& thread :
         std::filesystem::directory_iterator("/proc/" + std::to_string(pid) + "/task", ignored)) {
      std::ifstream file(thread.path() / "stat");
      const std::string text((std::istreambuf_iterator<char>(file)), {});
      const size_t name_end = text.rfind(") ");
      if (name_end != std::string::npos && text[name_end + 2] != 'T') return true;
    }
    return false;
  };
  for (int tries = 0; tries < 60'000 && runs(); ++tries) ::usleep(1000);
}

int Nodes::wait_for_end(size_t i) {
  int status = 0;
  while (::waitpid(nodes_.at(i).pid, &status, 0) < 0 && errno == EINTR) {
  }
  nodes_[i].pid = -1;
  return status;
}

std::string Nodes::log(size_t i) const {
  std::ifstream file(nodes_.at(i).log);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

bool eventually(const std::function<bool()>& done) {
  const auto end = Clock::now() + std::chrono::minutes(1);
  while (!done()) {
    if (Clock::now() >= end) return false;
    ::poll(nullptr, 0, 10);
  }
  return true;
}

int guarded(int seconds, const std::function<int(const std::string& dir)>& body) {
  const char* tmp = std::getenv("TMPDIR");
  std::string dir = std::string(tmp != nullptr && *tmp != '\0' ? tmp : "/tmp") + "/vremote-XXXXXX";
  if (::mkdtemp(dir.data()) == nullptr) return 1;
  dir = std::filesystem::canonical(dir);
  ::prctl(PR_SET_CHILD_SUBREAPER, 1);
  std::fflush(nullptr);
  const pid_t guard = ::getpid();
  const pid_t test = ::fork();
  if (test < 0) return 1;
  if (test == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    ::prctl(PR_SET_CHILD_SUBREAPER, 0);
    if (::getppid() != guard) ::_exit(127);
    const int result = body(dir);
    std::fflush(nullptr);
    ::_exit(result);
  }
  int status = 0;
  bool over = false;
  const auto end = Clock::now() + std::chrono::seconds(seconds);
  while (::waitpid(test, &status, WNOHANG) != test) {
    if (!over && Clock::now() >= end) {
      fmt::print(stderr, "guard: {} s are over: ending by force\n", seconds);
      over = true;
      remove_mounts_below(dir, true);
      ::kill(test, SIGKILL);
    }
    ::poll(nullptr, 0, 20);
  }
  const auto patience = Clock::now() + std::chrono::seconds(10);
  for (;;) {
    remove_mounts_below(dir, true);
    const std::vector<pid_t> left = children();
    if (left.empty() || Clock::now() >= patience) break;
    for (pid_t pid : left) {
      ::kill(pid, SIGKILL);
      ::waitpid(pid, nullptr, WNOHANG);
    }
    ::poll(nullptr, 0, 20);
  }
  remove_mounts_below(dir, true);
  const int result = !over && WIFEXITED(status) ? WEXITSTATUS(status) : 1;
  std::error_code ignored;
  if (result == 0 || std::getenv("VREMOTE_KEEP") == nullptr)
    std::filesystem::remove_all(dir, ignored);
  return result;
}

}  // namespace vremote::live
