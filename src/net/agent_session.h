// An agent's side of the session with one home: dials, keeps dialling, and delivers every message
// exactly once and in order per lane.
//
// Each lane is one TCP connection at a time. Messages are numbered; the sender keeps what the other
// side has not acknowledged and sends the rest again after a reconnect. Only when the home no
// longer knows the session (it restarted, or ended it) is anything lost, and then everything is:
// on_reset says so, and the next on_connected begins a new session.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/time.h"
#include "coherence/messages.h"
#include "net/counters.h"
#include "net/event_loop.h"
#include "net/tls.h"
#include "wire/handshake.h"

namespace vremote::net {

// What the home told of itself.
struct HomeInfo {
  std::string node_name;
  uint64_t incarnation = 0;
  uint32_t session = 0;     // the home's number for this session
  uint32_t generation = 0;  // of the session at this side: see AgentSession::send()
  bool fresh = true;        // false: the session of the last on_connected goes on
  uint32_t lease_term_ms = 0;
  bool may_reclaim = false;  // wire::Welcome
  uint64_t disk_life = 0;    // the same
  uint64_t features = 0;     // that both sides understand
  std::vector<wire::Export> exports;
};

// A session that goes on under another process of the same node: the home sees a new connection,
// and nothing else.
struct KeptSession {
  uint64_t epoch = 0;
  bool welcomed = false;     // by some home: what follows
  uint64_t incarnation = 0;  // the home's
  uint32_t session = 0;
  struct Lane {
    uint64_t received = 0, first = 1;
    std::vector<wire::Encoded> queue = {};
  };
  std::vector<Lane> lanes;
};

struct AgentSessionOptions {
  std::string address;  // "host:port", "[v6]:port"; a host name is resolved again with every dial
  std::string cluster;
  std::string node_name;
  std::string home_name;  // only a home of this name is spoken to; empty: any (without TLS)
  std::shared_ptr<const Tls> tls;        // null: plain
  uint64_t incarnation = 0;              // random, new with each start of the node
  uint32_t lanes = 0;                    // 0: one per loop. Lane i lives on loop i % loops
  std::optional<KeptSession> kept = {};  // as many lanes as here
  int64_t backoff_min_ms = 100, backoff_max_ms = 2000;
  int64_t refused_backoff_ms = 10000;  // the most, after refusals that somebody must mend
  int64_t connect_timeout_ms = 5000;   // of one connect and of the handshake
  int64_t ping_interval_ms = 2000;     // on every lane; more often when the lease term is short
  int64_t silence_max_ms = 8000;       // a connection that says nothing for so long is closed and
                                       // dialled again; never more than most of the lease term
};

class AgentSession {
 public:
  // on_message runs on the lane's loop; the others on the first loop. All of them may call send().
  struct Callbacks {
    std::function<void(uint32_t lane, coherence::ToAgent&&)> on_message;
    // The first lane is up: after start, after on_disconnected, or after on_reset. Messages may
    // come a moment before it.
    std::function<void(const HomeInfo&)> on_connected;
    // No lane is up any more, or the home could not be reached or refused us (then once, until the
    // reason changes).
    std::function<void(const Error&)> on_disconnected;
    // The session is void: whatever was sent and not answered is lost. Runs after the last
    // on_message of the old session and before the first of the next. What is sent until it returns
    // is dropped.
    std::function<void(const std::string& why)> on_reset;
    // renewed_at() is later than before. On any lane's loop. Optional.
    std::function<void(uint32_t generation)> on_renewed = {};
  };

  // `loops` outlive the session.
  AgentSession(std::vector<EventLoop*> loops, AgentSessionOptions options, Callbacks callbacks);
  AgentSession(const AgentSession&) = delete;
  AgentSession& operator=(const AgentSession&) = delete;
  ~AgentSession();  // stop()

  // EINVAL for an address nobody can dial. Dialling goes on in the background.
  Status start();
  // Closes everything; no callback runs after it returns. Not from a callback.
  void stop();

  uint32_t lanes() const;

  // Queues and, when nothing is queued before it, sends on the calling thread. Any thread. Works
  // while disconnected. Fails only for a message that the wire refuses (wire::encode), and then
  // nothing was sent. With `generation` (HomeInfo), a message of an older session is dropped: a
  // thread that was about to send when the session was reset.
  Status send(uint32_t lane, const coherence::ToHome& message, uint32_t generation = 0);

  // Messages that the home has not acknowledged: those under way, and while it is away all that
  // wait for it. Cheap.
  size_t queued_messages() const;

  // Nothing while the session is being reset. While its loops do not run.
  std::optional<KeptSession> kept() const;

  // Something has changed that may have kept the home from taking us (a key, here or there): it is
  // dialled now, however long ago it last refused. Any thread.
  void hurry();

  bool connected() const;  // at least one lane
  // When the oldest of the last answered pings of all lanes was *sent*: from then on the home has
  // heard of us, on every lane. The start of the lease term, by EventLoop::boot_now(). {0} while
  // some lane of the session has never been connected.
  Instant renewed_at() const;
  std::vector<LaneStats> stats() const;

  // For tests: breaks the connection of a lane, which is then dialled again.
  void break_connection(uint32_t lane);

 private:
  class Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace vremote::net
