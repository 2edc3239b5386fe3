#include "intercept/namespace_source.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string_view>

#include "base/fd.h"
#include "base/toml.h"
#include "intercept/namespace_json.h"

namespace vremote::intercept {
namespace {

using Clock = std::chrono::steady_clock;
constexpr size_t kReplyMax = 16 << 20;

std::string socket_in(const std::string& state_dir) { return state_dir + "/control.sock"; }

std::unexpected<Error> no_node(const std::string& path, int error) {
  return fail(ENXIO, fmt::format("no node answers at {}: {}; start one (vremote node), or name its "
                                 "configuration in VREMOTE_CONFIG",
                                 path, std::strerror(error)));
}

Status wait_for(int fd, short events, Clock::time_point deadline) {
  for (;;) {
    auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
    if (left <= 0) return fail(ETIMEDOUT);
    pollfd p{fd, events, 0};
    int n = ::poll(&p, 1, static_cast<int>(left));
    if (n > 0) return {};
    if (n < 0 && errno != EINTR) return fail(errno);
  }
}

Status connect_to(int fd, const sockaddr_un& address, Clock::time_point deadline) {
  // A unix socket answers connect() at once or, with a full backlog, EAGAIN, which poll() cannot
  // wait for.
  while (::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) < 0) {
    if (errno != EAGAIN && errno != EINTR) return fail(errno);
    if (Clock::now() >= deadline) return fail(ETIMEDOUT);
    ::poll(nullptr, 0, 10);
  }
  return {};
}

Status send_all(int fd, std::string_view bytes, Clock::time_point deadline) {
  while (!bytes.empty()) {
    VR_TRY_VOID(wait_for(fd, POLLOUT, deadline));
    ssize_t n = ::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n >= 0)
      bytes.remove_prefix(static_cast<size_t>(n));
    else if (errno != EAGAIN && errno != EINTR)
      return fail(errno);
  }
  return {};
}

Result<std::string> receive_line(int fd, Clock::time_point deadline) {
  std::string line;
  std::array<char, 4096> buffer;
  for (;;) {
    VR_TRY_VOID(wait_for(fd, POLLIN, deadline));
    ssize_t n = ::recv(fd, buffer.data(), buffer.size(), MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) continue;
    if (n < 0) return fail(errno);
    if (n == 0) break;
    line.append(buffer.data(), static_cast<size_t>(n));
    if (size_t end = line.find('\n'); end != std::string::npos) {
      line.resize(end);
      return line;
    }
    if (line.size() > kReplyMax) return fail(EMSGSIZE);
  }
  if (line.empty()) return fail(ECONNRESET);
  return line;
}

}  // namespace

Result<std::string> control_socket_of_config(const std::string& config_file) {
  toml::parse_result parsed = toml::parse_file(config_file);
  if (!parsed) {
    const toml::parse_error& error = parsed.error();
    return fail(EINVAL, fmt::format("{}:{}: {}", config_file, error.source().begin.line,
                                    error.description()));
  }
  const toml::table& table = parsed.table();
  std::string path;
  if (auto socket = table.at_path("control.socket").value<std::string>())
    path = *socket;
  else
    path = socket_in(table["state_dir"].value_or(std::string(kDefaultStateDir)));
  std::error_code ignored;
  auto directory = std::filesystem::absolute(config_file, ignored).parent_path();
  return (directory / path).lexically_normal().string();
}

Result<std::string> find_control_socket() {
  if (const char* path = std::getenv("VREMOTE_CONTROL"); path && *path) return std::string(path);
  if (const char* config = std::getenv("VREMOTE_CONFIG"); config && *config)
    return control_socket_of_config(config);
  return socket_in(kDefaultStateDir);
}

Result<Namespace> fetch_namespace(const std::string& socket_path, int timeout_ms) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (socket_path.empty() || socket_path.size() >= sizeof address.sun_path)
    return no_node(socket_path, ENAMETOOLONG);
  std::memcpy(address.sun_path, socket_path.data(), socket_path.size());

  auto deadline = Clock::now() + std::chrono::milliseconds(timeout_ms);
  Fd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) return fail(errno, fmt::format("socket: {}", std::strerror(errno)));
  if (auto s = connect_to(fd.get(), address, deadline); !s)
    return no_node(socket_path, s.error().code);
  if (auto s = send_all(fd.get(), "{\"request\":\"namespace\"}\n", deadline); !s)
    return no_node(socket_path, s.error().code);
  auto line = receive_line(fd.get(), deadline);
  if (!line) return no_node(socket_path, line.error().code);
  return namespace_from_json(*line);
}

}  // namespace vremote::intercept
