// What went over a lane, for status: written by the lane, read from any thread.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "wire/frame.h"

namespace vremote::net {

// A snapshot. Message counts are indexed by wire::FrameType; a message sent again after a reconnect
// counts once.
struct LaneStats {
  uint64_t bytes_in = 0, bytes_out = 0;  // on the socket, all frames
  uint64_t connections = 0;              // how often the lane was connected
  uint64_t unacknowledged = 0;           // messages kept for a reconnect, now
  uint64_t unacknowledged_bytes = 0;
  bool connected = false;
  bool encrypted = false;  // of several lanes: every one that is connected
  bool older_key = false;  // Stream::of_older_key(); of several lanes: any
  std::array<uint64_t, wire::kFrameTypes> messages_in{}, messages_out{};

  LaneStats& operator+=(const LaneStats& other) {
    bytes_in += other.bytes_in;
    bytes_out += other.bytes_out;
    connections += other.connections;
    unacknowledged += other.unacknowledged;
    unacknowledged_bytes += other.unacknowledged_bytes;
    encrypted =
        connected && other.connected ? encrypted && other.encrypted : encrypted || other.encrypted;
    older_key = older_key || other.older_key;
    connected = connected || other.connected;
    for (size_t i = 0; i < messages_in.size(); ++i) {
      messages_in[i] += other.messages_in[i];
      messages_out[i] += other.messages_out[i];
    }
    return *this;
  }
};

class LaneCounters {
 public:
  void sent(wire::FrameType type) { bump(messages_out_[static_cast<size_t>(type)], 1); }
  void received(wire::FrameType type) { bump(messages_in_[static_cast<size_t>(type)], 1); }
  void bytes_sent(uint64_t n) { bump(bytes_out_, n); }
  void bytes_received(uint64_t n) { bump(bytes_in_, n); }
  void connected() { bump(connections_, 1); }

  LaneStats snapshot() const {
    LaneStats s;
    s.bytes_in = bytes_in_.load(std::memory_order_relaxed);
    s.bytes_out = bytes_out_.load(std::memory_order_relaxed);
    s.connections = connections_.load(std::memory_order_relaxed);
    for (size_t i = 0; i < s.messages_in.size(); ++i) {
      s.messages_in[i] = messages_in_[i].load(std::memory_order_relaxed);
      s.messages_out[i] = messages_out_[i].load(std::memory_order_relaxed);
    }
    return s;
  }

 private:
  static void bump(std::atomic<uint64_t>& counter, uint64_t n) {
    counter.fetch_add(n, std::memory_order_relaxed);
  }
  std::atomic<uint64_t> bytes_in_{0}, bytes_out_{0}, connections_{0};
  std::array<std::atomic<uint64_t>, wire::kFrameTypes> messages_in_{}, messages_out_{};
};

}  // namespace vremote::net
