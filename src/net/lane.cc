#include "net/lane.h"

#include <fmt/core.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "base/check.h"

namespace vremote::net {
namespace {

using wire::FrameType;

// The receiver acknowledges at the latest after so many messages, bytes, or nanoseconds.
constexpr uint64_t kAckMessages = 64;
constexpr uint64_t kAckBytes = uint64_t{1} << 20;
constexpr int64_t kAckDelayNs = 20'000'000;

constexpr size_t kReadBudget = size_t{1}
                               << 20;  // per wake-up, so that one peer does not starve the others
constexpr size_t kPieces = 64;         // per write
constexpr size_t kControlMax = size_t{64} << 10;  // pongs for a peer that pings and does not read
constexpr int kViolationsMax = 3;

}  // namespace

Lane::Lane(EventLoop& loop, Options options)
    : loop_(loop), options_(std::move(options)), last_heard_(EventLoop::now().ns) {}

// ---- sending

void Lane::send(wire::Encoded message, uint32_t generation) {
  std::lock_guard lock(mutex_);
  if (!open_ || (generation != 0 && generation != generation_)) return;
  message.set_sequence(first_ + queue_.size());
  counters_.sent(message.type);
  queue_bytes_ += message.size();
  queue_.push_back(std::move(message));
  note_queued_locked();
  flush_locked();
}

void Lane::note_queued_locked() {
  queued_messages_.store(queue_.size(), std::memory_order_relaxed);
  queued_bytes_.store(queue_bytes_, std::memory_order_relaxed);
}

void Lane::add_control(FrameType type, uint64_t sequence) {
  auto frame = wire::bare_frame(type, sequence);
  control_.insert(control_.end(), frame.begin(), frame.end());
}

void Lane::queue_ack_locked() {
  add_control(FrameType::Ack, received_);
  ack_told_ = received_;
  bytes_unacked_ = 0;
}

// What to write next, in order: the rest of a message partly written, the control frames, the
// messages not yet written.
size_t Lane::gather_locked(std::span<iovec> pieces) const {
  size_t n = 0;
  auto add = [&](const std::byte* data, size_t size) {
    if (size > 0 && n < pieces.size()) pieces[n++] = {const_cast<std::byte*>(data), size};
  };
  auto add_message = [&](const wire::Encoded& message, size_t skip) {
    auto piece = [&](const std::byte* data, size_t size) {
      size_t s = std::min(skip, size);
      skip -= s;
      add(data + s, size - s);
    };
    piece(message.header.data(), message.header.size());
    for (const Bytes& b : message.bulk) piece(b.data(), b.size());
  };
  size_t i = unsent_;
  if (written_ > 0) {
    add_message(queue_[i++], written_);
    // Cut short by the number of pieces, the message's rest comes before anything else.
    if (n == pieces.size()) return n;
  }
  add(control_.data() + control_written_, control_.size() - control_written_);
  for (; i < queue_.size() && n < pieces.size(); ++i) add_message(queue_[i], 0);
  return n;
}

// Counts `bytes` as written, in the order of gather_locked().
void Lane::advance_locked(size_t bytes) {
  counters_.bytes_sent(bytes);
  auto advance_message = [&] {
    size_t n = std::min(bytes, queue_[unsent_].size() - written_);
    written_ += n;
    bytes -= n;
    if (written_ == queue_[unsent_].size()) {
      written_ = 0;
      ++unsent_;
    }
  };
  if (written_ > 0) advance_message();
  if (written_ == 0) {
    size_t n = std::min(bytes, control_.size() - control_written_);
    control_written_ += n;
    bytes -= n;
    if (control_written_ == control_.size()) {
      control_.clear();
      control_written_ = 0;
    }
  }
  while (bytes > 0) advance_message();
}

void Lane::flush_locked() {
  if (!stream_ || blocked_ || broken_) return;
  if (unsent_ < queue_.size() && received_ != ack_told_) queue_ack_locked();  // it travels for free
  while (unsent_ < queue_.size() || !control_.empty() || stream_->pending()) {
    std::array<iovec, kPieces> pieces;
    size_t n = gather_locked(pieces);
    IoResult result = stream_->write(std::span(pieces.data(), n));
    if (result.error != 0) {
      // The caller may be any thread: the loop takes the connection down.
      broken_ = true;
      loop_.post([self = shared_from_this(), epoch = epoch_, result] {
        if (self->epoch_ != epoch) return;
        self->drain();
        if (self->epoch_ == epoch)
          self->lose({result.error, fmt::format("connection lost: {}", describe(result))});
      });
      return;
    }
    advance_locked(result.bytes);
    if (result.would_block) {
      blocked_ = true;
      if (loop_.on_loop_thread()) return wait_writable_locked();
      loop_.post([self = shared_from_this(), epoch = epoch_] {
        std::lock_guard lock(self->mutex_);
        if (self->epoch_ == epoch && self->stream_) self->wait_writable_locked();
      });
      return;
    }
  }
}

void Lane::wait_writable_locked() {
  auto watch = loop_.watch_writable(stream_->fd(), [this, epoch = epoch_] {
    writable_.reset();  // it keeps a duplicate of the socket
    std::lock_guard lock(mutex_);
    if (epoch_ != epoch) return;
    blocked_ = false;
    flush_locked();
  });
  if (!watch) {
    broken_ = true;
    loop_.post([self = shared_from_this(), epoch = epoch_, error = watch.error()] {
      if (self->epoch_ == epoch) self->lose(error);
    });
    return;
  }
  writable_ = std::move(*watch);
}

// ---- receiving

uint64_t Lane::received() const {
  std::lock_guard lock(mutex_);
  return received_;
}

void Lane::taken(const FrameReader::Frame& frame) {
  counters_.received(frame.preamble.type);
  std::lock_guard lock(mutex_);
  received_ = frame.preamble.sequence;
  bytes_unacked_ += frame.size();
  if (received_ - ack_told_ >= kAckMessages || bytes_unacked_ >= kAckBytes) {
    queue_ack_locked();
    flush_locked();
  }
}

void Lane::schedule_ack() {
  if (ack_scheduled_) return;
  ack_scheduled_ = true;
  ack_timer_ = loop_.call_after(kAckDelayNs, [this] {
    ack_scheduled_ = false;
    std::lock_guard lock(mutex_);
    if (!stream_ || received_ == ack_told_) return;
    queue_ack_locked();
    flush_locked();
  });
}

Status Lane::acknowledged(uint64_t sequence) {
  std::vector<wire::Encoded> done;  // freed after the lock
  {
    std::lock_guard lock(mutex_);
    if (sequence >= first_ + unsent_)
      return fail(EPROTO, "acknowledged a message that was not sent");
    while (first_ <= sequence) {
      queue_bytes_ -= queue_.front().size();
      done.push_back(std::move(queue_.front()));
      queue_.pop_front();
      ++first_;
      --unsent_;
    }
    note_queued_locked();
  }
  return {};
}

Status Lane::handle(const FrameReader::Frame& frame) {
  switch (frame.preamble.type) {
    case FrameType::Ack:
      return acknowledged(frame.preamble.sequence);
    case FrameType::Ping: {
      std::lock_guard lock(mutex_);
      if (control_.size() >= kControlMax) return fail(EPROTO, "too many pings");
      add_control(FrameType::Pong, frame.preamble.sequence);
      flush_locked();
      return {};
    }
    case FrameType::Pong:
      if (!ping_open_ || frame.preamble.sequence != ping_id_)
        return fail(EPROTO, "an answer to no ping");
      ping_open_ = false;
      renew(ping_sent_);
      return {};
    case FrameType::Hello:
    case FrameType::Welcome:
    case FrameType::Refuse:
      return fail(EPROTO, "handshake in the middle of a connection");
    case FrameType::LeaseRequest:
    case FrameType::RecallAck:
    case FrameType::Flush:
    case FrameType::Fetch:
    case FrameType::Release:
    case FrameType::Call:
    case FrameType::Announce:
    case FrameType::SizeShown:
    case FrameType::FollowWait:
    case FrameType::Grant:
    case FrameType::Recall:
    case FrameType::FlushAck:
    case FrameType::FetchReply:
    case FrameType::Reply:
    case FrameType::ShowSize:
    case FrameType::Announced:
    case FrameType::FollowOwner:
      break;
  }
  if (frame.preamble.sequence != received() + 1)
    return fail(EPROTO, fmt::format("message {} after {}", frame.preamble.sequence, received()));
  return handlers_.on_message(frame);
}

void Lane::drain() {
  // The bound is for a peer that sends as fast as we read.
  for (int i = 0; i < 16 && stream_; ++i)
    if (!read_some()) return;
}

bool Lane::read_some() {
  auto self = shared_from_this();
  auto stream = stream_;
  uint64_t epoch = epoch_;
  auto lost = [this](const Error& error) {
    lose(error);
    return false;
  };
  size_t budget = kReadBudget;
  bool more = true;
  while (stream) {
    // First what an earlier read, or the handshake's, has left.
    while (true) {
      if (paused_) break;
      auto frame = reader_.next();
      if (!frame) return lost(frame.error());
      if (!*frame) break;
      Status status = handle(**frame);
      if (epoch_ != epoch) return false;  // a callback has detached us
      if (!status) return lost(status.error());
    }
    if (paused_) more = false;
    if (budget == 0 || !more) break;
    IoResult result = reader_.fill(*stream);
    if (result.bytes > 0) {
      counters_.bytes_received(result.bytes);
      last_heard_ = EventLoop::now().ns;
    }
    if (result.error != 0)
      return lost({result.error, fmt::format("connection lost: {}", describe(result))});
    if (result.end) return lost({ECONNRESET, "connection closed by the other side"});
    budget -= std::min(budget, result.bytes);
    more = !result.would_block;
  }
  bool owes_ack;
  {
    std::lock_guard lock(mutex_);
    owes_ack = received_ != ack_told_;
  }
  if (owes_ack) schedule_ack();
  // The descriptor says nothing of what the stream itself has taken in.
  if (more && stream && stream->buffered())
    loop_.post([self, epoch] {
      if (self->epoch_ == epoch && self->stream_ && !self->paused_) self->read_some();
    });
  return more;
}

// ---- connections

Status Lane::attach(std::unique_ptr<Stream> stream, FrameReader reader, uint64_t peer_received,
                    std::vector<std::byte> first) {
  VR_CHECK(loop_.on_loop_thread());
  detach();
  std::vector<wire::Encoded> done;
  {
    std::lock_guard lock(mutex_);
    if (!open_) return fail(ECANCELED, "the session was closed");
    if (peer_received + 1 < first_ || peer_received >= first_ + queue_.size())
      return fail(EPROTO, fmt::format("the peer says it has received {}, we have sent {} to {}",
                                      peer_received, first_, first_ + queue_.size() - 1));
    for (; first_ <= peer_received; ++first_) {
      queue_bytes_ -= queue_.front().size();
      done.push_back(std::move(queue_.front()));
      queue_.pop_front();
    }
    unsent_ = written_ = 0;
    control_ = std::move(first);
    control_written_ = 0;
    blocked_ = broken_ = false;
    ack_told_ = received_;  // said in the handshake
    bytes_unacked_ = 0;
    stream_ = std::move(stream);
    ++epoch_;
  }
  reader_ = std::move(reader);
  reader_.set_limits({});
  ping_open_ = false;
  last_heard_ = EventLoop::now().ns;
  if (auto watching = watch_readable(); !watching) {
    detach();
    return watching;
  }
  counters_.connected();
  tick();
  {
    std::lock_guard lock(mutex_);
    flush_locked();
  }
  // The handshake's read may have brought more than the handshake.
  loop_.post([self = shared_from_this(), epoch = epoch_] {
    if (self->epoch_ == epoch && self->stream_) self->read_some();
  });
  return {};
}

void Lane::set_pace(int64_t ping_interval_ms, int64_t silence_max_ms) {
  if (options_.ping_interval_ms > 0) options_.ping_interval_ms = ping_interval_ms;
  options_.silence_max_ms = silence_max_ms;
}

void Lane::renew(Instant sent) {
  if (sent.ns <= renewed_at_) return;
  renewed_at_ = sent.ns;
  if (handlers_.on_renewed) handlers_.on_renewed();
}

Status Lane::watch_readable() {
  if (paused_) return {};
  VR_TRY(watch, loop_.watch(stream_->fd(), [this] { read_some(); }));
  readable_ = std::move(watch);
  return {};
}

void Lane::pause() {
  if (paused_.exchange(true)) return;
  loop_.post([self = shared_from_this()] {
    if (self->paused_) self->readable_.reset();
  });
}

void Lane::resume() {
  if (!paused_.exchange(false)) return;
  loop_.post([self = shared_from_this()] {
    self->last_heard_ = EventLoop::now().ns;
    if (self->paused_ || !self->stream_ || self->readable_) return;
    if (auto watching = self->watch_readable(); !watching) return self->lose(watching.error());
    self->read_some();
  });
}

void Lane::detach() {
  readable_.reset();
  writable_.reset();
  tick_timer_.cancel();
  ack_timer_.cancel();
  ack_scheduled_ = false;
  std::shared_ptr<Stream> closing;  // the descriptor is closed after the lock and after its watches
  std::lock_guard lock(mutex_);
  ++epoch_;
  closing.swap(stream_);
}

void Lane::lose(const Error& error) {
  if (!stream_) return;
  bool hopeless = false;
  if (error.code == EPROTO) {
    violations_ = violations_ > 0 && received() == violation_received_ ? violations_ + 1 : 1;
    violation_received_ = received();
    hopeless = violations_ >= kViolationsMax;
  }
  detach();
  handlers_.on_lost(error, hopeless);
}

void Lane::close() {
  detach();
  std::deque<wire::Encoded> dropped;
  std::lock_guard lock(mutex_);
  open_ = false;
  dropped.swap(queue_);
  first_ = 1;
  unsent_ = written_ = 0;
  queue_bytes_ = 0;
  note_queued_locked();
  received_ = ack_told_ = bytes_unacked_ = 0;
  violations_ = 0;
  renewed_at_ = 0;
}

void Lane::open(uint32_t generation) {
  std::lock_guard lock(mutex_);
  open_ = true;
  generation_ = generation;
}

Lane::Kept Lane::kept() const {
  std::lock_guard lock(mutex_);
  return {received_, first_, {queue_.begin(), queue_.end()}};
}

void Lane::take_over(Kept kept) {
  std::lock_guard lock(mutex_);
  received_ = ack_told_ = kept.received;
  first_ = kept.first;
  for (wire::Encoded& message : kept.queue) {
    message.set_sequence(first_ + queue_.size());
    queue_bytes_ += message.size();
    queue_.push_back(std::move(message));
  }
  note_queued_locked();
}

void Lane::tick() {
  Instant now = EventLoop::now();
  if (paused_) last_heard_ = now.ns;  // it may speak, and we do not listen
  if (now - last_heard() > options_.silence_max_ms * 1'000'000)
    return lose({ETIMEDOUT, fmt::format("nothing heard for {} ms", options_.silence_max_ms)});
  if (options_.ping_interval_ms > 0 && !ping_open_) {
    ping_open_ = true;
    ping_sent_ = EventLoop::boot_now();
    std::lock_guard lock(mutex_);
    add_control(FrameType::Ping, ++ping_id_ & wire::kSequenceMax);
    flush_locked();
  }
  schedule_tick();
}

void Lane::schedule_tick() {
  int64_t interval_ms = options_.ping_interval_ms > 0
                            ? options_.ping_interval_ms
                            : std::max<int64_t>(options_.silence_max_ms / 4, 1);
  tick_timer_ = loop_.call_after(interval_ms * 1'000'000, [this] {
    if (stream_->stale()) return lose({EKEYEXPIRED, "the key has changed"});
    tick();
  });
}

LaneStats Lane::stats() const {
  LaneStats stats = counters_.snapshot();
  std::lock_guard lock(mutex_);
  stats.unacknowledged = queue_.size();
  stats.unacknowledged_bytes = queue_bytes_;
  stats.connected = stream_ != nullptr;
  stats.encrypted = stream_ != nullptr && stream_->encrypted();
  stats.older_key = stream_ != nullptr && stream_->of_older_key();
  return stats;
}

}  // namespace vremote::net
