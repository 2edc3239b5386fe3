#include "net/dialer.h"

#include <fmt/core.h>

#include <cstring>

namespace vremote::net {

Dialer::Dialer(EventLoop& loop, Resolver& resolver, HostPort address,
               std::shared_ptr<const Tls> tls, std::string home_name, int64_t timeout_ms,
               Callbacks callbacks)
    : loop_(loop),
      resolver_(resolver),
      address_(std::move(address)),
      tls_(std::move(tls)),
      home_name_(std::move(home_name)),
      timeout_ms_(timeout_ms),
      callbacks_(std::move(callbacks)) {}

void Dialer::dial() {
  finish();
  candidate_ = 0;
  key_ = 0;
  insisted_ = false;
  // An address in numbers is resolved here, a name on the resolver's thread: it may take seconds.
  auto numeric = resolve(address_, false, false);
  if (numeric || numeric.error().code != EAGAIN) {
    if (!numeric) return callbacks_.failed(numeric.error());
    candidates_ = std::move(*numeric);
    return connect_next();
  }
  resolver_.resolve(
      address_, loop_,
      [weak = weak_from_this(), attempt = attempt_](Result<std::vector<SocketAddress>> found) {
        auto self = weak.lock();
        if (!self || self->attempt_ != attempt) return;
        if (!found) {
          self->finish();
          return self->callbacks_.failed(found.error());
        }
        self->candidates_ = std::move(*found);
        self->connect_next();
      });
}

void Dialer::cancel() { finish(); }

void Dialer::finish() {
  ++attempt_;
  watch_.reset();
  timer_.cancel();
  stream_.reset();
  socket_.reset();
}

void Dialer::next_or_fail(Error error) {
  finish();
  key_ = 0;
  if (++candidate_ < candidates_.size()) return connect_next();
  callbacks_.failed(error);
}

// For a home that has not got the newest key yet (KeyRing, R2).
bool Dialer::try_other_key() {
  if (!tls_ || key_ + 1 >= tls_->keys()) return false;
  finish();
  ++key_;
  connect_next();
  return true;
}

// The home has got a newer key between its refusal of ours and this welcome: no change of keys
// would follow that made this connection anew. Once only, for the newer key of each may be another.
bool Dialer::try_newest_again(const wire::Welcome& welcome) {
  if (!welcome.newer_key || key_ == 0 || insisted_) return false;
  finish();
  key_ = 0;
  insisted_ = true;
  connect_next();
  return true;
}

void Dialer::connect_next() {
  std::string name = candidates_[candidate_].text();
  timer_ = loop_.call_after(timeout_ms_ * 1'000'000, [this, name] {
    next_or_fail({ETIMEDOUT, fmt::format("{} does not answer", name)});
  });
  auto socket = begin_connect(candidates_[candidate_]);
  if (!socket) return next_or_fail(socket.error());
  socket_ = std::move(*socket);
  auto watch = loop_.watch_writable(socket_.get(), [this, name] {
    watch_.reset();
    if (int error = connect_error(socket_.get()))
      return next_or_fail(
          {error, fmt::format("cannot connect to {}: {}", name, std::strerror(error))});
    connected();
  });
  if (!watch) return next_or_fail(watch.error());
  watch_ = std::move(*watch);
}

void Dialer::connected() {
  auto hello = callbacks_.hello();
  if (!hello) return next_or_fail(hello.error());
  auto encoded = wire::encode(*hello);
  if (!encoded) return next_or_fail(encoded.error());

  if (tls_) {
    auto stream = tls_->connect(std::move(socket_), home_name_, key_);
    if (!stream) return next_or_fail(stream.error());
    stream_ = std::move(*stream);
  } else {
    stream_ = make_plain_stream(std::move(socket_));
  }
  iovec piece{encoded->header.data(), encoded->header.size()};
  IoResult result = stream_->write(std::span(&piece, 1));
  // A new socket takes a Hello whole.
  if (result.bytes != encoded->header.size())
    return next_or_fail({result.error ? result.error : EIO, "cannot say hello"});
  reader_ = FrameReader({.header_max = wire::kHandshakeHeaderMax, .bulk_max = wire::kBulkMax});
  auto watch = loop_.watch(stream_->fd(), [this] { on_readable(); });
  if (!watch) return next_or_fail(watch.error());
  watch_ = std::move(*watch);
}

void Dialer::on_readable() {
  auto self = shared_from_this();  // the callbacks may drop us
  IoResult result;
  Result<std::optional<FrameReader::Frame>> frame = std::nullopt;
  do {
    result = reader_.fill(*stream_);
    frame = reader_.next();
  } while (frame && !*frame && result.bytes > 0 && stream_->buffered());
  if (!frame) return next_or_fail(frame.error());
  if (*frame) {
    const auto& f = **frame;
    if (f.preamble.type == wire::FrameType::Welcome) {
      auto welcome = wire::decode_welcome(f.header);
      if (!welcome) return next_or_fail(welcome.error());
      if (try_newest_again(*welcome)) return;
      Welcomed answer{
          .stream = std::move(stream_), .reader = FrameReader(), .welcome = std::move(*welcome)};
      watch_.reset();
      std::swap(answer.reader, reader_);
      finish();
      return callbacks_.welcomed(std::move(answer));
    }
    if (f.preamble.type == wire::FrameType::Refuse) {
      auto refuse = wire::decode_refuse(f.header);
      if (!refuse) return next_or_fail(refuse.error());
      finish();
      return callbacks_.refused(*refuse);
    }
    return next_or_fail({EPROTO, "the other side does not speak our protocol"});
  }
  if (result.error == EACCES && try_other_key()) return;
  if (result.error != 0)
    return next_or_fail(
        {result.error,
         result.why != nullptr
             ? fmt::format("{}: {}", candidates_[candidate_].text(), result.why)
             : fmt::format("connection lost in the handshake: {}", describe(result))});
  if (result.end) return next_or_fail({ECONNRESET, "connection closed in the handshake"});
}

}  // namespace vremote::net
