#include "cli/ports.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <fstream>

namespace vremote::cli {
namespace {

constexpr unsigned kLowest = 10000;

// Without SO_REUSEADDR: a port that anybody holds, also without listening, is not free.
Result<HeldPort> hold(uint16_t port) {
  Fd socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!socket.valid()) return fail(errno, fmt::format("socket: {}", std::strerror(errno)));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(port);
  socklen_t length = sizeof address;
  if (::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), length) != 0 ||
      ::getsockname(socket.get(), reinterpret_cast<sockaddr*>(&address), &length) != 0)
    return fail(errno, fmt::format("port {} of 127.0.0.1: {}", port, std::strerror(errno)));
  return HeldPort{ntohs(address.sin_port), std::move(socket)};
}

unsigned first_ephemeral_port() {
  unsigned low = 0;
  std::ifstream("/proc/sys/net/ipv4/ip_local_port_range") >> low;
  return low != 0 ? low : 32768;
}

}  // namespace

Result<std::vector<HeldPort>> hold_free_ports(size_t count, uint64_t seed) {
  std::vector<HeldPort> held;
  const unsigned end = first_ephemeral_port();
  const unsigned span = end > kLowest ? end - kLowest : 0;
  for (unsigned i = 0; i < span && held.size() < count; ++i) {
    auto port = hold(static_cast<uint16_t>(kLowest + (seed + i) % span));
    if (port) held.push_back(*std::move(port));
  }
  while (held.size() < count) {  // no such range, or a crowded one: whatever the kernel gives
    VR_TRY(port, hold(0));
    held.push_back(std::move(port));
  }
  return held;
}

Result<std::vector<HeldPort>> hold_ports_from(uint16_t base, size_t count) {
  if (base == 0 || count > 65536u - base)
    return fail(EINVAL,
                fmt::format("ports {} to {} do not exist; choose a lower --base-port or fewer "
                            "--nodes",
                            base, base + count - 1));
  std::vector<HeldPort> held;
  for (size_t i = 0; i < count; ++i) {
    auto port = hold(static_cast<uint16_t>(base + i));
    if (!port)
      return fail(port.error().code, port.error().what + "; choose another --base-port, or none");
    held.push_back(*std::move(port));
  }
  return held;
}

}  // namespace vremote::cli
