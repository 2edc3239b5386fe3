// A frame: what one message is on a connection.
//
//   preamble (16 bytes, little-endian)   header (FlatBuffer, verified)   bulk (page data, never
//   inside the schema) u32 header_length | u32 bulk_length | u8 type | u8 flags | u48 sequence
//
// The header refers to page data as (offset, length) within the bulk, so that sending gathers the
// pages from where they are and receiving puts them where they stay. Messages are numbered 1, 2, 3,
// … per lane and direction; the other frames use the number for their own purpose (Ack: the last
// message received; Ping and Pong: an id).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"

namespace vremote::wire {

inline constexpr size_t kPreambleSize = 16;
inline constexpr size_t kHeaderMax = size_t{1} << 20;
inline constexpr size_t kBulkMax = size_t{4} << 20;
inline constexpr uint64_t kSequenceMax = (uint64_t{1} << 48) - 1;

// The numbers are part of the protocol.
enum class FrameType : uint8_t {
  Hello = 1,
  Welcome = 2,
  Refuse = 3,
  Ack = 4,
  Ping = 5,
  Pong = 6,
  // agent -> home
  LeaseRequest = 16,
  RecallAck = 17,
  Flush = 18,
  Fetch = 19,
  Release = 20,
  Call = 21,
  Announce = 22,
  SizeShown = 23,
  FollowWait = 24,
  // home -> agent
  Grant = 32,
  Recall = 33,
  FlushAck = 34,
  FetchReply = 35,
  Reply = 36,
  ShowSize = 37,
  Announced = 38,
  FollowOwner = 39,
};
inline constexpr size_t kFrameTypes = 40;  // one past the highest

const char* to_string(FrameType type);

constexpr bool is_to_home(FrameType type) {
  return type >= FrameType::LeaseRequest && type <= FrameType::FollowWait;
}
constexpr bool is_to_agent(FrameType type) {
  return type >= FrameType::Grant && type <= FrameType::FollowOwner;
}

struct Preamble {
  uint32_t header_length = 0;
  uint32_t bulk_length = 0;
  FrameType type = FrameType::Ping;
  uint64_t sequence = 0;
  bool operator==(const Preamble&) const = default;
};

// Checks lengths, type and flags. EPROTO when the peer breaks the rules.
Result<Preamble> decode_preamble(std::span<const std::byte, kPreambleSize> bytes);
void encode_preamble(const Preamble& preamble, std::span<std::byte, kPreambleSize> out);

// A frame without header and bulk: Ack, Ping, Pong.
std::array<std::byte, kPreambleSize> bare_frame(FrameType type, uint64_t sequence);

// One frame ready to be gathered into a socket. Copying it copies no page data.
struct Encoded {
  FrameType type = FrameType::Ping;
  std::vector<std::byte> header;  // preamble and FlatBuffer
  std::vector<Bytes> bulk;        // in order, none of them empty
  size_t bulk_size = 0;

  size_t size() const { return header.size() + bulk_size; }
  // Messages are numbered when they are queued, after they were encoded.
  void set_sequence(uint64_t sequence);
};

}  // namespace vremote::wire
