#include "bench/cluster.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "bench/compare.h"
#include "control/client.h"

namespace vremote::bench {
namespace {
constexpr double kReadySeconds = 60;
constexpr double kSettleSeconds = 60;
constexpr int kPollMs = 20;
}  // namespace

Cluster::Cluster(const std::string& program, const std::string& directory, bool tls)
    : directory_(directory) {
  const std::string log = directory + "/playground.log";
  const pid_t parent = ::getpid();
  playground_ = ::fork();
  must(playground_ >= 0, "fork");
  if (playground_ == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (::getppid() != parent) ::_exit(1);
    const int out = ::open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    ::dup2(out, STDOUT_FILENO);
    ::dup2(out, STDERR_FILENO);
    ::execl(program.c_str(), "vremote", "playground", "--nodes", "2", "--dir", directory.c_str(),
            tls ? nullptr : "--plain", nullptr);
    ::_exit(127);
  }
  const double deadline = now_seconds() + kReadySeconds;
  while (::access((directory + "/ready").c_str(), F_OK) != 0) {
    if (::waitpid(playground_, nullptr, WNOHANG) != 0) {
      playground_ = -1;
      std::ifstream text(log);
      give_up("the playground did not start: " +
              std::string(std::istreambuf_iterator<char>(text), {}));
    }
    must(now_seconds() < deadline, "the playground is not ready in time");
    ::poll(nullptr, 0, kPollMs);
  }
}

Cluster::~Cluster() {
  if (playground_ <= 0) return;
  ::kill(playground_, SIGTERM);
  ::waitpid(playground_, nullptr, 0);
}

std::string Cluster::status(int node) const {
  auto reply = control::control_query(
      directory_ + "/node" + std::to_string(node) + "/state/control.sock", "status");
  if (!reply) errno = reply.error().code;
  must(reply.has_value(), "asking a node for its status");
  return *reply;
}

uint64_t Cluster::counter(int node, const std::string& name) const {
  const auto json = nlohmann::json::parse(status(node), nullptr, false);
  if (name == "dirty_bytes") return json.value(name, uint64_t{0});
  if (name == "messages") {
    uint64_t sum = 0;
    for (const auto& peer : json.at("peers"))
      sum += peer.value("messages_in", uint64_t{0}) + peer.value("messages_out", uint64_t{0});
    return sum;
  }
  return json.at("counters").value(name, uint64_t{0});
}

void Cluster::settle() const {
  const double deadline = now_seconds() + kSettleSeconds;
  while (counter(1, "dirty_bytes") + counter(2, "dirty_bytes") != 0) {
    must(now_seconds() < deadline, "what was written does not reach the origin");
    ::poll(nullptr, 0, kPollMs);
  }
}

}  // namespace vremote::bench
