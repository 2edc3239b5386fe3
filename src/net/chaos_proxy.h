// For tests: forwards TCP connections to a port and breaks each of them after a random number of
// bytes, in the middle of whatever is there, with a reset or a plain close.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <list>
#include <thread>
#include <vector>

#include "base/fd.h"
#include "base/prng.h"

namespace vremote::net {

class ChaosProxy {
 public:
  struct Options {
    uint16_t target = 0;
    uint64_t seed = 1;
    uint64_t bytes_max = 200000;  // of one connection, both directions together
    bool corrupt = false;         // instead of breaking: flips bits now and then
    // Before connection n (the first is 1) goes on to the target; on the proxy's thread.
    std::function<void(uint64_t n)> on_connection = {};
  };
  explicit ChaosProxy(Options options);
  ~ChaosProxy();
  uint16_t port() const { return port_; }
  uint64_t broken() const { return broken_; }
  void calm() { calm_ = true; }  // breaks nothing from now on

 private:
  struct Direction {
    std::vector<char> waiting;  // read and not yet written
    size_t at = 0;
    bool ended = false;
  };
  struct Pair {
    Fd client, server;
    Direction up, down;
    uint64_t bytes_left = 0;
  };
  void run();
  void accept_one();
  bool forward(Pair& pair, Fd& from, Fd& to, Direction& direction);
  void destroy(Pair& pair);

  const Options options_;
  Prng random_;
  Fd listener_, wake_;
  uint16_t port_ = 0;
  std::list<Pair> pairs_;
  uint64_t accepted_ = 0;
  std::atomic<uint64_t> broken_{0};
  std::atomic<bool> calm_{false}, stop_{false};
  std::thread thread_;
};

}  // namespace vremote::net
