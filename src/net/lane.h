// One reliable lane: messages arrive exactly once and in order although its connections come and
// go.
//
// 1. The n-th message of a session on this lane has the number n, in each direction.
// 2. The sender keeps a message until the other side has acknowledged it. Page data is shared, not
// copied.
// 3. With every new connection each side first says the last number it has received (handshake);
// the other sends the rest again.
// 4. The receiver takes only the number that follows; anything else breaks the rules.
//
// send() writes to the socket on the caller's thread: a thread hop costs more than the work. What
// the socket does not take is written by the loop when it does. Everything else happens on the
// lane's loop.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "base/result.h"
#include "base/time.h"
#include "net/counters.h"
#include "net/event_loop.h"
#include "net/frame_reader.h"
#include "net/stream.h"
#include "wire/frame.h"

namespace vremote::net {

class Lane : public std::enable_shared_from_this<Lane> {
 public:
  struct Options {
    uint32_t index = 0;
    int64_t ping_interval_ms = 0;  // 0: the other side pings
    int64_t silence_max_ms = 8000;
  };
  // All run on the lane's loop, with no lock held, and only between attach() and detach().
  struct Handlers {
    // A message frame. Decodes it, then calls taken(), then delivers it. An error closes the
    // connection.
    std::function<Status(const FrameReader::Frame&)> on_message;
    // The connection is gone and already detached. `hopeless`: the peer breaks the rules again and
    // again without any progress between; the same message would be sent for ever, so the session
    // must end.
    std::function<void(const Error&, bool hopeless)> on_lost;
    // renewed_at() is new. Optional.
    std::function<void()> on_renewed = {};
  };

  Lane(EventLoop& loop, Options options);
  Lane(const Lane&) = delete;
  Lane& operator=(const Lane&) = delete;

  EventLoop& loop() { return loop_; }

  // ---- any thread ----

  // Numbers, keeps and sends. Dropped while closed, or when `generation` is given and not the
  // lane's.
  void send(wire::Encoded message, uint32_t generation = 0);
  LaneStats stats() const;
  // Messages not acknowledged, and their bytes.
  struct Queued {
    size_t messages = 0;
    uint64_t bytes = 0;
  };
  Queued queued() const {
    return {queued_messages_.load(std::memory_order_relaxed),
            queued_bytes_.load(std::memory_order_relaxed)};
  }
  // While paused nothing is read, whatever connection comes: the peer's sending stops when the
  // sockets are full. Its silence does not count. What was read before is still delivered.
  void pause();
  void resume();
  Instant last_heard() const {
    return {last_heard_.load()};
  }  // any byte; the construction before the first
  Instant renewed_at() const {
    return {renewed_at_.load()};
  }  // when the last answered ping was sent (boot_now()); {0} before the first

  // What goes on under another process: the messages that were not acknowledged, and the numbers.
  struct Kept {
    uint64_t received = 0;
    uint64_t first = 1;  // the number of queue.front()
    std::vector<wire::Encoded> queue = {};
  };
  Kept kept() const;

  // ---- the lane's loop ----

  // Before anything else.
  void take_over(Kept kept);
  void set_handlers(Handlers handlers) { handlers_ = std::move(handlers); }
  // From the next connection on. The first of those in the options is 0 for a side that does not
  // ping; it stays so.
  void set_pace(int64_t ping_interval_ms, int64_t silence_max_ms);
  // The peer has heard of us: it answered what was sent then.
  void renew(Instant sent);
  // Takes a connection whose handshake is done. The peer has received messages up to
  // `peer_received`; `first` is written before anything else. Replaces an older connection. EPROTO
  // when `peer_received` is not possible.
  Status attach(std::unique_ptr<Stream> stream, FrameReader reader, uint64_t peer_received,
                std::vector<std::byte> first);
  // Takes what has arrived, before a connection is given up: it need not be sent again.
  void drain();
  // Drops the connection, silently.
  void detach();
  // For on_message.
  void taken(const FrameReader::Frame& frame);
  uint64_t received() const;
  bool attached() const { return stream_ != nullptr; }
  // Makes the session on this lane void: nothing queued, numbers from 1; send() drops everything
  // until open().
  void close();
  void open(uint32_t generation);
  // Detaches and tells on_lost; for tests and for a broken connection.
  void lose(const Error& error);

 private:
  bool read_some();  // true when there may be more
  Status watch_readable();
  void note_queued_locked();
  Status handle(const FrameReader::Frame& frame);
  Status acknowledged(uint64_t sequence);
  void tick();
  void schedule_tick();
  void schedule_ack();
  void add_control(wire::FrameType type, uint64_t sequence);  // under the lock, as all *_locked
  void flush_locked();
  size_t gather_locked(std::span<iovec> pieces) const;
  void advance_locked(size_t bytes);
  void queue_ack_locked();
  void wait_writable_locked();

  EventLoop& loop_;
  Options options_;  // the loop's
  Handlers handlers_;
  LaneCounters counters_;
  std::atomic<int64_t> last_heard_, renewed_at_{0};
  std::atomic<bool> paused_{false};
  std::atomic<size_t> queued_messages_{0};  // of queue_, for those who do not want the lock
  std::atomic<uint64_t> queued_bytes_{0};

  // The loop's own.
  FrameReader reader_;
  Watch readable_, writable_;
  Timer tick_timer_, ack_timer_;
  bool ack_scheduled_ = false;
  uint64_t ping_id_ = 0;
  bool ping_open_ = false;
  Instant ping_sent_;
  int violations_ = 0;               // in a row
  uint64_t violation_received_ = 0;  // received_ at the last one

  mutable std::mutex mutex_;
  // Changed by the loop under the lock; the loop itself reads it without.
  std::shared_ptr<Stream> stream_;
  uint64_t epoch_ = 0;  // counts connections: tasks posted for an older one do nothing
  bool open_ = false;
  uint32_t generation_ = 0;
  bool blocked_ = false;  // the socket is full; the loop waits for it
  bool broken_ = false;   // a write failed; the loop will detach

  std::deque<wire::Encoded> queue_;  // sent and not acknowledged, then not yet sent
  uint64_t first_ = 1;               // the number of queue_.front()
  size_t unsent_ = 0;                // index of the first message not yet fully written
  size_t written_ = 0;               // bytes of it that are
  uint64_t queue_bytes_ = 0;

  std::vector<std::byte> control_;  // acks, pings, pongs: between messages, never inside one
  size_t control_written_ = 0;

  uint64_t received_ = 0;       // the last message taken
  uint64_t ack_told_ = 0;       // the last the peer was told of
  uint64_t bytes_unacked_ = 0;  // taken since
};

}  // namespace vremote::net
