#include "net/knocks.h"

#include <fmt/core.h>
#include <spdlog/spdlog.h>

#include <cstring>

namespace vremote::net {

Knocks::Knocks(EventLoop& loop, int64_t timeout_ms, std::function<void(Guest)> on_hello)
    : loop_(loop), timeout_ms_(timeout_ms), on_hello_(std::move(on_hello)) {}

void Knocks::add(Fd socket, std::string address) {
  uint64_t id = next_++;
  Knock& knock = knocks_[id];
  knock.address = std::move(address);
  knock.stream = make_plain_stream(std::move(socket));
  knock.reader = FrameReader({.header_max = wire::kHelloMax, .bulk_max = 0});
  auto watch = loop_.watch(knock.stream->fd(), [this, id] { on_readable(id); });
  if (!watch) return reject(id, watch.error().what);
  knock.watch = std::move(*watch);
  knock.timer =
      loop_.call_after(timeout_ms_ * 1'000'000, [this, id] { reject(id, "no hello in time"); });
}

void Knocks::reject(uint64_t id, const std::string& why) {
  auto it = knocks_.find(id);
  if (it == knocks_.end()) return;
  spdlog::warn("connection from {} closed: {}", it->second.address, why);
  knocks_.erase(it);
}

void Knocks::on_readable(uint64_t id) {
  auto it = knocks_.find(id);
  if (it == knocks_.end()) return;
  Knock& knock = it->second;
  IoResult result = knock.reader.fill(*knock.stream);
  auto frame = knock.reader.next();
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
  if (result.error != 0) return reject(id, std::strerror(result.error));
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
