// Connections that have not said a valid Hello yet: strangers. Few, small, and not for long.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "base/fd.h"
#include "net/event_loop.h"
#include "net/frame_reader.h"
#include "net/stream.h"
#include "wire/handshake.h"

namespace vremote::net {

// One who has said a Hello and waits for the answer.
struct Guest {
  std::unique_ptr<Stream> stream;
  FrameReader reader;
  wire::Hello hello;
  std::string address;
};

// All on one loop.
class Knocks {
 public:
  static constexpr size_t kMax = 256;

  Knocks(EventLoop& loop, int64_t timeout_ms, std::function<void(Guest)> on_hello);
  bool full() const { return knocks_.size() >= kMax; }
  void add(Fd socket, std::string address);
  void clear() { knocks_.clear(); }

 private:
  struct Knock {
    std::string address;
    std::unique_ptr<Stream> stream;
    FrameReader reader;
    Watch watch;
    Timer timer;
  };
  void on_readable(uint64_t id);
  void reject(uint64_t id, const std::string& why);

  EventLoop& loop_;
  const int64_t timeout_ms_;
  const std::function<void(Guest)> on_hello_;
  std::map<uint64_t, Knock> knocks_;
  uint64_t next_ = 1;
};

// Says no and closes.
void refuse(Guest guest, wire::RefuseReason reason, const std::string& text);

}  // namespace vremote::net
