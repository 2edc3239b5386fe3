// One attempt to reach a home: resolve, connect, say Hello, hear the answer. Lives on one loop.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "net/address.h"
#include "net/frame_reader.h"
#include "net/stream.h"
#include "net/tls.h"
#include "wire/handshake.h"

namespace vremote::net {

class Dialer : public std::enable_shared_from_this<Dialer> {
 public:
  // What a home may answer, besides closing the connection.
  struct Welcomed {
    std::unique_ptr<Stream> stream;
    FrameReader reader;  // with what came after the Welcome
    wire::Welcome welcome;
  };
  // Exactly one of them is called for each dial(), unless it is cancelled. All on the loop.
  struct Callbacks {
    std::function<Result<wire::Hello>()>
        hello;  // asked when the connection stands, so that it is up to date
    std::function<void(Welcomed)> welcomed;
    std::function<void(const wire::Refuse&)> refused;
    std::function<void(const Error&)> failed;
  };

  // `tls`: null for none; else who answers must prove to be `home_name`.
  Dialer(EventLoop& loop, Resolver& resolver, HostPort address, std::shared_ptr<const Tls> tls,
         std::string home_name, int64_t timeout_ms, Callbacks callbacks);

  void dial();
  void cancel();

 private:
  void connect_next();
  void connected();
  void on_readable();
  void next_or_fail(Error error);
  bool try_other_key();
  bool try_newest_again(const wire::Welcome& welcome);
  void finish();  // forgets the attempt; a callback follows

  EventLoop& loop_;
  Resolver& resolver_;
  const HostPort address_;
  const std::shared_ptr<const Tls> tls_;
  const std::string home_name_;
  const int64_t timeout_ms_;
  const Callbacks callbacks_;

  uint64_t attempt_ = 0;  // a late answer of the resolver belongs to an older one
  std::vector<SocketAddress> candidates_;
  size_t candidate_ = 0;
  size_t key_ = 0;  // the number of the key that is shown: the newest first, at each candidate
  bool insisted_ = false;  // the newest was shown again after the home took the older
  Fd socket_;
  std::unique_ptr<Stream> stream_;
  FrameReader reader_;
  Watch watch_;  // after the descriptors: it goes first
  Timer timer_;
};

}  // namespace vremote::net
