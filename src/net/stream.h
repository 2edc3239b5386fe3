// A connected byte stream: TCP as it is (here) or under TLS (tls.h), which is all that the frames
// above it see of the difference.
//
// read() is called by one thread at a time, and so are write() and pending(), but the two sides may
// run at once on different threads.
#pragma once

#include <sys/uio.h>

#include <memory>
#include <span>
#include <string>

#include "base/fd.h"

namespace vremote::net {

struct Dialled;

struct IoResult {
  size_t bytes = 0;
  // Nothing more now: wait for the descriptor. May come together with bytes. After write(): also
  // while pending() holds, although all the bytes were taken.
  bool would_block = false;
  bool end = false;           // the peer has closed (read only)
  int error = 0;              // errno: the stream is of no more use
  const char* why = nullptr;  // a sentence for people, where there is more to say than the errno
};
// What to tell people of an error.
std::string describe(const IoResult& failed);

class Stream {
 public:
  virtual ~Stream() = default;
  virtual int fd() const = 0;
  virtual IoResult read(std::span<iovec> into) = 0;
  virtual IoResult write(std::span<iovec> from) = 0;
  // Bytes taken by write() that the socket has not: call write() again when the socket takes more,
  // with nothing if there is nothing.
  virtual bool pending() const { return false; }
  // More may be had from read() at once, whatever the descriptor says of itself.
  virtual bool buffered() const { return false; }
  virtual bool encrypted() const { return false; }
  // The keys of this node have changed since, and what it proved itself by is not the newest: to be
  // made anew. Any thread.
  virtual bool stale() const { return false; }
  // Made of a key that is to be replaced. Any thread.
  virtual bool of_older_key() const { return false; }
  // The ends that both sides have proved to be; nothing where nobody proves anything, and before
  // the first byte was read.
  virtual const Dialled* proven() const { return nullptr; }
};

// TCP as it is. `fd` is non-blocking.
std::unique_ptr<Stream> make_plain_stream(Fd fd);

// Whether the peer of this socket has closed, also when bytes of it are still unread.
bool peer_has_closed(int fd);

}  // namespace vremote::net
