#include <algorithm>
#include <cerrno>

#include "base/check.h"
#include "fuzz/targets.h"
#include "wire/codec.h"
#include "wire/handshake.h"

namespace vremote::fuzz {
namespace {

using namespace vremote::wire;

// What was taken can be said again, and what is said twice is the same.
template <typename Decode>
void check_message(std::span<const std::byte> header, const Bytes& bulk, Decode decode) {
  const Exact exact(header);
  const auto message = decode(exact.view(), bulk);
  if (!message) {
    VR_CHECK(message.error().code > 0);
    return;
  }
  const auto once = encode(*message);
  if (!once) {
    // Overlapping slices of one bulk may add up to more than a bulk holds; nothing else that was
    // taken may be refused.
    VR_CHECK(once.error().code == EMSGSIZE);
    return;
  }
  std::vector<std::byte> gathered;
  for (const Bytes& part : once->bulk)
    for (const std::byte b : part.view()) gathered.push_back(b);
  VR_CHECK(gathered.size() == once->bulk_size);
  const auto again =
      decode(std::span(once->header).subspan(kPreambleSize), Bytes::copy_of(gathered));
  VR_CHECK(again.has_value());
  const auto twice = encode(*again);
  VR_CHECK(twice.has_value() && twice->header == once->header);
}

template <typename Decode>
void check_handshake(std::span<const std::byte> header, Decode decode) {
  const Exact exact(header);
  const auto message = decode(exact.view());
  if (!message) return;
  const auto once = encode(*message);
  VR_CHECK(once.has_value());
  const auto again = decode(std::span(once->header).subspan(kPreambleSize));
  VR_CHECK(again.has_value() && *again == *message);
}

}  // namespace

void frame(std::span<const std::byte> bytes) {
  if (bytes.size() < kPreambleSize) return;
  const auto preamble = decode_preamble(bytes.first<kPreambleSize>());
  if (!preamble) return;
  VR_CHECK(preamble->header_length <= kHeaderMax && preamble->bulk_length <= kBulkMax);
  const auto rest = bytes.subspan(kPreambleSize);
  const size_t header_size = std::min<size_t>(preamble->header_length, rest.size());
  const auto header = rest.first(header_size);
  const Bytes bulk = Bytes::copy_of(rest.subspan(header_size));
  const FrameType type = preamble->type;
  if (is_to_home(type)) {
    check_message(header, bulk, [type](std::span<const std::byte> h, const Bytes& b) {
      return decode_to_home(type, h, b);
    });
  } else if (is_to_agent(type)) {
    check_message(header, bulk, [type](std::span<const std::byte> h, const Bytes& b) {
      return decode_to_agent(type, h, b);
    });
  } else if (type == FrameType::Hello) {
    check_handshake(header, decode_hello);
  } else if (type == FrameType::Welcome) {
    check_handshake(header, decode_welcome);
  } else if (type == FrameType::Refuse) {
    check_handshake(header, decode_refuse);
  }
}

}  // namespace vremote::fuzz
