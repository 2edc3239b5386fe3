// A connected byte stream: the seam where TLS goes between the frames and the socket.
//
// read() is called by one thread at a time, and so is write(), but the two may run at once on
// different threads.
#pragma once

#include <sys/uio.h>

#include <memory>
#include <span>

#include "base/fd.h"

namespace vremote::net {

struct IoResult {
  size_t bytes = 0;
  bool would_block =
      false;         // nothing more now: wait for the descriptor. May come together with bytes
  bool end = false;  // the peer has closed (read only)
  int error = 0;     // errno: the stream is of no more use
};

class Stream {
 public:
  virtual ~Stream() = default;
  virtual int fd() const = 0;
  virtual IoResult read(std::span<iovec> into) = 0;
  virtual IoResult write(std::span<iovec> from) = 0;
};

// TCP as it is. `fd` is non-blocking.
std::unique_ptr<Stream> make_plain_stream(Fd fd);

// Whether the peer of this socket has closed, also when bytes of it are still unread.
bool peer_has_closed(int fd);

}  // namespace vremote::net
