#include "net/knocks.h"

#include <fmt/core.h>
#include <spdlog/spdlog.h>

namespace vremote::net {

Knocks::Knocks(EventLoop& loop, int64_t timeout_ms, std::shared_ptr<const Tls> tls,
               std::function<void(Guest)> on_hello)
    : loop_(loop), timeout_ms_(timeout_ms), tls_(std::move(tls)), on_hello_(std::move(on_hello)) {}

void Knocks::add(Fd socket, std::string address) {
  if (knocks_.size() >= kMax)
    reject(knocks_.begin()->first, "too many strangers at the door, and it came first");
  uint64_t id = next_++;
  Knock& knock = knocks_[id];
  knock.address = std::move(address);
  knock.socket = std::move(socket);
  knock.reader = FrameReader({.header_max = wire::kHelloMax, .bulk_max = 0});
  auto watch = loop_.watch(knock.socket.get(), [this, id] { on_readable(id); });
  if (!watch) return reject(id, watch.error().what);
  knock.watch = std::move(*watch);
  knock.timer =
      loop_.call_after(timeout_ms_ * 1'000'000, [this, id] { reject(id, "no hello in time"); });
}

void Knocks::reject(uint64_t id, const std::string& why) {
  auto it = knocks_.find(id);
  if (it == knocks_.end()) return;
  if (told_.is_news(host_of(it->second.address), why, EventLoop::now()))
    spdlog::warn("connection from {} closed: {}", it->second.address, why);
  knocks_.erase(it);
}

bool Knocks::open_stream(uint64_t id, Knock& knock) {
  const FirstBytes first = look_at_first_bytes(knock.socket.get());
  if (!tls_) {
    if (first == FirstBytes::Tls) {
      refuse_tls(knock.socket.get());
      reject(id,
             "it speaks TLS and this node does not (tls = \"off\"); write the same on all nodes");
      return false;
    }
    knock.stream = make_plain_stream(std::move(knock.socket));
    return true;
  }
  if (first == FirstBytes::PlainHello) {
    // The only thing that is ever said in the clear here.
    Guest guest{.stream = make_plain_stream(std::move(knock.socket)),
                .reader = FrameReader(),
                .hello = {},
                .address = knock.address};
    refuse(std::move(guest), wire::RefuseReason::NotEncrypted,
           "this node speaks only TLS, and yours says tls = \"off\"; write the same on all nodes");
    reject(id, "it speaks without TLS (tls = \"off\" there); write the same on all nodes");
    return false;
  }
  auto stream = tls_->accept(std::move(knock.socket));
  if (!stream) {
    reject(id, stream.error().what);
    return false;
  }
  knock.stream = std::move(*stream);
  return true;
}

void Knocks::on_readable(uint64_t id) {
  auto it = knocks_.find(id);
  if (it == knocks_.end()) return;
  Knock& knock = it->second;
  if (!knock.stream && !open_stream(id, knock)) return;
  IoResult result;
  Result<std::optional<FrameReader::Frame>> frame = std::nullopt;
  do {
    result = knock.reader.fill(*knock.stream);
    frame = knock.reader.next();
  } while (frame && !*frame && result.bytes > 0 && knock.stream->buffered());
  if (!frame) return reject(id, frame.error().what);
  if (*frame) {
    if ((*frame)->preamble.type != wire::FrameType::Hello) return reject(id, "not a hello");
    auto hello = wire::decode_hello((*frame)->header);
    if (!hello) return reject(id, hello.error().what);
    knock.watch.reset();  // before the stream goes on to another loop
    Guest guest{.stream = std::move(knock.stream),
                .reader = std::move(knock.reader),
                .hello = std::move(*hello),
                .address = std::move(knock.address)};
    knocks_.erase(it);
    return on_hello_(std::move(guest));
  }
  if (result.error != 0) return reject(id, describe(result));
  if (result.end) return reject(id, "closed before its hello");
}

void refuse(Guest guest, wire::RefuseReason reason, const std::string& text) {
  auto encoded = wire::encode(wire::Refuse{.reason = reason, .text = text});
  if (!encoded) return;
  iovec piece{encoded->header.data(), encoded->header.size()};
  (void)guest.stream->write(std::span(
      &piece, 1));  // whole or not at all: the socket is new; the guest tries again anyway
}

}  // namespace vremote::net
