#include "net/stream.h"

#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>

namespace vremote::net {
namespace {

size_t total(std::span<const iovec> pieces) {
  size_t n = 0;
  for (const iovec& p : pieces) n += p.iov_len;
  return n;
}

class PlainStream : public Stream {
 public:
  explicit PlainStream(Fd fd) : fd_(std::move(fd)) {}
  int fd() const override { return fd_.get(); }

  IoResult read(std::span<iovec> into) override {
    while (true) {
      ssize_t n = ::readv(fd_.get(), into.data(), static_cast<int>(into.size()));
      if (n < 0 && errno == EINTR) continue;
      if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return {.would_block = true};
      if (n < 0) return {.error = errno};
      if (n == 0) return {.end = true};
      // Fewer than asked for: the socket is empty, another read would only say EAGAIN.
      return {.bytes = static_cast<size_t>(n), .would_block = static_cast<size_t>(n) < total(into)};
    }
  }

  IoResult write(std::span<iovec> from) override {
    msghdr message{};
    message.msg_iov = from.data();
    message.msg_iovlen = from.size();
    while (true) {
      ssize_t n = ::sendmsg(fd_.get(), &message, MSG_DONTWAIT | MSG_NOSIGNAL);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return {.would_block = true};
      if (n < 0) return {.error = errno};
      return {.bytes = static_cast<size_t>(n), .would_block = static_cast<size_t>(n) < total(from)};
    }
  }

 private:
  Fd fd_;
};

}  // namespace

std::string describe(const IoResult& failed) {
  return failed.why != nullptr ? failed.why : std::strerror(failed.error);
}

std::unique_ptr<Stream> make_plain_stream(Fd fd) {
  return std::make_unique<PlainStream>(std::move(fd));
}

bool peer_has_closed(int fd) {
  pollfd p{.fd = fd, .events = POLLRDHUP, .revents = 0};
  return ::poll(&p, 1, 0) > 0 && (p.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
}

}  // namespace vremote::net
