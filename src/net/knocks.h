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
#include "net/tls.h"
#include "net/told.h"
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
  // With TLS a handshake costs up to some 70 KiB while it is under way, else 16.
  static constexpr size_t kMax = 256;

  // `tls`: null for none.
  Knocks(EventLoop& loop, int64_t timeout_ms, std::shared_ptr<const Tls> tls,
         std::function<void(Guest)> on_hello);
  // When they are too many, the one who has been standing there longest is sent away: those who
  // know what to say have said it long ago.
  void add(Fd socket, std::string address);
  void clear() { knocks_.clear(); }

 private:
  struct Knock {
    std::string address;
    Fd socket;  // until the first bytes have told what it speaks
    std::unique_ptr<Stream> stream;
    FrameReader reader;
    Watch watch;
    Timer timer;
  };
  void on_readable(uint64_t id);
  // Decides between TLS and none by what has arrived. False: the knock is gone.
  bool open_stream(uint64_t id, Knock& knock);
  void reject(uint64_t id, const std::string& why);

  EventLoop& loop_;
  const int64_t timeout_ms_;
  const std::shared_ptr<const Tls> tls_;
  const std::function<void(Guest)> on_hello_;
  Told told_;
  std::map<uint64_t, Knock> knocks_;
  uint64_t next_ = 1;
};

// Says no and closes.
void refuse(Guest guest, wire::RefuseReason reason, const std::string& text);

}  // namespace vremote::net
