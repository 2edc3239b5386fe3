#include "support/playground.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "control/client.h"
#include "support/guard.h"

namespace vremote::live {
namespace {

constexpr auto kReadyWait = std::chrono::seconds(60);

Result<std::string> fresh_dir(const std::string& base) {
  const char* tmp = std::getenv("TMPDIR");
  std::string path = (!base.empty()                    ? base
                      : tmp != nullptr && *tmp != '\0' ? std::string(tmp)
                                                       : std::string("/tmp")) +
                     "/vremote-live-XXXXXX";
  if (::mkdtemp(path.data()) == nullptr)
    return fail(errno, fmt::format("{}: {}", path, std::strerror(errno)));
  char real[PATH_MAX];
  if (::realpath(path.c_str(), real) == nullptr)
    return fail(errno, fmt::format("{}: {}", path, std::strerror(errno)));
  return std::string(real);
}

}  // namespace

std::string why_no_mounts() {
  if (::geteuid() != 0) return "needs root";
  Fd device(::open("/dev/fuse", O_RDWR | O_CLOEXEC));
  if (!device.valid()) return fmt::format("/dev/fuse: {}", std::strerror(errno));
  return {};
}

Result<std::unique_ptr<Playground>> Playground::start(const PlaygroundOptions& options) {
  VR_TRY(dir, fresh_dir(options.base));
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return fail(errno, "pipe");
  std::unique_ptr<Playground> playground(new Playground);
  playground->dir_ = dir;
  playground->alive_ = Fd(ends[1]);
  Fd watched(ends[0]);
  std::fflush(nullptr);
  playground->guard_ = ::fork();
  if (playground->guard_ < 0) return fail(errno, "fork");
  if (playground->guard_ == 0) {
    playground->alive_.reset();
    ::_exit(guard_playground({options.program, dir, options.nodes, options.seconds, options.keep},
                             watched.get()));
  }
  const auto deadline = std::chrono::steady_clock::now() + kReadyWait;
  const std::string ready = dir + "/p/ready";
  while (::access(ready.c_str(), F_OK) != 0) {
    const bool ended = ::waitpid(playground->guard_, nullptr, WNOHANG) != 0;
    if (ended) playground->guard_ = -1;
    if (ended || std::chrono::steady_clock::now() >= deadline)
      return fail(EIO, "the playground does not become ready");
    ::poll(nullptr, 0, 20);
  }
  std::ifstream file(ready);
  const auto json = nlohmann::json::parse(file, nullptr, false);
  if (!json.is_object() || !json.contains("nodes"))
    return fail(EIO, fmt::format("{} is not what it should be", ready));
  for (const auto& node : json["nodes"]) {
    auto text = [&](const char* key) { return node.value(key, std::string()); };
    playground->nodes_.push_back({text("name"), text("mount"), text("export"), text("control"),
                                  text("config"), text("log")});
  }
  if (playground->nodes_.size() != options.nodes)
    return fail(EIO, "the playground has not as many nodes as asked for");
  return playground;
}

Playground::~Playground() {
  if (!child_) stop();
}

std::string Playground::stop() {
  alive_.reset();
  if (guard_ < 0) return {};
  int status = 0;
  while (::waitpid(guard_, &status, 0) < 0 && errno == EINTR) {
  }
  guard_ = -1;
  if (!WIFEXITED(status)) return "the guard was killed";
  switch (WEXITSTATUS(status)) {
    case kGuardClean:
      return {};
    case kGuardTimeout:
      return "the time was over before the test was";
    default:
      return "the playground did not end well";
  }
}

void Playground::abort() { remove_mounts_below(dir_, true); }

std::string Playground::path(size_t node, size_t origin, const std::string& name) const {
  return nodes_.at(node).mount + "/" + nodes_.at(origin).name + (name.empty() ? "" : "/" + name);
}

std::string Playground::disk(size_t origin, const std::string& name) const {
  return nodes_.at(origin).export_dir + (name.empty() ? "" : "/" + name);
}

std::string Playground::status(size_t node) const {
  auto reply =
      control::control_query(nodes_.at(node).control, "status", std::chrono::milliseconds(2000));
  return reply ? *reply : "no status: " + reply.error().what;
}

}  // namespace vremote::live
