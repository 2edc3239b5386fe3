// The local control socket of a node: status and the like for programs on the same machine.
//
// A unix stream socket, by default of mode 0600 in a directory of mode 0700. Access can let other
// users connect; they may ask for what it lists and nothing else, and they get at most half of the
// places, so that the node's own user always finds one. A client sends one line of JSON,
// {"request": NAME}, gets one line of JSON and is closed. The server is one thread with poll(2),
// apart from the event loops, so that it answers when they are stuck: that is when people ask.
// Everything is bounded: requests, clients, time.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace vremote::control {

inline constexpr size_t kRequestMax = 64 * 1024;
inline constexpr size_t kClientsMax = 16;
inline constexpr int kClientTimeoutMs = 5000;  // from accept to the last byte of the reply
inline constexpr size_t kSocketPathMax = 107;  // sun_path less its final 0

// Who may connect, and what those may ask who are neither root nor the user the node runs as.
struct Access {
  unsigned mode = 0600;
  std::optional<unsigned> group;  // of the socket; unset: the node's own
  std::vector<std::string> open_requests = {};
};

class ControlServer {
 public:
  // Called on the server's thread, one request at a time, with the request line; returns the reply
  // (one line of JSON, without the newline). It must not wait for an event loop, a disk or another
  // node.
  using Handler = std::function<std::string(const std::string& request_json)>;

  // Makes the directory of `path` when it is missing (0700, or 0711 when others may connect) and
  // listens. The socket file of a dead
  // process is replaced; one of a living node is the Error EADDRINUSE.
  static Result<std::unique_ptr<ControlServer>> start(const std::string& path, Handler handler,
                                                      Access access = {});

  // Stops the thread, closes the clients and removes the socket file.
  ~ControlServer();
  ControlServer(const ControlServer&) = delete;
  ControlServer& operator=(const ControlServer&) = delete;

 private:
  class Impl;
  explicit ControlServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// The NAME of a request line, for handlers; an Error when it is not such a line.
Result<std::string> request_name(const std::string& request_json);
// The text `key` of a request line; empty when there is none.
std::string request_text(const std::string& request_json, std::string_view key);
// {"error": sentence}
std::string error_reply(std::string_view sentence);

}  // namespace vremote::control
