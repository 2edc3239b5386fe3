#include "control/client.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>

#include "base/fd.h"
#include "control/server.h"
#include "control/socket_path.h"

namespace vremote::control {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kReplyMax = size_t{64}
                             << 20;  // a status is a few KiB; a broken server may send for ever

std::unexpected<Error> failed(const std::string& path, int code) {
  if (code == ENOENT || code == ECONNREFUSED)
    return fail(code, fmt::format("no node answers at {}; is `vremote node` running?", path));
  return fail(code, fmt::format("control socket {}: {}", path, std::strerror(code)));
}

// Waits until the socket can be read or written.
Status wait_for(const Fd& socket, short events, Clock::time_point deadline,
                const std::string& path) {
  for (;;) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
    if (left <= 0)
      return fail(
          ETIMEDOUT,
          fmt::format("control socket {}: the node does not answer (it may be stopped or stuck)",
                      path));
    pollfd entry{socket.get(), events, 0};
    const int n = ::poll(&entry, 1, static_cast<int>(std::min<int64_t>(left, 60'000)));
    if (n > 0) return {};
    if (n < 0 && errno != EINTR) return failed(path, errno);
  }
}

Status connect_to(const Fd& socket, const std::string& path, Clock::time_point deadline) {
  VR_TRY(address, socket_address(path));
  for (;;) {
    if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0)
      return {};
    if (errno == EINTR) continue;
    if (errno != EAGAIN) return failed(path, errno);
    // EAGAIN: the server's backlog is full. A unix socket cannot be polled for room there: look
    // again a little later.
    if (Clock::now() >= deadline)
      return fail(
          ETIMEDOUT,
          fmt::format("control socket {}: the node does not answer (it may be stopped or stuck)",
                      path));
    ::poll(nullptr, 0, 10);
  }
}

}  // namespace

Result<sockaddr_un> socket_address(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path)
    return fail(ENAMETOOLONG, fmt::format("control socket '{}': the path must have 1 to {} bytes",
                                          path, kSocketPathMax));
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

Result<std::string> control_request(const std::string& socket_path, std::string_view json,
                                    std::chrono::milliseconds timeout) {
  if (json.find('\n') != std::string_view::npos || json.size() >= kRequestMax)
    return fail(EINVAL, "a control request is one line of less than 64 KiB");
  const auto deadline = Clock::now() + timeout;
  Fd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket.valid()) return failed(socket_path, errno);
  VR_TRY_VOID(connect_to(socket, socket_path, deadline));

  const std::string request = std::string(json) + "\n";
  for (size_t sent = 0; sent < request.size();) {
    const ssize_t n =
        ::send(socket.get(), request.data() + sent, request.size() - sent, MSG_NOSIGNAL);
    if (n >= 0) {
      sent += static_cast<size_t>(n);
    } else if (errno == EAGAIN) {
      VR_TRY_VOID(wait_for(socket, POLLOUT, deadline, socket_path));
    } else if (errno == EPIPE) {
      break;  // the server refused to read on; its reply tells why
    } else if (errno != EINTR) {
      return failed(socket_path, errno);
    }
  }
  std::string reply;
  for (;;) {
    char piece[16 * 1024];
    const ssize_t n = ::recv(socket.get(), piece, sizeof piece, 0);
    if (n > 0) {
      reply.append(piece, static_cast<size_t>(n));
      if (const size_t end = reply.find('\n', reply.size() - static_cast<size_t>(n));
          end != std::string::npos)
        return reply.substr(0, end);
      if (reply.size() > kReplyMax)
        return fail(EMSGSIZE, fmt::format("control socket {}: endless reply", socket_path));
    } else if (n == 0) {
      return fail(ECONNRESET,
                  fmt::format("control socket {}: closed before a whole reply", socket_path));
    } else if (errno == EAGAIN) {
      VR_TRY_VOID(wait_for(socket, POLLIN, deadline, socket_path));
    } else if (errno != EINTR) {
      return failed(socket_path, errno);
    }
  }
}

Result<pid_t> control_process(const std::string& socket_path, std::chrono::milliseconds timeout) {
  Fd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket.valid()) return failed(socket_path, errno);
  VR_TRY_VOID(connect_to(socket, socket_path, Clock::now() + timeout));
  ucred who{};
  socklen_t length = sizeof who;
  if (::getsockopt(socket.get(), SOL_SOCKET, SO_PEERCRED, &who, &length) != 0)
    return failed(socket_path, errno);
  return who.pid;
}

Result<std::string> control_query(const std::string& socket_path, std::string_view name,
                                  std::chrono::milliseconds timeout) {
  VR_TRY(reply, control_request(socket_path, nlohmann::json{{"request", name}}.dump(), timeout));
  const auto parsed = nlohmann::json::parse(reply, nullptr, /*allow_exceptions=*/false);
  if (!parsed.is_object())
    return fail(EPROTO, fmt::format("control socket {}: the reply is no JSON object", socket_path));
  if (const auto error = parsed.find("error"); error != parsed.end())
    return fail(EREMOTEIO, error->is_string() ? error->get<std::string>() : error->dump());
  return reply;
}

}  // namespace vremote::control
