// Addresses as people write them, and the sockets behind them.
#pragma once

#include <sys/socket.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/fd.h"
#include "base/result.h"
#include "net/event_loop.h"

namespace vremote::net {

inline constexpr uint16_t kDefaultPort = 1104;

struct HostPort {
  std::string host;  // a name, or an address without brackets; empty: any
  uint16_t port = kDefaultPort;
  bool operator==(const HostPort&) const = default;
};

// "host", "host:port", "1.2.3.4:port", "[v6]:port", "[v6]", "v6", ":port".
Result<HostPort> parse_address(std::string_view text);

struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t length = 0;
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&storage); }
  std::string text() const;  // "1.2.3.4:5", "[::1]:5"
};

// Blocks when `address.host` is a name, and then only if `names` is true; else EAGAIN for a name.
Result<std::vector<SocketAddress>> resolve(const HostPort& address, bool names, bool passive);

// Runs resolve() on a thread of its own, which lives until stop(): that may take as long as the
// system's resolver does.
class Resolver {
 public:
  using Callback = std::move_only_function<void(Result<std::vector<SocketAddress>>)>;
  Resolver();
  ~Resolver();  // stop()
  Resolver(const Resolver&) = delete;
  Resolver& operator=(const Resolver&) = delete;
  // `callback` runs on `loop`.
  void resolve(HostPort address, EventLoop& loop, Callback callback);
  void stop();  // drops what is waiting; nothing is posted to a loop afterwards

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// A non-blocking socket that listens; both families when the address is "::".
Result<Fd> listen_on(const SocketAddress& address);
// A non-blocking socket whose connect has begun (or ended).
Result<Fd> begin_connect(const SocketAddress& address);
// 0, or why the connect failed.
int connect_error(int fd);
// No delays for small messages, and a dead peer is noticed within seconds.
void tune(int fd);
Result<SocketAddress> local_address(int fd);

}  // namespace vremote::net
