#include "wire/frame.h"

#include "base/check.h"

namespace vremote::wire {
namespace {

// Byte by byte: right on every machine, and compilers make one load or store of it.
template <typename T>
T get_le(const std::byte* p, size_t size = sizeof(T)) {
  T value = 0;
  for (size_t i = 0; i < size; ++i) value |= static_cast<T>(static_cast<T>(p[i]) << (8 * i));
  return value;
}
template <typename T>
void put_le(std::byte* p, T value, size_t size = sizeof(T)) {
  for (size_t i = 0; i < size; ++i) p[i] = static_cast<std::byte>(value >> (8 * i));
}

bool is_bare(FrameType type) {
  return type == FrameType::Ack || type == FrameType::Ping || type == FrameType::Pong;
}
bool may_have_bulk(FrameType type) {
  switch (type) {
    case FrameType::Flush:
    case FrameType::Call:
    case FrameType::Grant:
    case FrameType::FetchReply:
    case FrameType::Reply:
      return true;
    case FrameType::Hello:
    case FrameType::Welcome:
    case FrameType::Refuse:
    case FrameType::Ack:
    case FrameType::Ping:
    case FrameType::Pong:
    case FrameType::LeaseRequest:
    case FrameType::RecallAck:
    case FrameType::Fetch:
    case FrameType::Release:
    case FrameType::Announce:
    case FrameType::SizeShown:
    case FrameType::FollowWait:
    case FrameType::Recall:
    case FrameType::FlushAck:
    case FrameType::ShowSize:
    case FrameType::Announced:
    case FrameType::FollowOwner:
      return false;
  }
  return false;
}

}  // namespace

const char* to_string(FrameType type) {
  switch (type) {
    case FrameType::Hello:
      return "hello";
    case FrameType::Welcome:
      return "welcome";
    case FrameType::Refuse:
      return "refuse";
    case FrameType::Ack:
      return "ack";
    case FrameType::Ping:
      return "ping";
    case FrameType::Pong:
      return "pong";
    case FrameType::LeaseRequest:
      return "lease_request";
    case FrameType::RecallAck:
      return "recall_ack";
    case FrameType::Flush:
      return "flush";
    case FrameType::Fetch:
      return "fetch";
    case FrameType::Release:
      return "release";
    case FrameType::Call:
      return "call";
    case FrameType::Announce:
      return "announce";
    case FrameType::SizeShown:
      return "size_shown";
    case FrameType::FollowWait:
      return "follow_wait";
    case FrameType::Grant:
      return "grant";
    case FrameType::Recall:
      return "recall";
    case FrameType::FlushAck:
      return "flush_ack";
    case FrameType::FetchReply:
      return "fetch_reply";
    case FrameType::Reply:
      return "reply";
    case FrameType::ShowSize:
      return "show_size";
    case FrameType::Announced:
      return "announced";
    case FrameType::FollowOwner:
      return "follow_owner";
  }
  return "unknown";
}

Result<Preamble> decode_preamble(std::span<const std::byte, kPreambleSize> bytes) {
  Preamble p;
  p.header_length = get_le<uint32_t>(bytes.data());
  p.bulk_length = get_le<uint32_t>(bytes.data() + 4);
  auto type = get_le<uint8_t>(bytes.data() + 8);
  auto flags = get_le<uint8_t>(bytes.data() + 9);
  p.sequence = get_le<uint64_t>(bytes.data() + 10, 6);
  bool known = (type >= static_cast<uint8_t>(FrameType::Hello) &&
                type <= static_cast<uint8_t>(FrameType::Pong)) ||
               is_to_home(FrameType{type}) || is_to_agent(FrameType{type});
  if (!known) return fail(EPROTO, "frame of an unknown type");
  p.type = FrameType{type};
  if (flags != 0) return fail(EPROTO, "frame with unknown flags");
  if (p.header_length > kHeaderMax) return fail(EPROTO, "frame header too long");
  if (p.bulk_length > kBulkMax) return fail(EPROTO, "frame bulk too long");
  if (is_bare(p.type) ? p.header_length != 0 : p.header_length == 0)
    return fail(EPROTO, "frame header of a wrong length");
  if (p.bulk_length != 0 && !may_have_bulk(p.type))
    return fail(EPROTO, "bulk in a frame that has none");
  return p;
}

void encode_preamble(const Preamble& preamble, std::span<std::byte, kPreambleSize> out) {
  VR_CHECK(preamble.sequence <= kSequenceMax);
  put_le<uint32_t>(out.data(), preamble.header_length);
  put_le<uint32_t>(out.data() + 4, preamble.bulk_length);
  put_le<uint8_t>(out.data() + 8, static_cast<uint8_t>(preamble.type));
  put_le<uint8_t>(out.data() + 9, 0);
  put_le<uint64_t>(out.data() + 10, preamble.sequence, 6);
}

std::array<std::byte, kPreambleSize> bare_frame(FrameType type, uint64_t sequence) {
  VR_CHECK(is_bare(type));
  std::array<std::byte, kPreambleSize> frame;
  encode_preamble({.type = type, .sequence = sequence}, frame);
  return frame;
}

void Encoded::set_sequence(uint64_t sequence) {
  VR_CHECK(header.size() >= kPreambleSize && sequence <= kSequenceMax);
  put_le<uint64_t>(header.data() + 10, sequence, 6);
}

}  // namespace vremote::wire
